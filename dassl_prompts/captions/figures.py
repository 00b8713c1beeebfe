"""Pictures of captioned retrieval from a finished run: token weights, and what was found both ways.

``python -m dassl_prompts.captions.figures weights --run RUN --out weights.png`` draws test images
beside their captions, every token on a ground as dark as its weight (drawn after the fact: the test itself
never weights a caption by its own image). ``... sheet --run RUN --out sheet.png`` draws queries of both
directions with their first five answers, the right one marked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from dassl_prompts.captions.bpe import token_texts
from dassl_prompts.engine.ending import tell
from dassl_prompts.engine.files import atomic_path
from dassl_prompts.ranking.exact import topk
from dassl_prompts.ranking.sheet import GAP, PLAIN, RIGHT, TILE, WRONG, Row, contact_sheet, paste

WIDTH, LINE = 900, 22


def load_run(run: str):
    """The trainer of a finished retrieval run with its learned tensors, ready to encode; writes nothing into
    the run's folder.

    Raises:
        FileNotFoundError, ValueError: not a finished retrieval run.
    """
    from dassl_prompts import extend_cfg
    from dassl_prompts.captions.trainer import RetrievalTrainer
    from dassl_prompts.engine import TRAINER_REGISTRY, get_cfg_default, set_random_seed
    from dassl_prompts.engine.config import assign_flat

    results = RetrievalTrainer.read_run(run)
    trainer = results.get("trainer")
    known = TRAINER_REGISTRY.registered_names()
    if (
        not results.get("finished")
        or trainer not in known
        or not issubclass(TRAINER_REGISTRY.get(trainer), RetrievalTrainer)
    ):
        raise ValueError(
            f"{run} is not a finished run of an image-text retrieval method (its results.json says {trainer})"
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    assign_flat(cfg, {**results["config"], "VERBOSE": "False"})
    cfg.freeze()
    set_random_seed(cfg.SEED)
    built = TRAINER_REGISTRY.get(trainer)(cfg)
    if any(p.requires_grad for p in built.model.parameters()):
        built.load_model(run)
    built.set_model_mode("eval")
    return built


def choose(count: int, n: int, seed: int) -> list[int]:
    """``n`` of ``count`` items, in order."""
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: min(n, count)].tolist())


# -- token weights -------------------------------------------------------------------------------------------


def draw_weights(trainer, path: str | Path, n: int = 6, seed: int = 0) -> None:
    """Test images beside their captions with pair weights.

    Raises:
        ValueError: the run is not DCAR's.
    """
    if not hasattr(trainer, "reweighter"):
        raise ValueError(f"{type(trainer).__name__} has no token weights: give a run of DCAR")
    items = trainer.dm.dataset.test
    index = torch.tensor(choose(len(items), n, seed))
    with torch.no_grad():
        captions, images, prompts = trainer.compared("test")
        captions = captions.select(index)
        weights = trainer.reweighter.pair_weights(captions, images[index], prompts)
    ids, content = trainer.reweighter.ids(captions), trainer.reweighter.content(captions)
    sheet = Image.new("RGB", (WIDTH, GAP + len(index) * (TILE + GAP)), "white")
    for row, i in enumerate(index.tolist()):
        top = GAP + row * (TILE + GAP)
        paste(sheet, items[i].impath, GAP, top, PLAIN)
        keep = content[row]
        draw_tokens(
            ImageDraw.Draw(sheet),
            2 * GAP + TILE,
            top + 4,
            token_texts(ids[row][keep].tolist()),
            weights[row][keep].tolist(),
        )
    save(sheet, path)


def draw_tokens(draw: ImageDraw.ImageDraw, left: int, top: int, texts: list[str], weights: list[float]) -> None:
    """Words on grounds between white (the smallest weight) and blue (the largest), with the weight below."""
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=10)
    low, high = min(weights), max(weights)
    x = left
    for text, weight in zip(texts, weights):
        width = draw.textlength(text.strip() or "_", font=font)
        if x + width > WIDTH - GAP:
            x, top = left, top + 2 * LINE
        share = (weight - low) / (high - low) if high > low else 0.0
        draw.rectangle(
            (x - 1, top, x + width + 1, top + LINE - 2),
            fill=(int(255 - 155 * share), int(255 - 95 * share), 255),
        )
        draw.text((x, top + 1), text.strip(), fill="black", font=font)
        draw.text((x, top + LINE - 1), f"{weight:.1f}", fill=(90, 90, 90), font=small)
        x += max(width, draw.textlength(f"{weight:.1f}", font=small)) + (5 if text.endswith(" ") else 1)


# -- what was found ------------------------------------------------------------------------------------------


def draw_sheet(trainer, path: str | Path, n: int = 5, seed: int = 0) -> list[Path]:
    """Two sheets beside each other in name: ``<path>`` text to image, ``<stem>_captions`` image to text."""
    items = trainer.dm.dataset.test
    with torch.no_grad():
        images, texts = trainer.image_features("test"), trainer.text_features("test")
    first = trainer.captions["test"].first  # an image that has several captions is found once
    index = torch.tensor(choose(len(items), n, seed), device=images.device)
    path = Path(path)
    _, found = topk(texts[index], images[first], min(5, len(first)))
    found = first[found]
    contact_sheet(
        [
            Row(
                "", items[i].caption, [items[j].impath for j in row], [items[j].classname for j in row], items[i].impath
            )
            for i, row in zip(index.tolist(), found.tolist())
        ],
        path,
    )
    second = path.with_name(f"{path.stem}_captions{path.suffix}")
    _, found = topk(images[index], texts, min(5, len(items)))
    rows = [(i, row) for i, row in zip(index.tolist(), found.tolist())]
    sheet = Image.new("RGB", (WIDTH, GAP + len(rows) * (TILE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for number, (i, answers) in enumerate(rows):
        top = GAP + number * (TILE + GAP)
        paste(sheet, items[i].impath, GAP, top, PLAIN)
        for place, j in enumerate(answers):
            right = items[j].caption == items[i].caption or items[j].impath == items[i].impath
            text = fit(draw, f"{place + 1}. {items[j].caption}", font, WIDTH - TILE - 4 * GAP)
            draw.text(
                (2 * GAP + TILE, top + 2 + 25 * place),
                text,
                fill=RIGHT if right else tuple(v // 2 for v in WRONG),
                font=font,
            )
    save(sheet, second)
    return [path, second]


def fit(draw: ImageDraw.ImageDraw, text: str, font, width: int) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    while draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


def save(sheet: Image.Image, path: str | Path) -> None:
    """Raises ValueError when the suffix is no image format."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"cannot write a picture as {path}: end its name with .png or .jpg")
    with atomic_path(path) as temporary:
        sheet.save(temporary, format=Image.registered_extensions()[suffix])


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m dassl_prompts.captions.figures", description=__doc__.split("\n\n")[0])
    p.add_argument("what", choices=("weights", "sheet"))
    p.add_argument(
        "--run",
        required=True,
        help="folder of a finished run, e.g. output/retrieval/fdrd_emoji/shots_16/DCAR/emoji_tiny/seed1",
    )
    p.add_argument("--out", required=True, help="picture to write (.png or .jpg)")
    p.add_argument("-n", type=int, default=6, help="number of queries (default 6)")
    p.add_argument("--seed", type=int, default=0, help="which ones")
    args = p.parse_args(argv)
    try:
        trainer = load_run(args.run)
        written = [args.out]
        if args.what == "weights":
            draw_weights(trainer, args.out, args.n, args.seed)
        else:
            written = draw_sheet(trainer, args.out, args.n, args.seed)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    print("wrote " + ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
