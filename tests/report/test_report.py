"""Finding runs, statistics over seeds, tables, published numbers, notes, plots.

One file: all of it reads the same written runs.
"""

import csv
import io
import json
import math
import os
import statistics

import pytest

from dassl_prompts.engine import epochs
from dassl_prompts.report import plots
from dassl_prompts.report.__main__ import main
from dassl_prompts.report.curves import per_epoch, read_curves
from dassl_prompts.results.groups import base_new, group
from dassl_prompts.results.notes import sections
from dassl_prompts.results.published import canonical, counterpart, published
from dassl_prompts.results.runs import find_runs
from dassl_prompts.results.tables import TABLES
from tests.report.tree import base_new_pair, progress, write_run


def report(root, capsys, *words):
    code = main([str(root), *words])
    out, err = capsys.readouterr()
    return code, out, err


def rows_of(root, protocol, **kwargs):
    """A table as a list of dictionaries."""
    methods = [m for m in group(find_runs(root)[0], **kwargs) if m.protocol == protocol]
    table = TABLES[protocol](methods)
    return [dict(zip(table.columns, row)) for row in table.rows], table


# -- statistics ----------------------------------------------------------------------------------------------


def test_mean_deviation_and_hm_over_seeds(tmp_path):
    base, new = [80.0, 82.5, 90.0], [60.0, 71.0, 50.5]
    for seed, (b, n) in enumerate(zip(base, new), 1):
        base_new_pair(tmp_path, b, n, seed=seed)
    (method,) = group(find_runs(tmp_path)[0])
    scores = base_new(method, "Emoji")
    assert scores.seeds == (1, 2, 3)
    assert scores.base.mean == pytest.approx(sum(base) / 3) and scores.base.std == pytest.approx(statistics.stdev(base))
    mb, mn = sum(base) / 3, sum(new) / 3
    assert scores.hm == pytest.approx(2 * mb * mn / (mb + mn))
    of_hms = statistics.fmean(2 * b * n / (b + n) for b, n in zip(base, new))
    assert abs(scores.hm - of_hms) > 0.1  # the mean of the seeds' HMs would be another number


def test_the_average_is_hm_of_the_mean_base_and_new_of_the_datasets(tmp_path):
    pairs = {"Emoji": (90.0, 30.0), "DescribableTextures": (50.0, 70.0)}
    for dataset, (b, n) in pairs.items():
        base_new_pair(tmp_path, b, n, dataset=dataset)
    rows, _ = rows_of(tmp_path, "base2new")
    assert rows[-1]["dataset"] == "Average of 2"
    assert (rows[-1]["Base"], rows[-1]["New"], rows[-1]["HM"]) == (
        "70.00",
        "50.00",
        f"{2 * 70 * 50 / 120:.2f}",
    )


def test_only_seeds_with_both_numbers_count(tmp_path):
    base_new_pair(tmp_path, 80.0, 60.0, seed=1)
    base_new_pair(tmp_path, 70.0, 50.0, seed=2)
    write_run(tmp_path, "base2new/train_base", seed=3, values=10.0)
    runs, unfinished = find_runs(tmp_path)
    (method,) = group(runs)
    assert base_new(method, "Emoji").base.mean == 75.0
    assert sections([method], runs, unfinished, None)["Missing"] == [
        "CoOp (vit_b16) on Emoji, 16 shots: new classes seed 3"
    ]
    asked = sections([method], runs, unfinished, [1, 2, 3, 4])["Missing"]
    assert asked == ["CoOp (vit_b16) on Emoji, 16 shots: base classes seed 4, new classes seed 3 4"]


def test_one_seed_has_no_deviation(tmp_path):
    base_new_pair(tmp_path, 80.0, 60.0)
    scores = base_new(group(find_runs(tmp_path)[0])[0], "Emoji")
    assert math.isnan(scores.base.std) and str(scores.base) == "80.00"


# -- what belongs together -----------------------------------------------------------------------------------


def test_mixed_settings_are_kept_apart_and_named(tmp_path):
    base_new_pair(tmp_path, 80.0, 60.0, seed=1)
    base_new_pair(tmp_path, 40.0, 20.0, seed=2, config={"OPTIM.LR": "0.1", "DATALOADER.NUM_WORKERS": "8"})
    base_new_pair(tmp_path, 82.0, 62.0, seed=3, config={"DATASET.ROOT": "'/other'"})
    runs, unfinished = find_runs(tmp_path)
    first, second = group(runs)
    assert first.seeds() == [1, 3] and second.seeds() == [2] and second.variant == 2
    assert second.differs == {"OPTIM.LR": ("0.002", "0.1")}
    rows, _ = rows_of(tmp_path, "base2new")
    assert [(r["recipe"], r["Base"]) for r in rows] == [("vit_b16", "81.00 ± 1.41"), ("vit_b16 [2]", "40.00")]
    (line,) = sections([first, second], runs, unfinished, None)["Mixed settings or data (kept apart)"]
    assert "OPTIM.LR 0.002 -> 0.1" in line


