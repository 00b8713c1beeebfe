"""The composed-retrieval driver: its runs in this process, on generated trees with a tiny BLIP; one script as
a user calls it."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from yacs.config import CfgNode

from dassl_prompts.run import composed
from dassl_prompts.run.composed import ablation
from dassl_prompts.run.composed_tables import over_seeds, pvlf_minus_transagg, table
from dassl_prompts.train import parser, run
from tests.datasets import cir_trees
from tests.models.test_blip import write_tiny_blip
from tests.run import fake

ROOT = Path(__file__).resolve().parents[2]
YAML = """
INPUT: {{SIZE: "(32, 32)"}}
OPTIM: {{NAME: adamw, LR: 1e-3, MAX_EPOCH: 1}}
DATALOADER: {{NUM_WORKERS: 0, TRAIN_X: {{BATCH_SIZE: 4}}}}
MODEL: {{BACKBONE: {{NAME: {blip}}}}}
TRAINER:
  PVLF: {{BACKBONE: {{TUNE: none}}, FUSION: {{FF_DIM: 16, HEADS: 2}}, PROMPT: {{LENGTH: 3}}}}
  TRANSAGG: {{BACKBONE: {{TUNE: none}}, FUSION: {{FF_DIM: 16, HEADS: 2}}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("composed")
    for tree in (cir_trees.cirr, cir_trees.fashioniq, cir_trees.laion_cir, cir_trees.circo):
        tree(root / "data")
    blip = root / "blip"
    blip.mkdir()
    write_tiny_blip(blip)
    (root / "tiny.yaml").write_text(YAML.format(blip=blip))
    return root


@pytest.fixture
def in_process(monkeypatch):
    """Steps run here instead of in processes of their own; returns what ran."""
    ran = []

    def execute(steps, force=False):
        for step in steps:
            if step.results() is None:
                ran.append(step.title)
                run(parser().parse_args(step.command()[3:]))

    monkeypatch.setattr(composed, "execute", execute)
    return ran


def drive(place, command, *args, dataset="laion_combined"):
    return composed.main(
        [
            command,
            "--dataset",
            dataset,
            "--cfg",
            str(place / "tiny.yaml"),
            "--root",
            str(place / "data"),
            "--output",
            str(place / "out"),
            *args,
        ]
    )


def test_train_evaluate_submit(place, in_process, capsys):
    assert drive(place, "train") == 0
    out = capsys.readouterr().out
    for name in ("image ", "text ", "image+text ", "image+text, normalised", "PVLF, seed 1"):
        assert f"| {name}" in out
    assert "TransAgg, seed 1, is not in the table" in out and "scripts/transagg has the same commands" in out
    assert drive(place, "eval", "--on", "fashioniq") == 0
    assert "dress R@10" in capsys.readouterr().out
    other = ("--", "CIR.FIQ_CAPTION", "both_avg", "CIR.FIQ_GALLERY", "val_split")
    assert drive(place, "eval", "--on", "fashioniq", *other) == 0
    evaluations = place / "out/composed/laion_combined/PVLF/tiny/seed1"
    assert {p.parent.name for p in evaluations.glob("eval_*/results.json")} == {
        "eval_fashioniq",
        "eval_fashioniq_fiq-gallery-val_split_fiq-caption-both_avg",
    }
    capsys.readouterr()
    assert drive(place, "submit") == 0
    files = [
        Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".json") and line.startswith("/")
    ]
    assert {f.name for f in files} == {"cirr_PVLF_recall.json", "cirr_PVLF_recall_subset.json"} and all(
        f.is_file() for f in files
    )
    before = len(in_process)
    drive(place, "train")
    assert len(in_process) == before


def test_circo_is_evaluated_and_submitted_like_the_others(place, in_process, capsys):
    assert drive(place, "train") == 0 and drive(place, "eval", "--on", "circo") == 0
    out = capsys.readouterr().out
    (heads,) = [line for line in out.splitlines() if line.startswith("|") and "mAP@5" in line]
    assert [h.strip() for h in heads.split("|")[2:-1]] == [
        "mAP@5", "mAP@10", "mAP@25", "mAP@50", "R@5", "R@10", "R@25", "R@50",
    ]  # fmt: skip
    assert "CIRCO val, mAP@10 by semantic aspect" in out and "| PVLF, seed 1" in out
    (aspects,) = [line for line in out.splitlines() if line.startswith("|") and "cardinality" in line]
    assert [h.strip() for h in aspects.split("|")[2:-1]] == ["addition", "cardinality", "negation", "viewpoint"]
    assert drive(place, "submit", "--on", "circo") == 0
    path = place / "out/composed/laion_combined/PVLF/tiny/seed1/submit_circo/circo_PVLF.json"
    assert str(path) in capsys.readouterr().out and list(json.loads(path.read_text())) == ["0", "1", "2", "3"]


def test_the_other_method_stands_in_the_table_where_its_run_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(composed, "execute", lambda steps, force: None)
    monkeypatch.setattr(composed, "metric_rows", lambda step, name="": [{"query": name or "baseline", "label": "last"}])
    args = argparse.Namespace(trainer="PVLF", seed=[1, 2], dataset="emoji", force=False)

    def step_of(trainer, seed):
        return fake.step(tmp_path, f"{trainer}{seed}")

    folder = step_of("TransAgg", 1).output
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"finished": True, "config": {}}))
    rows = composed.run_and_read(step_of("baselines", 0), step_of, args)
    assert [row["query"] for row in rows] == ["baseline", "TransAgg, seed 1", "PVLF, seed 1", "PVLF, seed 2"]
    assert "TransAgg, seed 2, is not in the table" in capsys.readouterr().out

    monkeypatch.setattr(fake.FakeStep, "config", lambda self: CfgNode({"SEED": 1}))
    (folder / "results.json").write_text(json.dumps({"finished": True, "config": {"SEED": 7}}))
    rows = composed.run_and_read(step_of("baselines", 0), step_of, args)
    assert "TransAgg, seed 1" not in {row["query"] for row in rows}
    assert "TransAgg, seed 1, is not in the table" in capsys.readouterr().out


