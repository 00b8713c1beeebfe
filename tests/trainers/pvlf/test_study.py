"""The tables of the PVLF paper: which runs they need, and ours above the published rows. Runs are stood in for by their
results."""

import json
import zlib

import pytest

from dassl_prompts.run.composed import Plan, ablation
from dassl_prompts.trainers.pvlf import study

CIRR = ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3")


def number(step, name):
    """A metric of its own for every run."""
    return zlib.crc32(f"{step.output} {name}".encode()) % 9000 / 100


@pytest.fixture
def planned(monkeypatch):
    """Steps write made-up results instead of running; returns them."""
    steps = []

    def execute(given, force=False):
        for step in given:
            steps.append(step)
            words = " ".join(step.args)
            step.output.mkdir(parents=True, exist_ok=True)
            values = {name: number(step, name) for name in ("mean", *CIRR)}
            done = {"finished": True, "seed": int(step.args[step.args.index("--seed") + 1])}
            if "CIR.SPLIT test" in words:
                done["submission"] = [f"{step.output}/cirr_{metric}.json" for metric in ("recall", "recall_subset")]
            elif "ZeroshotCIR" in words:
                asked = ["oti"] if '["oti"]' in words else ("image", "text", "image+text")
                done |= {f"{query} CIRR val": values for query in asked}
            else:
                done["last CIRR val" if "--eval-only" not in words else "CIRR val"] = values
            (step.output / "results.json").write_text(json.dumps(done))

    monkeypatch.setattr(study, "execute", execute)
    return steps