def test_a_distillation_on_all_images_belongs_to_the_tests_of_its_job(tmp_path):
    for stage, shots, value in (("train_all", "0", 20.0), ("test_base", "16", 80.0), ("test_new", "16", 60.0)):
        write_run(tmp_path, f"base2new/{stage}", "PromptKD", values=value, config={"DATASET.NUM_SHOTS": shots})
    (method,) = group(find_runs(tmp_path)[0])
    assert method.seeds() == [1]


@pytest.mark.parametrize(
    ("key", "said"),
    [("backbone", "weights of the backbone aa -> bb"), ("class names", "DATASET: class names aa -> bb")],
)
def test_other_data_or_weights_are_kept_apart_and_named(tmp_path, key, said):
    base_new_pair(tmp_path, 80.0, 60.0, seed=1, digests={key: "aa"})
    base_new_pair(tmp_path, 40.0, 20.0, seed=2, digests={key: "bb"})
    base_new_pair(tmp_path, 82.0, 62.0, seed=3, digests={key: "aa"})
    base_new_pair(tmp_path, 84.0, 64.0, seed=4)  # of a version that noted none
    runs, unfinished = find_runs(tmp_path)
    first, second = group(runs)
    assert first.seeds() == [1, 3, 4] and second.seeds() == [2]
    (line,) = sections([first, second], runs, unfinished, None)["Mixed settings or data (kept apart)"]
    assert said in line


def test_base_and_new_of_different_data_make_no_pair(tmp_path):
    write_run(tmp_path, "base2new/train_base", values=80.0, digests={"image lists": "aa"})
    write_run(tmp_path, "base2new/test_new", values=60.0, digests={"image lists": "bb"})
    rows, _ = rows_of(tmp_path, "base2new")
    assert rows == []


def test_datasets_have_data_of_their_own_and_one_backbone(tmp_path):
    base_new_pair(tmp_path, 80.0, 60.0, dataset="Emoji", digests={"image lists": "aa", "backbone": "x"})
    base_new_pair(tmp_path, 70.0, 60.0, dataset="EuroSAT", digests={"image lists": "bb", "backbone": "x"})
    assert [m.datasets for m in group(find_runs(tmp_path)[0])] == [["Emoji", "EuroSAT"]]
    base_new_pair(tmp_path, 70.0, 60.0, dataset="SUN397", digests={"image lists": "cc", "backbone": "y"})
    assert len(group(find_runs(tmp_path)[0])) == 2


def test_settings_that_differ_between_datasets_are_kept_apart_too(tmp_path):
    base_new_pair(tmp_path, 80.0, 60.0, dataset="Emoji")
    base_new_pair(tmp_path, 70.0, 60.0, dataset="EuroSAT", config={"OPTIM.LR": "0.1"})
    assert [m.datasets for m in group(find_runs(tmp_path)[0])] == [["Emoji"], ["EuroSAT"]]


def test_the_average_over_datasets_has_its_own_deviation_over_seeds(tmp_path):
    for seed, on_emoji, on_eurosat in ((1, 80.0, 60.0), (2, 70.0, 74.0)):
        base_new_pair(tmp_path, on_emoji, 50.0, dataset="Emoji", seed=seed)
        base_new_pair(tmp_path, on_eurosat, 70.0, dataset="EuroSAT", seed=seed)
    rows, _ = rows_of(tmp_path, "base2new")
    average = rows[-1]
    assert (average["dataset"], average["seeds"]) == ("Average of 2", "1 2")
    assert (average["Base"], average["New"]) == ("71.00 ± 1.41", "60.00 ± 0.00")  # of 70 and 72, seed by seed
    base_new_pair(tmp_path, 90.0, 50.0, dataset="Emoji", seed=3)
    rows, _ = rows_of(tmp_path, "base2new")
    assert rows[-1]["Base"] == "73.50" and not rows[-1]["seeds"]  # other seeds there: no deviation


def test_a_recipe_for_one_dataset_can_be_joined(tmp_path):
    base_new_pair(tmp_path, 80.0, 60.0, "DPC_CoOp", "Emoji", cfg="vit_b16_ep20")
    base_new_pair(tmp_path, 70.0, 50.0, "DPC_CoOp", "EuroSAT", cfg="vit_b16_ep10_bs2top2", config={"OPTIM.LR": "0.1"})
    assert len(group(find_runs(tmp_path)[0])) == 2
    rows, _ = rows_of(tmp_path, "base2new", join=["vit_b16_ep20", "vit_b16_ep10_bs2top2"])
    assert [r["dataset"] for r in rows] == ["Emoji", "EuroSAT", "Average of 2"]


