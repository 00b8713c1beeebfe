"""The tables of docs/emoji.md: what the embedded data holds and what the embedded backbones reach on it,
measured now.
"""

import json
from collections import Counter
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from dassl_prompts import configs
from dassl_prompts.classification.templates import CUSTOM_TEMPLATES
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.retrieval import emoji_cirr, emoji_fdrd, emoji_laion_cir
from dassl_prompts.emoji.splits import read_splits
from dassl_prompts.images import read_image

BACKBONES = ("emoji-tiny", "emoji-base")
MODELS = emoji.ASSETS.parent / "models"
CONFIGS = Path(configs.__path__[0])
TEMPLATE = CUSTOM_TEMPLATES["Emoji"]
LICENCES = {
    "noto": "Google, Apache-2.0",
    "twemoji": "Twitter and contributors, CC BY 4.0",
    "openmoji": "OpenMoji, CC BY-SA 4.0",
    "fluent": "Microsoft, MIT",
}
SPLITS = ("train", "val", "test")


def _table(title, header, rows):
    return f"**{title}**\n\n{tabulate(rows, header, tablefmt='github', disable_numparse=True)}\n"


def data_tables():
    """Markdown tables that need no model."""
    meta = emoji.read_meta()
    styles = [
        [
            s,
            LICENCES[s],
            e["package"],
            e["pictures"],
            len(e["twins"]),
            f"{e['bytes'] / 1e6:.2f}",
            "held out" if s == emoji.HELD_OUT else "seen",
        ]
        for s, e in meta["styles"].items()
    ]
    order = {s: i for i, s in enumerate(emoji.STYLES)}
    styles.sort(key=lambda row: order[row[0]])
    parts = {s: Counter(d.classname for d in items) for s, items in read_splits(emoji.HELD_OUT)._asdict().items()}
    kinds = {name: kind for kind, name in emoji.CLASS_NAMES.items()}
    classes = [
        [n, kinds[n], ", ".join(meta["classes"][kinds[n]]), *(parts[s][n] for s in SPLITS)] for n in emoji.classnames()
    ]
    classes.append([f"{len(classes)} classes", "", "", *(sum(parts[s].values()) for s in SPLITS)])
    cirr, laion = emoji_cirr(), emoji_laion_cir()
    kinds = Counter(e["caption_extend"]["0"] for e in cirr["captions_ext"])
    tasks = [
        *([f"captions (FDRD format), {s}", len(emoji_fdrd(s))] for s in SPLITS),
        ["composed training triplets (Laion-CIR format)", len(laion["triplets"])],
        ["composed training pictures", len(laion["images"])],
        ["composed queries (CIRR format, val)", len(cirr["captions"])],
        ["gallery of the composed queries", len(cirr["image_splits"])],
        ["queries per kind", ", ".join(f"{k} {n}" for k, n in kinds.most_common())],
    ]
    concepts = Counter(c.split for c in emoji.concepts())
    title = f"Archives ({len(emoji.concepts())} concepts: " + ", ".join(f"{concepts[s]} {s}" for s in SPLITS) + ")"
    return [
        _table(title, ["style", "artist, licence", "npm package", "pictures", "twins", "MB", "backbones"], styles),
        _table(
            "Classes, and pictures per split in the held-out style",
            ["class", "category word in captions", "CLDR subgroups", *SPLITS],
            classes,
        ),
        _table("Retrieval data", ["what", "count"], tasks),
    ]


def model_tables():
    """Markdown tables of sizes, recipes and training curves, from the records that training left beside the
    weights.
    """
    records = [json.loads((MODELS / f"{name}.json").read_text()) for name in BACKBONES]
    shapes = [json.loads((CONFIGS / "backbones" / f"{name}.json").read_text()) for name in BACKBONES]
    rows = [
        ["parameters", *(f"{r['file']['parameters']:,}" for r in records)],
        [
            "of these outside the token table",
            *(f"{r['file']['parameters_without_token_table']:,}" for r in records),
        ],
        [
            "file, MB",
            *(f"{(MODELS / f'{name}.safetensors.xz').stat().st_size / 1e6:.2f}" for name in BACKBONES),
        ],
        ["joint dimension", *(c["embed_dim"] for c in shapes)],
    ]
    for tower, keys in (
        ("vision", ("layers", "width", "patch_size", "image_size")),
        ("text", ("layers", "width")),
    ):
        rows += [[f"{tower} {key.replace('_', ' ')}", *(c[f"{tower}_cfg"][key] for c in shapes)] for key in keys]
    rows += [[key.replace("_", " "), *(r["recipe"][key] for r in records)] for key in records[0]["recipe"]]
    rows.append(["training seconds", *(r["curve"][-1]["seconds"] for r in records)])
    curve = [
        [
            r["name"],
            *(
                point[key]
                for key in ("iteration", "seconds", "loss", "class_accuracy", "name_i2t_r1", "caption_i2t_r1")
            ),
        ]
        for r in records
        for point in r["curve"]
        if "class_accuracy" in point
    ]
    return [
        _table("Models and recipes", ["", *BACKBONES], rows),
        _table(
            "Training curves, evaluated on the held-out style",
            ["model", "iteration", "seconds", "loss", "class accuracy", "names R@1", "captions R@1"],
            curve,
        ),
    ]


