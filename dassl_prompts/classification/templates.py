"""Hand-written prompt templates.

Sources: the per-dataset wordings and the seven selected templates are CoOp's (Zhou et al. 2022, its zero-shot
baseline); the 60 are the first 60 of the 80 ImageNet templates of CLIP (Radford et al. 2021), which is the
part of that list that PromptSRC (Khattak et al. 2023) averages over.
"""

from __future__ import annotations

PLAIN_TEMPLATE = "a photo of a {}."

#: one template per dataset, keyed by the dataset's registered name
CUSTOM_TEMPLATES = {
    "Caltech101": PLAIN_TEMPLATE,
    "OxfordPets": "a photo of a {}, a type of pet.",
    "StanfordCars": PLAIN_TEMPLATE,
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "Food101": "a photo of {}, a type of food.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "SUN397": PLAIN_TEMPLATE,
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "UCF101": "a photo of a person doing {}.",
    "ImageNet": PLAIN_TEMPLATE,
    "ImageNetV2": PLAIN_TEMPLATE,
    "ImageNetSketch": PLAIN_TEMPLATE,
    "ImageNetA": PLAIN_TEMPLATE,
    "ImageNetR": PLAIN_TEMPLATE,
    **dict.fromkeys(("Emoji", "EmojiNoto", "EmojiTwemoji", "EmojiOpenMoji"), "a photo of a {}, a type of emoji."),
    **dict.fromkeys(("QuickDraw", "IconPark", "ClipArt"), PLAIN_TEMPLATE),
    **dict.fromkeys(("OwnPictures", "OwnCaptions"), PLAIN_TEMPLATE),
}


def student_of(template: str) -> str:
    """TCP's text for ``template``: four words that the context overwrites, then what follows the class name."""
    return "X X X X {}" + template.partition("{}")[2] if template else ""


#: KgCoOp's: CoOp's but for the textures
KGCOOP_TEMPLATES = {**CUSTOM_TEMPLATES, "DescribableTextures": "a photo of a {}, a type of texture."}

#: TCP's hand-written prompts
TCP_TEMPLATES = {
    **KGCOOP_TEMPLATES,
    "FGVCAircraft": "a photo of an aircraft {}.",
    "Food101": "a photo of a {}, a type of food.",
}
#: the texts whose first four words TCP's context overwrites: the official table, whose cars lack the stop, and for the sets that
#: it does not have what follows from their templates
TCP_STUDENT_TEMPLATES = {
    **{name: student_of(template) for name, template in TCP_TEMPLATES.items()},
    **dict.fromkeys(("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"), PLAIN_TEMPLATE),
    **dict.fromkeys(("Caltech101", "SUN397", "EuroSAT"), "X X X X {}."),
    "OxfordPets": "X X X X {}, a type of pet.",
    "StanfordCars": "X X X X {}, a type of car",
    "OxfordFlowers": "X X X X {}, a type of flower.",
    "Food101": "X X X X {}, a type of food.",
    "FGVCAircraft": "X X X X {}, a type of aircraft.",
    "DescribableTextures": "X X X X {} texture.",
    "UCF101": "a photo of a person doing {}.",
}

#: ProGrad's, class name last; their words also start its context
PROGRAD_TEMPLATES = {
    **CUSTOM_TEMPLATES,
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "Food101": "a type of food, a photo of {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "DescribableTextures": "a texture of {}.",
    **dict.fromkeys(("Emoji", "EmojiNoto", "EmojiTwemoji", "EmojiOpenMoji"), "a type of emoji, a photo of a {}."),
}

#: the seven templates that CoOp selected for its zero-shot ensemble
ENSEMBLE_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

#: the 60 templates whose mean text feature is PromptSRC's frozen target
PROMPTSRC_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
)


def template_for(
    cfg, own: str = "", key: str = "the method's TEMPLATE", table: dict[str, str] = CUSTOM_TEMPLATES
) -> str:
    """``own``, which the user gave as the configuration key ``key``, else ``DATASET.TEMPLATE``, else that of the dataset in ``table``.

    Raises:
        ValueError: no template is known for this dataset, or the one given does not hold ``{}`` once.
    """
    if not own and cfg.DATASET.get("TEMPLATE", ""):
        own, key = cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE"
    if own and own.count("{}") != 1:
        raise ValueError(f"{key} must hold {{}} once for the class name, got {own!r}")
    template = own or table.get(cfg.DATASET.NAME)
    if template is None:
        raise ValueError(
            f'no template is known for dataset {cfg.DATASET.NAME}: set {key} or DATASET.TEMPLATE "a photo of a {{}}." '
            f"(DATASET.NAME {cfg.DATASET.NAME!r} is none of {', '.join(table)})"
        )
    return template
