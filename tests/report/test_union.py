"""Base and new classes together in the report: its table, averages and differences, and the seen-unseen curve."""

import pytest

from dassl_prompts.report import plots
from dassl_prompts.results.groups import group
from dassl_prompts.results.runs import find_runs
from dassl_prompts.results.tables import tables as report_tables
from tests.report.tree import base_new_pair, write_run


def union_run(root, trainer, seed, base, new, area, curve=(), dataset="Emoji", **config):
    values = {"test": {"accuracy": 0.0, "base": base, "new": new, "hm": 0.0, "area": area}, "seen_unseen_curve": curve}
    config = {"TEST.EVALUATOR": "'Union'", "TRAINER.DPC.TASK": "'union'", **config}
    return write_run(root, "base2new/test_union", trainer, dataset, seed, values, config=config, classes="all")


def test_union_table_stands_beside_the_told_one_and_changes_nothing_in_it(tmp_path):
    for seed, base in ((1, 60.0), (2, 62.0)):
        base_new_pair(tmp_path, 80.0, 70.0, seed=seed)
        union_run(tmp_path, "CoOp", seed, base, 40.0, 30.0 + seed)
    methods = group(find_runs(tmp_path)[0])
    assert len(methods) == 1
    told, union = report_tables(methods)
    assert told.rows[0][-3:] == ["80.00 ± 0.00", "70.00 ± 0.00", "74.67 ± 0.00"]
    assert union.columns[-5:] == ["seeds", "Base", "New", "HM", "area under curve"]
    assert union.rows == [
        ["Emoji", "CoOp", "vit_b16", "1 2", "61.00 ± 1.41", "40.00 ± 0.00", "48.32 ± 0.44", "31.50 ± 0.71"]
    ]


def test_union_table_averages_datasets_and_pairs_dpc_with_its_backbone_seed_by_seed(tmp_path):
    for dataset, level in (("Emoji", 20.0), ("IconPark", 40.0)):
        for seed in (1, 2):
            stage1, _ = base_new_pair(tmp_path, 80.0, 70.0, dataset=dataset, seed=seed)
            union_run(tmp_path, "CoOp", seed, level + 10 * seed, 40.0, 10.0 * seed, dataset=dataset)
            ours, stage = (level + 10 * seed + seed, 40.0, 10.0 * seed + 2), {"TRAINER.DPC.CKPT_DIR": repr(str(stage1))}
            base_new_pair(tmp_path, 90.0, 70.0, "DPC_CoOp", dataset, seed, config=stage)
            union_run(tmp_path, "DPC_CoOp", seed, *ours, dataset=dataset, **stage)
    union = report_tables(group(find_runs(tmp_path)[0]))[1]
    average = {row[1]: row[-4:] for row in union.rows if row[0] == "Average of 2"}
    assert average["CoOp"][:2] == ["45.00 ± 7.07", "40.00 ± 0.00"] and average["CoOp"][3] == "15.00 ± 7.07"
    assert average["DPC_CoOp"][0] == "46.50 ± 7.78"
    assert [average["  minus CoOp"][i] for i in (0, 1, 3)] == ["+1.50 ± 0.71", "+0.00 ± 0.00", "+2.00 ± 0.00"]
    assert [row[0] for row in union.rows] == ["Emoji"] * 3 + ["IconPark"] * 3 + ["Average of 2"] * 3


def test_a_distillation_on_all_classes_is_not_taken_for_the_union(tmp_path):
    """PromptKD's training run is of all classes, too."""
    write_run(tmp_path, "base2new/train_all", "PromptKD", values=55.0)
    union_run(tmp_path, "PromptKD", 1, 50.0, 40.0, 30.0)
    [method] = group(find_runs(tmp_path)[0])
    assert set(method.runs) == {("Emoji", "all", 1), ("Emoji", "union", 1)} and not method.doubles


def test_seen_unseen_curve_is_the_mean_over_seeds(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    from dassl_prompts.report.plots import seen_unseen_curves

    union_run(tmp_path, "CoOp", 1, 60.0, 40.0, 30.0, [[0.0, 80.0], [60.0, 40.0], [90.0, 0.0]])
    union_run(tmp_path, "CoOp", 2, 70.0, 40.0, 30.0, [[0.0, 80.0], [70.0, 40.0], [80.0, 0.0]])
    methods = group(find_runs(tmp_path)[0])
    [(name, figure)] = list(seen_unseen_curves(methods, plots.Looks(methods)))
    line, marker = figure.axes[0].lines
    points = dict(line.get_xydata().round(6).tolist())
    assert name == "seen_unseen" and [points[x] for x in (0.0, 20.0, 40.0)] == pytest.approx([85.0, 75.0, 65.0])
    assert marker.get_xydata().tolist() == [[40.0, 65.0]]
    plt.close(figure)