def test_compare_and_ablate(place, in_process, capsys):
    assert drive(place, "compare", "--seed", "1", "2") == 0
    out = capsys.readouterr().out
    assert "TransAgg (none tuned)" in out and "PVLF (none tuned)" in out and "±" in out
    folder = place / "out" / "composed" / "laion_combined" / "PVLF" / "tiny_none-tuned" / "seed2"
    assert json.loads((folder / "results.json").read_text())["seed"] == 2
    assert drive(place, "ablate", "--what", "tuning", "--", "CIR.LAION_SET", "llm") == 0
    assert "PVLF both-tuned" in capsys.readouterr().out


def test_options_go_to_the_method_that_they_name():
    plan = composed.Plan("emoji", "blip", "data", Path("out"), opts=("TRAINER.PVLF.PREC", "fp32", "OPTIM.LR", "1e-3"))
    pvlf, transagg = plan.train("PVLF", 1).args, plan.train("TransAgg", 1).args
    assert "TRAINER.PVLF.PREC" in pvlf and "TRAINER.PVLF.PREC" not in transagg and "OPTIM.LR" in transagg
    assert any(arg.endswith("emoji_tiny.yaml") for arg in pvlf)


def test_a_tag_keeps_baselines_with_other_options_apart():
    """FIQ_CAPTION and the like change the baselines too; towers tuned by ``compare`` do not."""
    plain, tagged = (composed.Plan("fashioniq", "vit_b32_repro", "data", Path("out"), tag) for tag in ("", "rev"))
    assert plain.baselines().output.name == "vit_b32" and tagged.baselines().output.name == "vit_b32_rev"


def test_evaluations_under_other_protocols_have_their_own_folders():
    """One trained run is asked under several of FashionIQ's protocols; the run itself stays where it is."""
    both = ("OPTIM.LR", "1e-3", "CIR.FIQ_CAPTION", "both_avg", "CIR.FIQ_CATEGORIES", "['dress', 'shirt']")
    plain, other, reordered = (
        composed.Plan("laion_llm", "vit_b32", "data", Path("out"), opts=opts)
        for opts in ((), both, both[2:] + both[:2])
    )
    evaluate = lambda plan: plan.evaluate("PVLF", 1, "fashioniq").output.name
    assert evaluate(plain) == "eval_fashioniq"
    assert evaluate(other) == "eval_fashioniq_fiq-categories-dress-shirt_fiq-caption-both_avg" == evaluate(reordered)
    assert other.folder("PVLF", 1) == plain.folder("PVLF", 1)
    assert other.baselines("fashioniq").output.name == "vit_b32_fiq-categories-dress-shirt_fiq-caption-both_avg"
    inversion = ("TRAINER.ZEROSHOT_CIR.PIC2WORD", "/some/where/pic2word.pt", "CIR.TARGETPAD_RATIO", "0")
    plan = composed.Plan("fashioniq", "vit_l14", "data", Path("out"), opts=inversion)
    assert plan.baselines().output.name == "vit_l14_pic2word-pic2word.pt_targetpad-ratio-0"
    assert evaluate(plan) == "eval_fashioniq_targetpad-ratio-0"


def test_ablations_cover_the_tables_of_the_paper():
    assert [keys[0][1] for keys in ablation("length").values()] == ["5", "10", "15", "20", "25", "30", "35"]
    depth = {tuple(int(v) for _, v in keys) for keys in ablation("depth").values()}
    assert depth == {(n, d) for n in (1, 2, 3) for d in range(n + 1)}


