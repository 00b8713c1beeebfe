"""What `run` prints at its end: the report's table of the runs it made."""

from dassl_prompts.run.__main__ import summary
from tests.report.tree import base_new_pair


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def tree(root):
    """CoOp by its own recipe and as DPC's first stage, DPC on top: two seeds each."""
    folders = []
    for seed, (base, new) in enumerate(((80.0, 60.0), (60.0, 20.0)), 1):
        folders += base_new_pair(root, base, new, cfg="own", seed=seed)
        stage1 = base_new_pair(root, base - 5, new - 5, cfg="stage1", seed=seed)
        config = {"TRAINER.DPC.CKPT_DIR": repr(str(stage1[0]))}
        folders += stage1
        folders += base_new_pair(root, base + seed, new - 5, "DPC_CoOp", cfg="dpc", seed=seed, config=config)
    return folders


def test_recipes_of_one_method_are_rows_of_their_own_and_no_seeds(tmp_path):
    rows = cells(summary(tree(tmp_path), tmp_path))
    assert rows[0] == ["dataset", "method", "recipe", "seeds", "Base", "New", "HM"]
    found = {(row[1], row[2]): row[3:] for row in rows[1:]}
    assert list(found) == [("CoOp", "own"), ("CoOp", "stage1"), ("DPC_CoOp", "dpc"), ("minus CoOp", "seed by seed")]
    assert found["CoOp", "own"][:3] == ["1 2", "70.00 ± 14.14", "40.00 ± 28.28"]
    assert found["CoOp", "own"][3].startswith(f"{2 * 70 * 40 / 110:.2f} ± ")


def test_dpc_minus_its_own_backbone_is_paired(tmp_path):
    """6 and 7 points over the first stage; the sides themselves spread by 14."""
    row = cells(summary(tree(tmp_path), tmp_path))[-1]
    assert row[3:6] == ["1 2", "+6.50 ± 0.71", "+0.00 ± 0.00"]


def test_an_output_tree_that_moved_still_knows_its_backbone(tmp_path):
    tree(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    folders = [path.parent for path in (tmp_path / "new").rglob("results.json")]
    assert [row[1] for row in cells(summary(folders, tmp_path / "new"))][-1] == "minus CoOp"


def test_other_settings_under_one_name_are_said(tmp_path):
    folders = [
        *base_new_pair(tmp_path, 80.0, 60.0, seed=1),
        *base_new_pair(tmp_path, 40.0, 20.0, seed=2, config={"OPTIM.LR": "0.1"}),
    ]
    text = summary(folders, tmp_path)
    assert [row[2:4] for row in cells(text)[1:]] == [["vit_b16", "1"], ["vit_b16 [2]", "2"]]
    assert "vit_b16, settings 2) has other settings than the first: OPTIM.LR 0.002 -> 0.1" in text