def shown(capsys, tmp_path, *words):
    assert study.main([*words, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    return out, rows


def folders(steps, tmp_path):
    return [str(step.output.relative_to(tmp_path / "composed")) for step in steps]


def test_table_2_evaluates_val_and_writes_files_for_the_server(planned, tmp_path, capsys):
    out, rows = shown(capsys, tmp_path, "2")
    ran = folders(planned, tmp_path)
    assert ran[0] == "cirr/ZeroshotCIR/vit_b32" and len(ran) == len(set(ran)) == 2 + 7 * 3
    assert "cirr/ZeroshotCIR/vit_l14_queries-oti" in ran and "laion_combined/Pic2Word/vit_l14/seed1/submit_cirr" in ran
    for triplets in ("template", "llm", "combined"):
        for trainer, tune in (("TransAgg", "text"), ("PVLF", "both")):
            run = f"laion_{triplets}/{trainer}/blip_{tune}-tuned/seed1"
            assert {run, f"{run}/eval_cirr", f"{run}/submit_cirr"} <= set(ran)
    assert out.count("cirr_recall.json") == out.count("cirr_recall_subset.json") == 7
    at = next(i for i, row in enumerate(rows) if row[0] == "PVLF, Combined")
    step = next(s for s in planned if str(s.output).endswith("laion_combined/PVLF/blip_both-tuned/seed1/eval_cirr"))
    average = (number(step, "R@5") + number(step, "Rs@1")) / 2
    assert rows[at][2:] == ["ours, CIRR val", *(f"{number(step, c):.2f}" for c in CIRR), f"{average:.2f}"]
    assert rows[at + 1][2:5] == ["published, CIRR test1", "40.33", "72.50"] and rows[at + 1][-1] == "72.57"
    assert "not comparable" in out and "Published: PVLF paper (ACML 2024), table 2" in out
    # systems that are not run here keep their row
    assert [row[2] for row in rows if row[0] == "Context-I2W"] == ["published, CIRR test1"]


def test_table_1_has_every_category_and_the_average(planned, tmp_path, capsys):
    _, rows = shown(capsys, tmp_path, "1", "--dataset", "laion_llm")
    assert rows[0][3:] == [
        "R@10", "R@50", "shirt R@10", "shirt R@50", "dress R@10", "dress R@50", "toptee R@10", "toptee R@50", "average",
    ]  # fmt: skip
    assert {row[0] for row in rows if "TransAgg" in row[0] or "PVLF" in row[0]} == {"TransAgg, LLM", "PVLF, LLM"}
    assert {f for f in folders(planned, tmp_path) if f.endswith("eval_fashioniq")} == {
        "laion_llm/Pic2Word/vit_l14/seed1/eval_fashioniq",
        "laion_llm/TransAgg/blip_text-tuned/seed1/eval_fashioniq",
        "laion_llm/PVLF/blip_both-tuned/seed1/eval_fashioniq",
    }


def test_table_3_has_both_backbones_modes_and_benchmarks(planned, tmp_path, capsys):
    out, rows = shown(capsys, tmp_path, "3", "--seed", "1", "2", "--repro")
    runs = {f for f in folders(planned, tmp_path) if f.endswith("seed2")}
    assert runs == {
        f"laion_combined/{trainer}/{recipe}_repro_{tune}-tuned/seed2"
        for trainer in ("TransAgg", "PVLF")
        for recipe in ("blip", "vit_l14")
        for tune in ("none", "text", "both")
    }
    assert all("±" in row[3] for row in rows if row[2].startswith("ours"))
    printed = [row for row in rows if row[0] == "" and row[2] == "published, CIRR test1"]
    assert len(printed) == 12 and printed[0][-1] == "54.66"  # computed; the paper prints 53.66
    assert "published, FashionIQ" in out and "38.43" in out


def test_table_4_and_5_share_the_run_of_the_paper_defaults(planned, tmp_path, capsys):
    shown(capsys, tmp_path, "4")
    lengths = [f for f in folders(planned, tmp_path) if f.endswith("seed1")]
    default = "laion_combined/PVLF/blip_both-tuned/seed1"
    assert default in lengths and len(lengths) == 7
    planned.clear()
    shown(capsys, tmp_path, "5")
    depths = {f for f in folders(planned, tmp_path) if f.endswith("seed1")}
    assert depths == {
        default,
        "laion_combined/TransAgg/blip_both-tuned/seed1",
        "laion_combined/PVLF/blip_layers1_depth1_both-tuned/seed1",
        "laion_combined/PVLF/blip_layers3_depth3_both-tuned/seed1",
    }
    one = next(step for step in planned if "layers1_depth1" in str(step.output))
    words = " ".join(one.args)
    assert "TRAINER.PVLF.FUSION.NUM_LAYERS 1" in words and "TRAINER.PVLF.PROMPT.DEPTH 1" in words


def test_emoji_runs_every_row_once_on_its_own_recipe(planned, tmp_path, capsys):
    _, rows = shown(capsys, tmp_path, "5", "--dataset", "emoji")
    assert set(folders(planned, tmp_path)) == {
        "emoji/TransAgg/emoji_tiny/seed1",
        "emoji/PVLF/emoji_tiny/seed1",
        "emoji/PVLF/emoji_tiny_layers1_depth1/seed1",
        "emoji/PVLF/emoji_tiny_layers3_depth3/seed1",
    }
    # the folders of the ablation, so its runs are read
    tags = {tag for tag in ablation("depth") if tag in ("layers1_depth1", "layers3_depth3")}
    assert {Plan("emoji", "blip", "data", tmp_path, tag).folder("PVLF", 1) for tag in tags} <= {
        s.output for s in planned
    }
    assert sum(row[2] == "ours, EmojiCIR val" for row in rows) == 2 * 4
    planned.clear()
    shown(capsys, tmp_path, "3", "--dataset", "emoji")
    assert len(planned) == 6 and all("-tuned" in str(step.output) for step in planned)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("4", "--", "TRAINER.PVLF.PROMPT.LENGTH", "3"), "is what this command varies"),
        (("4", "--", "OPTIM.LR"), "has no value"),
        (("4", "--repro", "--dataset", "emoji"), "--repro"),
    ],
)
def test_wrong_input(planned, capsys, words, match):
    assert study.main(list(words)) == 2
    assert match in capsys.readouterr().err and not planned


def test_page(planned, tmp_path, capsys):
    shown(capsys, tmp_path, "4", "--dataset", "emoji", "--write", str(tmp_path / "page.md"))
    text = (tmp_path / "page.md").read_text()
    assert "<!-- begin: pvlf.study 4 emoji -->" in text and "python -m dassl_prompts.trainers.pvlf.study 4" in text