def test_folders_of_other_runs_count_by_their_method(tmp_path):
    """The first stage of every seed and dataset is another folder, of another recipe another method."""
    for dataset, seed, cfg in (("Emoji", 1, "a"), ("Emoji", 2, "a"), ("EuroSAT", 1, "a"), ("Emoji", 3, "b")):
        ckpt = f"'/x/base2new/train_base/{dataset.lower()}/shots_16/CoOp/{cfg}/seed{seed}'"
        write_run(
            tmp_path,
            "base2new/train_base",
            "DPC_CoOp",
            dataset,
            seed,
            80.0,
            config={"TRAINER.DPC.CKPT_DIR": ckpt},
        )
        write_run(
            tmp_path,
            "base2new/test_new",
            "DPC_CoOp",
            dataset,
            seed,
            60.0,
            config={"TRAINER.DPC.CKPT_DIR": "''"},
        )
    first, second = group(find_runs(tmp_path)[0])
    assert first.seeds(classes="base") == [1, 2] and second.seeds() == [
        3
    ]  # the evaluation of seed 3 does not say which stage it used
    assert list(second.differs) == ["TRAINER.DPC.CKPT_DIR"]


def test_shots_and_backbones_are_rows_of_their_own(tmp_path):
    write_run(tmp_path, "fewshot/train_all", values=50.0, shots=1)
    write_run(tmp_path, "fewshot/train_all", values=60.0, shots=4)
    write_run(tmp_path, "fewshot/train_all", values=70.0, shots=4, cfg="rn50", backbone="RN50")
    rows, _ = rows_of(tmp_path, "accuracy")
    assert [(r["shots"], r["backbone"], r["accuracy"]) for r in rows] == [
        ("4", "RN50", "70.00"),
        ("1", "ViT-B/16", "50.00"),
        ("4", "ViT-B/16", "60.00"),
    ]


def test_of_two_folders_for_one_run_the_newer_counts(tmp_path):
    for name, value in (("old", 10.0), ("new", 20.0)):
        folder = write_run(tmp_path / name, "fewshot/train_all", values=value)
        os.utime(folder / "results.json", (1000 if name == "old" else 2000,) * 2)
    runs, unfinished = find_runs(tmp_path)
    rows, _ = rows_of(tmp_path, "accuracy")
    assert [r["accuracy"] for r in rows] == ["20.00"]
    assert len(sections(group(runs), runs, unfinished, None)["The same run twice"]) == 1


def test_a_teacher_is_not_said_to_lack_tests(tmp_path):
    teacher = write_run(tmp_path, "base2new/train_base", "PromptSRC", values=50.0, cfg="vit_l14", backbone="ViT-L/14")
    config = {"TRAINER.PROMPTKD.TEACHER_DIR": repr(str(teacher))}
    write_run(tmp_path, "base2new/train_all", "PromptKD", values=45.0, config=config)
    for classes in ("base", "new"):
        write_run(tmp_path, f"base2new/test_{classes}", "PromptKD", values=60.0, config=config)
    runs, unfinished = find_runs(tmp_path)
    assert "Missing" not in sections(group(runs), runs, unfinished, None)
    rows, _ = rows_of(tmp_path, "base2new")
    assert [(r["method"], r["Base"]) for r in rows] == [("PromptKD", "60.00")]
    assert TABLES.keys() & {m.protocol for m in group(runs)} == {
        "base2new"
    }  # distillation on all classes is no few-shot run


def test_zero_shot_needs_one_seed(tmp_path):
    base_new_pair(tmp_path, 50.0, 60.0, "ZeroshotCLIP", seed=1)
    for seed in (1, 2):
        base_new_pair(tmp_path, 80.0, 60.0, seed=seed)
    runs, unfinished = find_runs(tmp_path)
    assert "Missing" not in sections(group(runs), runs, unfinished, None)


# -- half-written --------------------------------------------------------------------------------------------


def test_half_written_runs_are_named_with_their_reason(tmp_path, capsys):
    write_run(tmp_path, "fewshot/train_all", values=50.0)
    write_run(tmp_path, "fewshot/train_all", seed=2, values={}, finished=False)
    damaged = write_run(tmp_path, "fewshot/train_all", seed=3, values=1.0)
    (damaged / "results.json").write_text('{"trainer": "CoOp", ')
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "log.txt").write_text("Loading")
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "results.json").write_text("[1, 2]")
    write_run(tmp_path, "fewshot/train_all", seed=4, values=math.nan)
    runs, unfinished = find_runs(tmp_path)
    assert len(runs) == 1
    assert {u.folder.name: u.why.split(" (")[0] for u in unfinished} == {
        "seed2": "started, not finished",
        "seed3": "results.json is damaged",
        "early": "no results.json: ended before its first epoch",
        "alien": "results.json has no 'trainer': not one of ours",
        "seed4": "finished without a result",
    }
    code, out, _ = report(tmp_path, capsys)
    assert code == 0 and "Not finished" in out and str(damaged) in out and "50.00" in out


