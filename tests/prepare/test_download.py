"""Downloads against a local server: whole, broken off, changed, wrong, refused, no room."""

import collections
import errno
import hashlib

import pytest

from dassl_prompts.prepare import download as module
from dassl_prompts.prepare.download import download, file_md5
from dassl_prompts.prepare.errors import ChecksumError, DiskFullError, DownloadError
from tests.prepare.server import serve

BODY = bytes(range(256)) * 4000
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def site():
    with serve() as site:
        site.files["/a.bin"], site.etags["/a.bin"] = BODY, '"1"'
        yield site


def fetch(site, tmp_path, **keys):
    return download(site.url("/a.bin"), tmp_path / "sub" / "a.bin", **{"pause": 0, "timeout": 10, **keys})


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "sub").iterdir())


def test_whole_file_with_checksum(site, tmp_path):
    path = fetch(site, tmp_path, md5=MD5)
    assert path.read_bytes() == BODY and file_md5(path) == MD5 and left(tmp_path) == ["a.bin"]


def test_broken_connections_are_continued_in_one_call(site, tmp_path):
    site.cut_after["/a.bin"] = [1000, 200_000]
    assert fetch(site, tmp_path, md5=MD5).read_bytes() == BODY
    assert [asked for _, asked in site.requests] == [None, "bytes=1000-", "bytes=201000-"]


def test_next_run_continues_an_interrupted_one(site, tmp_path):
    site.cut_after["/a.bin"] = [5000]
    with pytest.raises(DownloadError, match="run the same command again"):
        fetch(site, tmp_path, attempts=1)
    assert left(tmp_path) == ["a.bin.part", "a.bin.part.version"]
    assert fetch(site, tmp_path).read_bytes() == BODY
    assert site.requests[-1][1] == "bytes=5000-" and left(tmp_path) == ["a.bin"]


def test_changed_file_is_fetched_anew(site, tmp_path):
    site.cut_after["/a.bin"] = [5000]
    with pytest.raises(DownloadError):
        fetch(site, tmp_path, attempts=1)
    site.files["/a.bin"], site.etags["/a.bin"] = BODY[::-1], '"2"'
    assert fetch(site, tmp_path).read_bytes() == BODY[::-1]


@pytest.mark.parametrize("what", ["mark", "length"])
def test_a_server_that_continues_another_file_is_not_believed(site, tmp_path, what):
    """It ignores If-Range and answers with the rest of the file that it has now."""
    site.if_range = False
    site.cut_after["/a.bin"] = [5000]
    with pytest.raises(DownloadError):
        fetch(site, tmp_path, attempts=1)
    site.files["/a.bin"] = BODY[::-1] if what == "mark" else BODY[::-1] + b"more"
    site.etags["/a.bin"] = '"2"' if what == "mark" else '"1"'
    assert fetch(site, tmp_path).read_bytes() == site.files["/a.bin"]
    assert [asked for _, asked in site.requests] == [None, "bytes=5000-", None] and left(tmp_path) == ["a.bin"]


def test_what_came_before_a_stall_is_kept(site, tmp_path):
    site.stall["/a.bin"] = [300_000]
    assert fetch(site, tmp_path, timeout=0.3).read_bytes() == BODY
    assert [asked for _, asked in site.requests] == [None, "bytes=300000-"]


@pytest.mark.parametrize("said", [True, False])
def test_a_web_page_is_no_data(site, tmp_path, said):
    site.files["/a.bin"] = b"<!DOCTYPE html><title>Sign in</title>"
    site.types["/a.bin"] = "text/html; charset=utf-8" if said else "application/octet-stream"
    with pytest.raises(DownloadError, match="a.bin: the server sends a web page instead of the file"):
        fetch(site, tmp_path)
    assert left(tmp_path) == []
    site.files["/a.bin"] = BODY
    assert fetch(site, tmp_path, md5=MD5).read_bytes() == BODY  # a wrong label of the right file


def test_without_a_version_mark_a_part_is_only_trusted_with_a_checksum(site, tmp_path):
    del site.etags["/a.bin"]
    for md5, asked in (("", None), (MD5, "bytes=5000-")):
        site.cut_after["/a.bin"] = [5000]
        with pytest.raises(DownloadError):
            fetch(site, tmp_path, attempts=1, md5=md5)
        assert fetch(site, tmp_path, md5=md5).read_bytes() == BODY
        assert site.requests[-1][1] == asked


def test_part_of_other_content_is_dropped_when_the_checksum_shows_it(site, tmp_path):
    del site.etags["/a.bin"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin.part").write_bytes(b"x" * 5000)
    assert fetch(site, tmp_path, md5=MD5).read_bytes() == BODY


def test_server_without_ranges(site, tmp_path):
    site.ranges = False
    site.cut_after["/a.bin"] = [5000]
    assert fetch(site, tmp_path, md5=MD5).read_bytes() == BODY


def test_part_that_was_complete_already(site, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin.part").write_bytes(BODY)
    (tmp_path / "sub" / "a.bin.part.version").write_text('"1"')
    assert fetch(site, tmp_path, md5=MD5).read_bytes() == BODY


def test_part_longer_than_the_file_is_dropped(site, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin.part").write_bytes(BODY + b"more")
    (tmp_path / "sub" / "a.bin.part.version").write_text('"1"')
    assert fetch(site, tmp_path, md5=MD5).read_bytes() == BODY


def test_wrong_checksum_keeps_nothing(site, tmp_path):
    with pytest.raises(ChecksumError, match=MD5):
        fetch(site, tmp_path, md5="0" * 32)
    assert left(tmp_path) == []


def test_passing_server_errors_are_tried_again(site, tmp_path):
    site.status["/a.bin"] = [503, 429]
    assert fetch(site, tmp_path).read_bytes() == BODY
    site.status["/a.bin"] = [503] * 3
    with pytest.raises(DownloadError, match="503"):
        fetch(site, tmp_path, attempts=3)


def test_refusal_is_not_tried_again(site, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        download(site.url("/gone"), tmp_path / "gone", pause=0)
    assert len(site.requests) == 1


def test_no_server(tmp_path):
    with pytest.raises(DownloadError, match="2 attempts"):
        download("http://127.0.0.1:9/x", tmp_path / "x", attempts=2, pause=0)


def test_no_room_is_said_before_writing(site, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10, 0, len(BODY) - 1))
    with pytest.raises(DiskFullError, match="needs .* left; make room"):
        fetch(site, tmp_path)
    assert left(tmp_path) == []


def test_disk_that_fills_up_keeps_the_part(site, tmp_path, monkeypatch):
    site.cut_after["/a.bin"] = [5000]
    with pytest.raises(DownloadError):
        fetch(site, tmp_path, attempts=1)
    original = open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path, mode="r", *rest, **keys):
        file = original(path, mode, *rest, **keys)
        return Full(file) if mode == "ab" else file

    monkeypatch.setattr(module, "open", opened, raising=False)
    with pytest.raises(DiskFullError, match="No space left"):
        fetch(site, tmp_path)
    monkeypatch.undo()
    assert fetch(site, tmp_path, md5=MD5).read_bytes() == BODY


def test_two_commands_do_not_write_one_file(site, tmp_path):
    part = tmp_path / "sub" / "a.bin.part"
    part.parent.mkdir()
    with module._locked(part), pytest.raises(DownloadError, match="another command"):
        fetch(site, tmp_path)
    assert fetch(site, tmp_path).read_bytes() == BODY
