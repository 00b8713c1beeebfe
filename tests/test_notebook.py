"""The notebook runs from top to bottom in an empty folder, and is kept without outputs."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "own_pictures.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_has_ten_cells_and_no_outputs(notebook):
    assert len(notebook.cells) == 10
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.source


def test_own_pictures_to_a_trained_prompt_to_predictions(notebook, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"  # of this interpreter, whatever kernels the machine has
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own, which shows figures
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    work = tmp_path / "work"
    work.mkdir()
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    client.execute()
    said = ["".join(text_of(output) for output in cell.get("outputs", [])) for cell in notebook.cells]
    assert "('fish', 20)" in said[1] and "'fish': 10" in said[2] and "'fish': 6" in said[2]
    accuracies = dict(re.findall(r"\| (ZeroshotCLIP|CoOp|DPC_CoOp) .*\| ([\d.]+) ", said[4]))
    assert len(accuracies) == 3 and float(accuracies["DPC_CoOp"]) > float(accuracies["ZeroshotCLIP"])
    assert f"'accuracy': {accuracies['DPC_CoOp']}"[:15] in said[5]
    assert said[7].count("'submarine': ") == 3
    assert "expected calibration error" in said[8] and said[8].count("image/png") == 1
    assert "classes.safetensors" in said[9] and (work / "exported" / "README.md").is_file()
    assert said[3].count("image/png") == said[6].count("image/png") == 1


def text_of(output):
    """What an output shows: text, and the kind of what is no text."""
    if output.output_type == "stream":
        return output.text
    return "".join(text if kind.startswith("text/") else kind for kind, text in output.data.items())