@pytest.mark.parametrize(
    "odd",
    [
        {"seed": "one"},
        {"seed": None},
        {"seed": True},
        {"trainer": ["CoOp"]},
        {"dataset": {}},
        {"backbone": 3},
        {"config": ["OPTIM.LR"]},
        {"config": {"OPTIM.LR": 0.1}},
        {"digests": {"backbone": ["a"]}},
        {"classes": None},
        {"test": {"accuracy": "high"}},
        {"test": {"accuracy": [50.0]}},
        {"test": {"accuracy": 10**400}},
        {"test": {"accuracy": True}},
        {"test": [50.0]},
        {"shots": "16"},
    ],
    ids=str,
)
def test_an_odd_results_file_costs_its_own_row_only(tmp_path, capsys, odd):
    write_run(tmp_path, "fewshot/train_all", values=50.0, seed=1)
    folder = write_run(tmp_path, "fewshot/train_all", values=70.0, seed=2)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, **odd}))
    code, out, err = report(tmp_path, capsys, "--plots", str(tmp_path / "plots"))
    assert code == 0 and "50.00" in out and "70.00" not in out and str(folder) in out


@pytest.mark.parametrize("text", ["", "nul", "[" * 100_000, '{"trainer": "CoOp"', "\udcff", "[1]", "3", "NaN"])
def test_a_file_that_is_no_results_file_costs_its_own_row_only(tmp_path, capsys, text):
    folder = write_run(tmp_path, "fewshot/train_all", values=70.0, seed=2)
    write_run(tmp_path, "fewshot/train_all", values=50.0, seed=1)
    (folder / "results.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder.parent / "seed1" / "epochs.json").write_text(text.encode("ascii", "ignore").decode())
    code, out, err = report(tmp_path, capsys, "--plots", str(tmp_path / "plots"))
    assert code == 0 and "50.00" in out and str(folder) in out


def test_codes_for_nothing_found_and_wrong_input(tmp_path, capsys):
    code, _, err = report(tmp_path / "nowhere", capsys)
    assert code == 2 and err.startswith("error: there is no folder")
    code, _, err = report(tmp_path, capsys)
    assert code == 1 and "no finished run" in err
    write_run(tmp_path, "fewshot/train_all", values=50.0)
    code, _, err = report(tmp_path, capsys, "--trainer", "Coop")
    assert code == 2 and "no run has --trainer Coop; there are CoOp" in err
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "--format", "word"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("flag", "where", "message"),
    [
        ("--plots", "file", "file is not a folder; give another one with --plots"),
        ("--write", "folder", "folder is a folder: give the name of a file"),
        ("--write", "file/table.txt", "file is not a folder; give another file with --write"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_any_table(tmp_path, capsys, flag, where, message):
    write_run(tmp_path / "runs", "fewshot/train_all", values=50.0)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    code, out, err = report(tmp_path / "runs", capsys, flag, str(tmp_path / where))
    assert code == 2 and err.startswith("error: ") and message in err and not out
    assert (tmp_path / "file").read_text() == "kept"


# -- published numbers ---------------------------------------------------------------------------------------


def test_published_tables_are_consistent():
    """Averages follow from their columns and, in DPC's table, every HM from its row (specs/dpc.md 5.1)."""
    rows = [p for p in published() if p.protocol == "base2new"]
    assert len(rows) == 25
    for p in rows:
        for b, n, hm in p.values.values():
            # PromptKD's own table has HMs that are no HM of their row, up to 0.27 away
            assert abs(2 * b * n / (b + n) - hm) < 0.02 or p.table != "DPC", p.method
        for column in (0, 1):
            single = [v[column] for d, v in p.values.items() if d != "Average"]
            assert p.datasets or single, f"{p.method}: what is averaged?"
            assert not single or abs(statistics.fmean(single) - p.values["Average"][column]) < 0.011, p.method
    for p in published():
        assert p.source and all(len(v) == len(p.columns) for v in p.values.values())
        if p.protocol == "retrieval":
            for c in range(6):
                mean = statistics.fmean(v[c] for d, v in p.values.items() if d != "Average")
                assert abs(mean - p.values["Average"][c]) < 0.02


def test_published_numbers_stand_beside_ours_with_the_difference(tmp_path):
    base_new_pair(tmp_path, 80.0, 50.0, "DPC_CoOp", "DescribableTextures")
    rows, table = rows_of(tmp_path, "base2new")
    assert rows[0]["published B / N / HM"] == "84.61 / 49.88 / 62.76"
    assert (rows[0]["ΔBase"], rows[0]["ΔNew"]) == ("-4.61", "+0.12")
    assert table.sources == [
        "DPC: Li et al., DPC, CVPR 2025: main table in the README of github.com/JREion/DPC (its own "
        "re-runs of the backbones)"
    ]


def test_a_published_average_without_its_datasets_stands_beside_the_average_of_all_eleven(tmp_path):
    eleven = next(p.datasets for p in published() if p.trainer == "IVLP")
    recipe = {"trainer": "IVLP", "cfg": "vit_b16_c2_ep20_batch4_4+4ctx"}
    for dataset in eleven[1:]:
        base_new_pair(tmp_path, 84.0, 72.0, dataset=dataset, **recipe)
    rows, _ = rows_of(tmp_path, "base2new")
    assert not any(row.get("published B / N / HM") for row in rows)  # ten are not the eleven
    base_new_pair(tmp_path, 84.0, 72.0, dataset=eleven[0], **recipe)
    rows, table = rows_of(tmp_path, "base2new")
    assert [r["published B / N / HM"] for r in rows if r["published B / N / HM"]] == ["84.21 / 71.79 / 77.51"]
    assert rows[-1]["ΔNew"] == "+0.21" and "PromptSRC, ICCV 2023" in table.sources[0]
    base_new_pair(tmp_path / "other", 84.0, 72.0, "IVLP", eleven[0], cfg="vit_b16_language_deep_ep5_batch4")
    assert counterpart(group(find_runs(tmp_path / "other")[0])[0]) is None  # nine layers, another rate


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "original papers"),
        ({"cfg": "vit_b16_ep20_lr35"}, "DPC"),
        ({"shots": 4}, None),
        ({"backbone": "RN50"}, None),
    ],
)
def test_published_rows_need_the_same_setting(tmp_path, changes, name):
    base_new_pair(tmp_path, 80.0, 50.0, "CoOp", "EuroSAT", **changes)
    found = counterpart(group(find_runs(tmp_path)[0])[0])
    assert (found and found.table) == name