class Features:
    """Normalised features of one backbone; pictures are encoded once."""

    def __init__(self, name):
        from dassl_prompts.models import load_clip

        self.clip, self.images = load_clip(name), {}

    def text(self, sentences):
        import torch

        with torch.no_grad():
            feature = torch.cat(
                [
                    self.clip.encode_text(self.clip.tokenize(list(sentences[i : i + 256])))
                    for i in range(0, len(sentences), 256)
                ]
            )
        return torch.nn.functional.normalize(feature, dim=-1)

    def picture(self, paths):
        import numpy as np
        import torch
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        new = [p for p in dict.fromkeys(paths) if p not in self.images]
        for i in range(0, len(new), 256):
            pictures = [read_image(p).resize((64, 64), Image.Resampling.BICUBIC) for p in new[i : i + 256]]
            pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
            with torch.no_grad():
                feature = self.clip.encode_image((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std)
            self.images.update(zip(new[i : i + 256], torch.nn.functional.normalize(feature, dim=-1)))
        return torch.stack([self.images[p] for p in paths])


def accuracy(features, items, names, words=None, template=TEMPLATE):
    """Zero-shot accuracy in percent of Datum items over the classes `names`, with one template.

    `words` are put into the template instead of the names.
    """
    import torch

    items = [d for d in items if d.classname in set(names)]
    text = features.text([template.format(n) for n in words or names])
    right = (features.picture([d.impath for d in items]) @ text.T).argmax(1) == torch.tensor(
        [names.index(d.classname) for d in items]
    )
    return 100 * right.float().mean().item()


def recalls(similarity, ks=(1, 5, 10)):
    """Recall@k in percent where row i's right answer is column i."""
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    return [100 * (rank < k).float().mean().item() for k in ks]


def composed(features, cirr, use):
    """R@1, R@10, R@50 and subset R@1 of the sum of the features in `use` (image, text), reference removed."""
    import torch

    names, paths = list(cirr["image_splits"]), list(cirr["image_splits"].values())
    row, gallery = {n: i for i, n in enumerate(names)}, features.picture(paths)
    reference = torch.tensor([row[q["reference"]] for q in cirr["captions"]])
    target = torch.tensor([row[q["target_hard"]] for q in cirr["captions"]])
    query = torch.zeros(len(reference), gallery.shape[1])
    if "image" in use:
        query += gallery[reference]
    if "text" in use:
        query += features.text([q["caption"] for q in cirr["captions"]])
    similarity = query @ gallery.T
    similarity[torch.arange(len(query)), reference] = -torch.inf
    own = similarity.gather(1, target[:, None])
    found = [100 * ((similarity > own).sum(1) < k).float().mean().item() for k in (1, 10, 50)]
    members = torch.tensor([[row[m] for m in q["img_set"]["members"]] for q in cirr["captions"]])
    return [*found, 100 * ((similarity.gather(1, members) > own).sum(1) < 1).float().mean().item()]


def model_rows(name):
    """[(task, value, chance)] of one backbone, zero-shot, on pictures of the held-out style unless the row
    says otherwise.
    """
    features, names = Features(name), emoji.classnames()
    half = -(-len(names) // 2)
    rows = []

    def add(task, value, chance):
        rows.append([task, f"{value:.1f}", f"{chance:.2f}"])

    test = read_splits(emoji.HELD_OUT).test
    add(f"accuracy, {len(names)} classes, test concepts", accuracy(features, test, names), 100 / len(names))
    kind = {name: word for word, name in emoji.CLASS_NAMES.items()}
    add(
        f"accuracy, {len(names)} classes, by the category words of the captions",
        accuracy(features, test, names, [kind[n] for n in names]),
        100 / len(names),
    )
    for part, chosen in (("base", names[:half]), ("new", names[half:])):
        add(f"accuracy, {len(chosen)} {part} classes", accuracy(features, test, chosen), 100 / len(chosen))
    for style in emoji.STYLES:
        if style != emoji.HELD_OUT:
            add(
                f"accuracy, {len(names)} classes, {style} (seen style)",
                accuracy(features, read_splits(style).test, names),
                100 / len(names),
            )
    base = [p for p in emoji.pictures(emoji.HELD_OUT, tones=False)]
    pairs = {f"names of all {len(base)} concepts": ([p.path for p in base], [p.concept.name for p in base])}
    records = emoji_fdrd("test").values()
    pairs[f"{len(records)} test captions"] = (
        [r["file_path"] for r in records],
        [r["positive"] for r in records],
    )
    for title, (paths, sentences) in pairs.items():
        similarity = features.picture(paths) @ features.text(sentences).T
        for direction, s in (("image to text", similarity), ("text to image", similarity.T)):
            for k, value in zip((1, 5, 10), recalls(s)):
                add(f"{title}, {direction} R@{k}", value, 100 * k / len(paths))
    cirr = emoji_cirr()
    size = len(cirr["image_splits"]) - 1
    for use in (("image",), ("text",), ("image", "text")):
        for metric, value, chance in zip(
            ("R@1", "R@10", "R@50", "subset R@1"),
            composed(features, cirr, use),
            (100 / size, 1000 / size, 5000 / size, 20),
        ):
            add(f"composed queries, {' + '.join(use)}, {metric}", value, chance)
    return rows


def print_cards():
    """Print all tables as Markdown."""
    for table in data_tables():
        print(table)
    for table in model_tables():
        print(table)
    columns = [model_rows(name) for name in BACKBONES]
    rows = [[first[0], *(column[i][1] for column in columns), first[2]] for i, first in enumerate(columns[0])]
    print(
        _table(
            "Zero-shot results in percent, pictures of the held-out style",
            ["task", *BACKBONES, "chance"],
            rows,
        )
    )
