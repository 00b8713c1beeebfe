"""Composed retrieval: search of a large index, training step with and without cached image features, metrics, fusion.

    python -m benchmarks.composed [search step evaluate fusion] [--device cuda --prec amp] [--write]

--write renews the section of the device in docs/benchmarks/composed.md. L/14-shaped random weights stand for the real ones: the
times do not depend on their values. An index is searched on the CPU whatever the device, as `composed.search` does.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate

from benchmarks.measure import Clock, add_flags, autocast, peak_mb
from benchmarks.pages import DOCS, conditions, device_name, write_section

DOC = DOCS / "composed.md"
L14 = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
}
CAPTION = "the same dress in dark red with longer sleeves"


def search(args) -> list[dict]:
    """Exact top-50 for 100 queries over a memory-mapped fp16 index of random unit vectors."""
    from dassl_prompts.composed.index import CHUNK, chunked_topk

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n, width in ((100_000, 512), (1_000_000, 512)):
            array = np.lib.format.open_memmap(f"{folder}/{n}.npy", mode="w+", dtype=np.float16, shape=(n, width))
            for start in range(0, n, CHUNK):
                block = torch.randn(min(CHUNK, n - start), width)
                array[start : start + CHUNK] = F.normalize(block, dim=-1).numpy().astype(np.float16)
            array.flush()
            del array
            gallery, queries = (
                np.load(f"{folder}/{n}.npy", mmap_mode="r"),
                F.normalize(torch.randn(100, width), dim=-1),
            )
            before = peak_mb()
            seconds, cpu = Clock("cpu", 1).both(lambda: chunked_topk(queries, gallery, 50))
            rows.append(
                {
                    "index": f"{n:,} x {width}",
                    "100 queries, top 50 (s)": round(seconds, 2),
                    "processor (s)": round(cpu, 2),
                    "growth of peak memory (MB)": round(peak_mb() - before),
                    "index on disk (MB)": round(n * width * 2 / 1e6),
                }
            )
    return rows


def step(args, batch: int = 8) -> list[dict]:
    """Forward, backward and AdamW step of PVLF at L/14 shape, image tokens from the cache or from the tower."""
    from dassl_prompts.models import build_clip
    from dassl_prompts.models.clip_tokens import ClipTokens
    from dassl_prompts.trainers.pvlf.fusion import (
        AdaptiveAggregation,
        ComposedQueryEncoder,
        FusionTransformer,
        focal_info_nce,
    )

    encoder = ClipTokens(build_clip(L14, seed=0)).to(args.device)
    head = ComposedQueryEncoder(FusionTransformer(encoder.width), AdaptiveAggregation(encoder.width)).to(args.device)
    images, captions = torch.randn(2, batch, 3, 224, 224, device=args.device), [CAPTION] * batch
    with torch.no_grad():
        kept = encoder.image_tokens(images[0]).half(), encoder.image_features(images[1])
    rows = []
    for tune in ("none", "text"):
        trained = [*head.parameters(), *encoder.tune(tune)]
        optim = torch.optim.AdamW(trained, lr=1e-6)

        def one(cached: bool) -> None:
            with torch.no_grad(), autocast(args.device, args.prec):
                reference, target = (
                    (kept[0].float(), kept[1])
                    if cached
                    else (encoder.image_tokens(images[0]), encoder.image_features(images[1]))
                )
            with autocast(args.device, args.prec):
                with torch.set_grad_enabled(tune != "none"):
                    text = encoder.text_tokens(captions)
                query = head(text.tokens, text.row, text.pad, reference)
            optim.zero_grad()
            focal_info_nce(query.float(), F.normalize(target.float(), dim=-1)).backward()
            optim.step()

        one(True)
        clock = Clock(args.device, 3)
        (live, live_cpu), (cached, cached_cpu) = clock.both(lambda: one(False)), clock.both(lambda: one(True))
        rows.append(
            {
                "tuned towers": tune,
                "batch": batch,
                "live image tower (s)": round(live, 3),
                "cached (s)": round(cached, 3),
                "times faster": round(live / cached, 1),
                "in processor time": round(live_cpu / cached_cpu, 1),
            }
        )
    return rows


def evaluate(args) -> list[dict]:
    """All metrics for features of CIRR val's size."""
    from dassl_prompts.composed.metrics import evaluate as metrics
    from dassl_prompts.composed.triplets import Query, RetrievalTask

    names = [f"dev-{i}" for i in range(2297)]
    queries = [
        Query(
            str(i),
            names[i % 2165],
            ("x",),
            names[(i % 2165) + 1],
            tuple(names[(i % 2165) + 1 : (i % 2165) + 6]),
        )
        for i in range(4181)
    ]
    task = RetrievalTask("CIRR val", "cirr", {name: name for name in names}, queries, True)
    features = [F.normalize(torch.randn(n, 768, device=args.device), dim=-1) for n in (4181, 2297)]
    return [
        {
            "queries": 4181,
            "gallery": 2297,
            "width": 768,
            "all CIRR metrics (s)": round(Clock(args.device, 3)(lambda: metrics(task, *features)), 2),
        }
    ]