def test_an_average_is_compared_only_over_the_same_datasets(tmp_path):
    names = [d for d in published()[0].values if d != "Average"]
    for dataset in names:
        base_new_pair(tmp_path, 80.0, 60.0, "DPC_CoOp", dataset)
    rows, _ = rows_of(tmp_path, "base2new")
    assert rows[-1]["published B / N / HM"] == "85.15 / 68.84 / 76.13" and rows[-1]["ΔBase"] == "-5.15"
    for folder in (tmp_path / "base2new").glob(f"*/{names[0].lower()}/shots_16/DPC_CoOp/vit_b16/seed1"):
        (folder / "results.json").unlink()
    rows, _ = rows_of(tmp_path, "base2new")
    assert rows[-1]["dataset"] == "Average of 10" and rows[-1]["published B / N / HM"] is None


def test_names_of_datasets():
    assert canonical("DescribableTextures") == canonical("dtd") == canonical("DTD")
    assert canonical("Flowers102") == canonical("oxford_flowers") == canonical("OxfordFlowers")
    assert canonical("EuroSAT") != canonical("DTD")


# -- other tables --------------------------------------------------------------------------------------------


def test_transfer_table_has_targets_mean_and_published_rows(tmp_path):
    write_run(tmp_path, "transfer/train_all", "MaPLe", "ImageNet", values=70.0)
    values = {"Caltech101": 93.0, "EuroSAT": 49.0}
    for dataset, value in values.items():
        write_run(
            tmp_path,
            "transfer/test_all",
            "MaPLe",
            dataset,
            values=value,
            target=dataset.lower(),
            folder="imagenet",
        )
    rows, table = rows_of(tmp_path, "transfer")
    assert (rows[0]["ImageNet"], rows[0]["Caltech101"], rows[0]["mean of targets"]) == (
        "70.00",
        "93.00",
        "71.00",
    )
    assert rows[1]["method"] == "  published" and rows[1]["EuroSAT"] == "48.06"
    assert rows[2]["Caltech101"] == "-0.53" and rows[2]["EuroSAT"] == "+0.94"
    assert table.columns.index("ImageNet") < table.columns.index("Caltech101")
    write_run(tmp_path, "transfer/test_all", "CoOp", "EuroSAT", values=40.0, target="eurosat", folder="imagenet")
    rows, _ = rows_of(tmp_path, "transfer")
    assert [r["mean of targets"] for r in rows if r["method"] == "CoOp"] == [None]  # one of its targets is missing


def test_targets_are_compared_with_the_table_that_has_them(tmp_path):
    """ImageNet's variants stand in another table than the ten datasets, and in DePT's there is no mean."""
    source = {"folder": "imagenet", "cfg": "vit_b16_ep50_ctxv1"}
    variants = {"ImageNetV2": 64.0, "ImageNetR": 77.0}
    write_run(tmp_path, "transfer/train_all", "CoOp", "ImageNet", values=70.0, cfg=source["cfg"])
    for dataset, value in variants.items():
        write_run(tmp_path, "transfer/test_all", "CoOp", dataset, values=value, target=dataset.lower(), **source)
    rows, table = rows_of(tmp_path, "transfer")
    assert (rows[1]["ImageNet"], rows[1]["ImageNetV2"], rows[1]["ImageNetR"]) == ("70.53", "64.13", "77.20")
    assert rows[2]["ImageNetV2"] == "-0.13" and rows[1]["mean of targets"] is None
    write_run(tmp_path, "transfer/test_all", "CoOp", "EuroSAT", values=47.0, target="eurosat", **source)
    rows, table = rows_of(tmp_path, "transfer")
    assert rows[1]["EuroSAT"] == "46.39" and rows[1]["ImageNetV2"] == "64.13" and len(table.sources) == 2


