"""TorchScript archives: their tensors to the bit, and nothing of them run."""

import io
import zipfile

import pytest
import torch

from dassl_prompts.engine import UnsafePickleError
from dassl_prompts.models import load_clip, torchscript
from dassl_prompts.models.torchscript import is_torchscript, read_torchscript
from tests.trainers import plain


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4).half()
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("resolution", torch.tensor(224))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.scratch = torch.ones(2)  # neither parameter nor buffer
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scratch[0] + self.sizes[0]


class Archive(torch.nn.Module):
    """Modules in modules, a shared storage, views that are not contiguous, an empty tensor."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        whole = torch.arange(24.0)
        self.register_buffer("view", whole[4:16].view(3, 4).t())
        self.register_buffer("again", whole[:5])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("brain", torch.randn(3).bfloat16())
        self.register_buffer("bytes", torch.tensor([200, 1], dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.script(Archive()), str(path))
    return path


@pytest.fixture
def no_jit(monkeypatch):
    """From here on loading an archive is a failure."""

    def refuse(*args, **kwargs):
        pytest.fail("the archive is run")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch._C, "import_ir_module", refuse)


def test_the_tensors_are_those_of_the_state_dict_to_the_bit(archive, request):
    expected = torch.jit.load(str(archive)).state_dict()
    request.getfixturevalue("no_jit")
    found = read_torchscript(archive)
    assert found.keys() == expected.keys() and len(found) == 23
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("half", [False, True])
def test_an_archive_in_openais_form_is_a_backbone(tmp_path, half, request):
    module = torch.nn.Module()
    state = plain.openai_state()
    for key, value in state.items():
        *path, leaf = key.split(".")
        at = module
        for part in path:
            if part not in at._modules:
                at.add_module(part, torch.nn.Module())
            at = at._modules[part]
        at.register_buffer(leaf, value.half() if half and value.is_floating_point() else value)
    traced = torch.jit.script(module)
    torch.jit.save(traced, str(tmp_path / "openai.pt"))
    torch.save(
        {k: v.half().float() if half and v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pt"
    )
    request.getfixturevalue("no_jit")
    ours, theirs = load_clip(str(tmp_path / "openai.pt")), load_clip(str(tmp_path / "w.pt"))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    assert ours.activation == "quickgelu" and ours.digest == theirs.digest


class Marked(torch.nn.Module):
    """Its archive runs code when torch.jit loads it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.ran = 0

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0] * 2
        self.training = state[1]
        self.ran = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_code_that_an_archive_brings_for_its_state_is_not_run(tmp_path, request):
    path = tmp_path / "marked.pt"
    torch.jit.save(torch.jit.script(Marked()), str(path))
    assert torch.jit.load(str(path)).ran == 1
    request.getfixturevalue("no_jit")
    assert read_torchscript(path) == {}  # what only code could put together is not there
    with pytest.raises(ValueError, match="marked.pt holds no CLIP"):
        load_clip(str(path))


def rewrite(path, change):
    """The archive with ``change(name, content)`` of every member."""
    with zipfile.ZipFile(path) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members:
            name, content = change(name, content)
            new.writestr(name, content)


def test_names_of_libraries_in_an_archive_are_refused(archive):
    rewrite(archive, lambda name, content: (name, content.replace(b"ctorch.jit._pickle\n", b"cshutil._pickle____\n")))
    with pytest.raises(UnsafePickleError, match="archive.pt refers to shutil._pickle____.*torch.save"):
        read_torchscript(archive)


def test_damaged_archives_are_named(archive):
    assert is_torchscript(archive)
    content = archive.read_bytes()
    cut = lambda name, data: (name, data[:-3] if name.endswith("data.pkl") else data)
    short = lambda name, data: (name, data[:-2] if "/data/" in name else data)
    for change, message in ((cut, "damaged"), (short, "bytes instead of")):
        archive.write_bytes(content)
        rewrite(archive, change)
        with pytest.raises(
            ValueError, match=f"archive.pt cannot be read as a TorchScript archive.*{message}|archive.pt.*{message}"
        ):
            read_torchscript(archive)


def test_large_compressed_members_are_refused(archive, monkeypatch):
    monkeypatch.setattr(torchscript, "MOST_CODE", 20)
    with (
        zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as old,
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(ValueError, match="is compressed and has"):
        read_torchscript(archive)


def test_files_of_torch_save_are_no_archives(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    assert not is_torchscript(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"no zip file")
    assert not is_torchscript(tmp_path / "b.pt")
