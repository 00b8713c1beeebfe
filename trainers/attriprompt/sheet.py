"""``python -m dassl_prompts.trainers.attriprompt.sheet RUN_DIR --class NAME --out sheet.png``: which images retrieve the same prompt.

One row per prompt of a trained AttriPrompt pool, most used first; one picture per image of the class that retrieved it, with
the patches of the retrieving cluster in full colour and the others faded. A row shows what the prompt stands for: its
"visual attribute".
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dassl_prompts.engine.ending import tell

CELL, MARGIN, LABEL = 96, 6, 120


class Sighting(NamedTuple):
    """An image that retrieved a prompt.

    Attributes:
        picture: ``[3, H, W]`` in 0 .. 1.
        mask: ``[g, g]`` bool, patches of the clusters that retrieved the prompt.
    """

    picture: Tensor
    mask: Tensor


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.trainers.attriprompt.sheet", description=__doc__.split("\n")[0]
    )
    p.add_argument("run", type=Path, help="folder of a training run of AttriPrompt")
    p.add_argument(
        "--class", dest="classes", nargs="+", required=True, metavar="NAME", help="one or several class names"
    )
    p.add_argument("--out", type=Path, required=True, help="picture to write, e.g. sheet.png")
    p.add_argument("--layer", type=int, default=0, help="text layer, from 1; default the last one with prompts")
    p.add_argument("--split", choices=("train", "test"), default="test", help="which images (default test)")
    p.add_argument("--images", type=int, default=40, help="look at this many images per class at most (default 40)")
    p.add_argument("--prompts", type=int, default=8, help="rows: the most used prompts (default 8)")
    p.add_argument("--columns", type=int, default=8, help="pictures per row (default 8)")
    p.add_argument("--epoch", type=int, default=None, help="checkpoint; default the newest")
    return p


def load_attriprompt(run: Path, epoch: int | None):
    """A trained run (see :func:`dassl_prompts.predict.run.load_run`) of AttriPrompt with retrieval.

    Raises:
        FileNotFoundError: no results.json or no checkpoint.
        ValueError: the run is of another method, or without retrieval.
    """
    from dassl_prompts.predict.run import load_run, read_results

    name = read_results(run)["trainer"]
    if name != "AttriPrompt":
        raise ValueError(f"{run} is a run of {name}, not of AttriPrompt")
    trained = load_run(run, epoch=epoch)
    if trained.model.static:
        raise ValueError(f"{run} was trained with RETRIEVAL.MODE static: there is no retrieval to look at")
    return trained


def choose_images(dataset, split: str, classes: list[str], limit: int) -> list:
    """Up to ``limit`` items of every class.

    Raises:
        ValueError: an unknown class; lists the known ones.
    """
    items = dataset.train_x if split == "train" else dataset.test
    known = sorted({item.classname for item in items})
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ValueError(f"no class {unknown[0]!r} among the {split} images; there are: {', '.join(known)}")
    return [item for name in classes for item in [i for i in items if i.classname == name][:limit]]


@torch.no_grad()
def sightings(model, images: Tensor, pictures: Tensor, layer: int) -> dict[int, list[Sighting]]:
    """Prompt -> the images that retrieved it in text layer ``layer`` (from 0), prompts of more images first.

    Args:
        images: ``[N, 3, H, W]`` as the model takes them. pictures: the same, in 0 .. 1.
    """
    attributes = model.attributes
    device = model.clip.logit_scale.device
    found: dict[int, list[Sighting]] = {}
    per_cluster = model.options.RETRIEVAL.MODE == "per_cluster" and attributes.method == "kmeans"
    for image, picture in zip(images, pictures):
        feature, outputs = attributes.outputs(image[None].to(device), model.visual_prompts())
        index = model.retrieve(attributes.view(feature, outputs)).index[0, layer]
        labels = attributes.labels(outputs[attributes.order[layer]])[0, -model.clip.vision.n_patches :]
        grid = labels.view(round(len(labels) ** 0.5), -1).cpu()
        for prompt in index.unique().tolist():
            slots = (index == prompt).nonzero().flatten().cpu()
            mask = (
                torch.isin(grid, slots // model.options.RETRIEVAL.TOP_K)
                if per_cluster
                else torch.ones_like(grid).bool()
            )
            found.setdefault(prompt, []).append(Sighting(picture, mask))
    return dict(sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0])))


def draw(found: dict[int, list[Sighting]], title: str, rows: int, columns: int):
    """The contact sheet as a PIL image."""
    from PIL import Image, ImageDraw, ImageFont

    found = dict(list(found.items())[:rows])
    columns = min(columns, max(len(images) for images in found.values()))
    step = CELL + MARGIN
    sheet = Image.new("RGB", (LABEL + columns * step + MARGIN, 30 + len(found) * step + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    pen.text((MARGIN, 8), title, fill="black", font=font)
    for row, (prompt, images) in enumerate(found.items()):
        top = 30 + row * step
        pen.text(
            (MARGIN, top + 30),
            f"prompt {prompt}\n{len(images)} image{'s' * (len(images) > 1)}",
            fill="black",
            font=font,
        )
        for column, sighting in enumerate(images[:columns]):
            sheet.paste(cell(sighting), (LABEL + column * step, top))
    return sheet


def cell(sighting: Sighting):
    """One picture, faded outside the mask."""
    from PIL import Image

    picture = sighting.picture.clamp(0, 1)
    size = picture.shape[1:]
    mask = torch.nn.functional.interpolate(sighting.mask[None, None].float(), size=size)[0]
    faded = 0.8 + 0.2 * picture
    array = ((mask * picture + (1 - mask) * faded) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array).resize((CELL, CELL), Image.Resampling.LANCZOS)


def run(args) -> None:
    """Draw and save the sheet."""
    from dassl_prompts.engine import build_dataset, read_image
    from dassl_prompts.engine.files import atomic_path

    trained = load_attriprompt(args.run, args.epoch)
    cfg, model = trained.cfg, trained.model
    layer = args.layer or model.depth
    if not 1 <= layer <= model.depth:
        raise ValueError(f"--layer {layer}: this run has prompts in the text layers 1 to {model.depth}")
    items = choose_images(build_dataset(cfg), args.split, args.classes, args.images)
    orientation = cfg.INPUT.ORIENTATION
    images = torch.stack([trained.transform(read_image(item.impath, orientation)) for item in items])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    pictures = images * std + mean if "normalize" in cfg.INPUT.TRANSFORMS else images
    found = sightings(model, images, pictures, layer - 1)
    title = f"{', '.join(args.classes)}: {len(items)} {args.split} images, text layer {layer}, {len(found)} prompts retrieved"
    with atomic_path(args.out) as temporary:
        draw(found, title, args.prompts, args.columns).save(temporary, format="PNG")
    print(f"{title}\nwritten to {args.out}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        run(args)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