def test_a_mean_is_compared_only_over_the_papers_targets(tmp_path):
    paper = next(p for p in published() if p.protocol == "transfer" and p.trainer == "MaPLe" and "EuroSAT" in p.values)
    names = [name for name in paper.values if name != "Average"]
    for dataset in names[:2]:
        write_run(
            tmp_path, "transfer/test_all", "MaPLe", dataset, values=50.0, target=dataset.lower(), folder="imagenet"
        )
    rows, _ = rows_of(tmp_path, "transfer")
    assert rows[0]["mean of targets"] == "50.00" and rows[1]["mean of targets"] is None
    for dataset in names[2:]:
        write_run(
            tmp_path, "transfer/test_all", "MaPLe", dataset, values=50.0, target=dataset.lower(), folder="imagenet"
        )
    rows, _ = rows_of(tmp_path, "transfer")
    assert rows[1]["mean of targets"] == "66.30" and rows[2]["mean of targets"] == "-16.30"


def test_recall_table(tmp_path):
    values = {f"{d}_r{k}": 10.0 * k for d in ("i2t", "t2i") for k in (1, 5, 10)}
    config = {"DATASET.FDRD_DOMAIN": "'DTD'"}
    for seed in (1, 2):
        more = {k: v + seed for k, v in values.items()}
        write_run(
            tmp_path,
            "retrieval/train_all",
            "DCAR",
            "FDRD",
            seed,
            {"test": {"mean_r1": 1.0, **more}},
            config=config,
            backbone="ViT-B/32",
        )
    rows, _ = rows_of(tmp_path, "retrieval")
    assert rows[0]["dataset"] == "FDRD DTD" and rows[0]["I2T R@1"] == "11.50 ± 0.71"
    assert rows[1]["I2T R@1"] == "47.10" and rows[2]["I2T R@1"] == "-35.60" and rows[1]["T2I R@10"] == "69.98"


def test_composed_table_compares_fashioniq_by_training_triplets(tmp_path):
    values = {"last FashionIQ val": {"mean": 40.0, "R@10": 33.0, "R@50": 55.0, "dress R@10": 28.0}}
    config = {"CIR.LAION_SET": "'template'"}
    write_run(
        tmp_path,
        "composed/train",
        "PVLF",
        "LaionCIR",
        values=values,
        config=config,
        backbone="blip-itm-base-coco",
        shots=0,
    )
    rows, table = rows_of(tmp_path, "composed")
    assert rows[0]["dataset"] == "last FashionIQ val" and rows[0]["R@10"] == "33.00"
    assert rows[1]["R@10"] == "33.03" and rows[2]["R@50"] == "+0.47" and rows[2]["dress R@10"] == "-0.16"
    tuned = {"CIR.LAION_SET": "'combined'", "TRAINER.PVLF.BACKBONE.TUNE": "'text'"}
    write_run(
        tmp_path / "t", "composed/train", "PVLF", "LaionCIR", values=values, config=tuned, backbone="blip", shots=0
    )
    rows, _ = rows_of(tmp_path / "t", "composed")
    assert rows[1]["R@10"] == "34.17"  # table 1's combined row has both towers tuned, table 3 this mode
    values = {"last CIRR val": {"mean": 1.0, "R@1": 40.0}}
    write_run(
        tmp_path / "b",
        "composed/train",
        "PVLF",
        "LaionCIR",
        values=values,
        config=config,
        backbone="blip",
        shots=0,
    )
    rows, table = rows_of(tmp_path / "b", "composed")
    assert len(rows) == 1  # the paper's CIRR numbers are on test1


def test_recipes_in_other_layouts(tmp_path):
    values = {"test": {"accuracy": 1.0}}
    for path, cfg in (
        ("composed/emoji/PVLF/blip/seed3/eval_cirr", "blip"),
        ("composed/emoji/PVLF/vit_l14", "vit_l14"),
        ("a/b", "a"),
    ):
        folder = tmp_path / path
        folder.mkdir(parents=True)
        results = {"trainer": "PVLF", "dataset": "X", "seed": 3, "finished": True, **values}
        (folder / "results.json").write_text(json.dumps(results))
        assert [r.cfg for r in find_runs(tmp_path)[0] if r.folder == folder] == [cfg]


# -- formats and plots ---------------------------------------------------------------------------------------