def test_baselines_alone_go_into_the_marked_part_of_a_page(tmp_path, monkeypatch, capsys):
    def execute(steps, force=False):
        (step,) = steps
        step.output.mkdir(parents=True)
        values = {"finished": True, "image Toy val": {"mean": 1.0, "R@10": 12.0}}
        (step.output / "results.json").write_text(json.dumps(values))

    monkeypatch.setattr(composed, "execute", execute)
    page = tmp_path / "page.md"
    page.write_text("Mine.\n<!-- begin: run.composed baselines emoji -->\n<!-- end -->\nMore.\n")
    argv = ["baselines", "--dataset", "emoji", "--output", str(tmp_path / "out"), "--write", str(page)]
    assert composed.main(argv) == 0 and "| image |" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("Mine.\n") and text.endswith("\nMore.\n")
    assert f"python -m dassl_prompts.run.composed {' '.join(argv)}" in text and "| image |" in text
    page.write_text("<!-- begin: something else -->\n<!-- end -->\n")
    shutil.rmtree(tmp_path / "out")
    assert composed.main(argv) == 2 and "add the markers" in capsys.readouterr().err


def test_mean_and_deviation():
    rows = [{"query": "a", "set": "s", "label": "last", "R@10": value} for value in (1.0, 2.0, 3.0)]
    rows.append({"query": "b", "set": "s", "label": "", "R@10": 5.0})
    merged = over_seeds(rows)
    assert [row["R@10"] for row in merged] == ["2.00 ± 1.00", "5.00"]
    assert "| a  | 2.00 ± 1.00 |" in table(merged)


def test_pvlf_minus_transagg_is_paired_by_seed_and_tuning_mode():
    rows = [
        {"query": f"{name} ({tune} tuned)", "set": "s", "label": "last", "seed": seed, "R@10": value}
        for name, tune, seed, value in (
            ("TransAgg", "none", 1, 10.0),
            ("TransAgg", "none", 2, 20.0),
            ("PVLF", "none", 2, 22.0),
            ("PVLF", "none", 1, 11.0),
            ("PVLF", "both", 1, 99.0),
        )
    ]
    (row,) = pvlf_minus_transagg(rows)
    assert row["query"] == "PVLF (none tuned) minus TransAgg (none tuned), seed by seed"
    assert row["R@10"] == "+1.50 ± 0.71"


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("eval",), "needs --on cirr, fashioniq, circo or emoji"),
        (("submit", "--on", "fashioniq"), "fashioniq has no test server"),
        (("train", "--", "OPTIM.LR"), "has no value"),
        (("train", "--", "TRAINER.PVFL.PREC", "fp32"), "TRAINER.PVFL.PREC concerns none of the methods"),
        (("train", "--", "TRAINER.TRANSAGG.PREC", "fp32"), "PVLF (TRAINER.PVLF), ZeroshotCIR (TRAINER.ZEROSHOT_CIR)"),
        (("submit", "--", "TRAINER.ZEROSHOT_CIR.SEARLE", "x"), "concerns none"),
        (("ablate", "--", "TRAINER.PVLF.PROMPT.LENGTH", "3"), "TRAINER.PVLF.PROMPT.LENGTH is what this command varies"),
        (("compare", "--", "TRAINER.TRANSAGG.BACKBONE.TUNE", "both"), "is what this command varies"),
        (("ablate", "--trainer", "TransAgg", "--what", "length"), "TransAgg has no prompts"),
        (("ablate", "--trainer", "TransAgg", "--what", "depth"), "is for --trainer PVLF"),
    ],
)
def test_wrong_input(place, in_process, args, match, capsys):
    assert drive(place, *args) == 2
    assert match in capsys.readouterr().err and not in_process


def test_training_on_a_benchmark_without_triplets_is_refused(place, in_process, capsys):
    assert drive(place, "train", dataset="circo") == 2
    assert "circo has no training triplets" in capsys.readouterr().err and not in_process


def test_options_that_some_method_has_are_taken():
    given = ("TRAINER.TRANSAGG.PREC", "fp32", "TRAINER.PVLF.PREC", "fp32", "OPTIM.LR", "1e-3")
    for words in (["compare"], ["ablate", "--what", "tuning"]):
        composed.check(composed.parser().parse_args([*words, "--dataset", "emoji"]), given)


def test_script(place):
    """The shell script, with processes of its own."""
    env = {**os.environ, "DATA": str(place / "data"), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/transagg/train.sh"), "laion_llm", "1", str(place / "tiny.yaml")],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| TransAgg, seed 1" in done.stdout


@pytest.mark.parametrize(
    "script",
    sorted((ROOT / "scripts" / "pvlf").glob("*.sh")) + sorted((ROOT / "scripts" / "transagg").glob("*.sh")),
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_scripts_print_their_usage(script):
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"usage: bash scripts/{script.parent.name}/{script.name}" in done.stderr