def fusion(args, batch: int = 16) -> list[dict]:
    """The fusion module at L/14 shape against torch's encoder on all rows and 77 text tokens, as TransAgg's code runs it."""
    from dassl_prompts.trainers.pvlf.fusion import FusionTransformer

    ours = FusionTransformer(768, prompt_mode="none", separator=True, dropout=0.0).to(args.device)
    layer = torch.nn.TransformerEncoderLayer(
        768, 8, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, device=args.device
    )
    official = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    text, image = torch.randn(batch, 77, 768, device=args.device), torch.randn(batch, 257, 768, device=args.device)
    row = torch.full((batch,), 11, device=args.device)
    pad = (torch.arange(77, device=args.device) > 11).expand(batch, -1)
    mask = torch.cat([pad, pad.new_zeros(batch, 258)], 1).float()

    def plain() -> None:
        with autocast(args.device, args.prec):
            x = torch.cat([text, ours.sep_token.expand(batch, -1, -1), image], 1)
            x = official(x, src_key_padding_mask=mask)
        (x[:, 11].sum() + x[:, 78].sum()).backward()

    def fused(columns: int) -> None:
        with autocast(args.device, args.prec):
            rows = ours(text[:, :columns], row, pad[:, :columns], image)
        sum(x.sum() for x in rows).backward()

    cases = {
        "torch encoder, all rows, 77 text tokens": plain,
        "ours, last layer computes two rows": lambda: fused(77),
        "ours, also hidden padding left out (12 tokens)": lambda: fused(12),
    }
    clock = Clock(args.device, 3)
    measured = {title: clock.both(work) for title, work in cases.items()}
    first, first_cpu = next(iter(measured.values()))
    return [
        {
            "forward and backward": title,
            "seconds": round(wall, 3),
            "times faster": round(first / wall, 1),
            "in processor time": round(first_cpu / cpu, 1),
        }
        for title, (wall, cpu) in measured.items()
    ]


PARTS = {"search": search, "step": step, "evaluate": evaluate, "fusion": fusion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"any of {', '.join(PARTS)} (default all)")
    add_flags(parser, DOC.name)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if args.write and set(args.parts) != set(PARTS):
        parser.error("--write renews all tables of the device: leave out the parts")
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    sections = [
        f"Written by `python -m benchmarks.composed {' '.join(args.parts)} --device {args.device} --prec {args.prec} --write`. "
        "Random weights and features."
    ]
    for name in args.parts:
        table = tabulate(PARTS[name](args), headers="keys", tablefmt="github", disable_numparse=True)
        sections.append(f"### {name}\n\n{' '.join(PARTS[name].__doc__.split())}\n\n{table}")
        print(sections[-1], flush=True)
    sections.insert(1, conditions(args.device, args.threads) + ".")
    if args.write:
        write_section(DOC, "Composed retrieval", device_name(args.device, args.prec), "\n\n".join(sections))


if __name__ == "__main__":
    main()