def test_formats(tmp_path, capsys):
    for seed in (1, 2):
        base_new_pair(tmp_path, 80.0 + seed, 60.0, seed=seed, dataset="EuroSAT")
    write_run(tmp_path, "fewshot/train_all", values=50.0)
    _, console, _ = report(tmp_path, capsys, "--seeds", "1", "2")
    assert "81.50 ± 0.71" in console and "published: original papers:" in console and "Missing:" in console
    _, markdown, _ = report(tmp_path, capsys, "--format", "markdown", "--seeds", "1", "2")
    assert "| EuroSAT   | CoOp" in markdown and "### Missing" in markdown
    _, latex, _ = report(tmp_path, capsys, "--format", "latex", "--seeds", "1", "2")
    assert r"\toprule" in latex and r"81.50 $\pm$ 0.71" in latex
    outside = [x for x in latex.split("\\end{tabular}")[-1].splitlines() if x]
    assert all(line.startswith("%") for line in outside)
    _, text, err = report(tmp_path, capsys, "--format", "csv", "--seeds", "1", "2")
    assert len(list(csv.DictReader(io.StringIO(text)))) == 4 and "Missing" in err
    target = tmp_path / "deep" / "table.md"
    code, out, _ = report(tmp_path, capsys, "--format", "markdown", "--write", str(target), "--seeds", "1", "2")
    assert code == 0 and target.read_text() == markdown and out == f"wrote {target}\n"
    target.write_text("By hand.\n<!-- begin: report -->\nold\n<!-- end -->\nMore.\n")
    report(tmp_path, capsys, "--format", "markdown", "--write", str(target), "--seeds", "1", "2")
    assert target.read_text() == f"By hand.\n<!-- begin: report -->\n{markdown.strip()}\n<!-- end -->\nMore.\n"


def test_csv_is_long_and_has_mean_deviation_and_count_in_columns(tmp_path, capsys):
    for seed, base in ((1, 81.0), (2, 82.5), (4, 90.0)):
        base_new_pair(tmp_path, base, 60.0, "DPC_CoOp", seed=seed, dataset="EuroSAT")
    write_run(tmp_path, "fewshot/train_all", values=50.125, shots=4)
    values = {f"{d}_r{k}": 10.0 * k for d in ("i2t", "t2i") for k in (1, 5, 10)}
    config = {"DATASET.FDRD_DOMAIN": "'DTD'"}
    write_run(
        tmp_path, "retrieval/train_all", "DCAR", "FDRD", values={"test": values}, config=config, backbone="ViT-B/32"
    )
    _, text, _ = report(tmp_path, capsys, "--format", "csv")
    rows = {(row["method"], row["metric"]): row for row in csv.DictReader(io.StringIO(text))}
    assert len(rows) == text.count("\n") - 1 == 3 + 1 + 6
    base = rows["DPC_CoOp", "Base"]
    assert float(base["mean"]) == statistics.fmean([81.0, 82.5, 90.0]) and base["n"] == "3" and base["seeds"] == "1 2 4"
    assert float(base["std"]) == statistics.stdev([81.0, 82.5, 90.0]) and base["published"] == "93.4"
    assert float(rows["DPC_CoOp", "HM"]["mean"]) == pytest.approx(2 * 84.5 * 60 / 144.5)
    one = rows["CoOp", "accuracy"]
    assert (one["mean"], one["std"], one["n"], one["shots"]) == ("50.125", "", "1", "4")
    recall = rows["DCAR", "i2t_r1"]
    assert (recall["dataset"], recall["mean"], recall["published"]) == ("FDRD DTD", "10.0", "47.1")


def test_methods_stand_in_one_order_in_tables_and_plots(tmp_path):
    for trainer in ("MaPLe", "DPC_CoOp", "ZeroshotCLIP", "DPC_MaPLe", "CoOp", "CoCoOp"):
        base_new_pair(tmp_path, 80.0, 60.0, trainer)
        for shots in (16, 4):
            write_run(tmp_path, "fewshot/train_all", trainer, values=50.0, shots=shots)
    order = ["ZeroshotCLIP", "CoCoOp", "CoOp", "DPC_CoOp", "MaPLe", "DPC_MaPLe"]
    for protocol in ("base2new", "accuracy"):
        rows, _ = rows_of(tmp_path, protocol)
        assert list(dict.fromkeys(row["method"] for row in rows)) == order
    assert [row["shots"] for row in rows if row["method"] == "CoOp"] == ["4", "16"]


def test_a_method_looks_the_same_in_every_plot_of_a_report(tmp_path, monkeypatch):
    """Colour and marker do not depend on which methods share a plot."""
    from matplotlib.colors import to_hex

    for trainer in ("CoOp", "MaPLe", "ZeroshotCLIP"):
        for seed in (1, 2):
            base_new_pair(tmp_path, 80.0 + seed, 60.0, trainer, "EuroSAT", seed, log=progress([4.0, 2.0]))
    for shots in (1, 4):  # fewer methods, and CoOp with another recipe
        write_run(tmp_path, "fewshot/train_all", "MaPLe", "EuroSAT", values=50.0, shots=shots)
        write_run(tmp_path, "fewshot/train_all", "CoOp", "EuroSAT", values=50.0, shots=shots, cfg="rn50")
    seen: dict[str, set] = {}
    methods = group(find_runs(tmp_path)[0])
    looks = plots.Looks(methods)
    for protocol in ("base2new", "accuracy"):
        chosen = [m for m in methods if m.protocol == protocol]
        for draw in plots.PLOTS[protocol]:
            for _, figure in draw(chosen, looks):
                for axis in figure.axes:
                    handles, labels = axis.get_legend_handles_labels()
                    for handle, label in zip(handles, labels):
                        line = handle[0] if isinstance(handle, tuple) else handle
                        line = line.lines[0] if hasattr(line, "lines") else line
                        seen.setdefault(label.split(" (")[0], set()).add(to_hex(line.get_color()))
                plots.pyplot().close(figure)
    assert {name: len(colours) for name, colours in seen.items()} == {"CoOp": 1, "MaPLe": 1, "ZeroshotCLIP": 1}
    assert len(set.union(*seen.values())) == 3
    every = [(looks[m].color, looks[m].marker) for m in methods]
    assert len(set(every)) == len({plots.Looks.key(m) for m in methods})


def test_filters(tmp_path, capsys):
    write_run(tmp_path, "fewshot/train_all", "CoOp", values=50.0)
    write_run(tmp_path, "fewshot/train_all", "MaPLe", values=60.0, shots=4)
    _, out, _ = report(tmp_path, capsys, "--trainer", "MaPLe")
    assert "60.00" in out and "50.00" not in out
    _, out, _ = report(tmp_path, capsys, "--shots", "16")
    assert "60.00" not in out and "50.00" in out


def test_curves_come_from_all_logs_of_a_run(tmp_path):
    (tmp_path / "log.txt").write_text("noise\n" + progress([4.0, 2.0, 9.0])[:-1])
    resumed = [line for line in progress([8.0, 8.0, 1.0]).splitlines() if line.startswith("epoch [3")]
    (tmp_path / "log.txt-2026-01-01").write_text("\n".join(resumed))
    os.utime(tmp_path / "log.txt", (1000, 1000))
    curves = read_curves(tmp_path)
    assert sorted(curves) == ["acc", "loss"]
    assert per_epoch(curves["loss"]) == {1: 4.0, 2: 2.0, 3: 1.0}
    assert curves["loss"][0.5] == 2.0


def test_curves_come_from_the_structured_file_and_logs_only_fill_in(tmp_path):
    """A run that began under a version without epochs.json has its first epochs in the log alone."""
    epochs.write(tmp_path, [{"epoch": 3, "train": {"loss": 1.25, "acc": 50.0}}])
    (tmp_path / "log.txt").write_text(progress([4.0, 2.0, 9.0]))
    assert per_epoch(read_curves(tmp_path)["loss"]) == {1: 4.0, 2: 2.0, 3: 1.25}
    epochs.write(tmp_path, [{"epoch": e, "train": {"loss": 1.0 / e}} for e in (1, 2, 3)])
    assert read_curves(tmp_path) == {"loss": {1.0: 1.0, 2.0: 0.5, 3.0: 1 / 3}}


def test_plots_are_drawn_for_what_there_is(tmp_path, capsys):
    for trainer, gain in (("CoOp", 0), ("MaPLe", 3)):
        for seed in (1, 2):
            base_new_pair(
                tmp_path,
                80.0 + gain + seed,
                60.0 + gain,
                trainer,
                "EuroSAT",
                seed,
                log=progress([4.0, 2.0, 1.0 + seed]),
            )
            for shots in (1, 2, 4):
                write_run(
                    tmp_path,
                    "fewshot/train_all",
                    trainer,
                    "EuroSAT",
                    seed,
                    40.0 + gain + 5 * shots + seed,
                    shots=shots,
                )
    values = {f"{d}_r{k}": 8.0 * k for d in ("i2t", "t2i") for k in (1, 5, 10)}
    write_run(
        tmp_path,
        "retrieval/train_all",
        "DCAR",
        "FDRD",
        1,
        {"test": values},
        config={"DATASET.FDRD_DOMAIN": "'DTD'"},
        backbone="ViT-B/32",
    )
    plots = tmp_path / "plots"
    code, out, _ = report(tmp_path, capsys, "--plots", str(plots))
    assert code == 0
    names = {
        "base_new",
        "base_new_per_dataset",
        "curves_base2new_loss",
        "curves_base2new_acc",
        "accuracy_per_dataset",
        "shots",
        "recall_FDRD_DTD",
    }
    assert {p.stem for p in plots.glob("*.png")} == names
    assert all((plots / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in names)
    assert json.dumps(sorted(out.splitlines()[-1:])).count("plot: ") == 1
