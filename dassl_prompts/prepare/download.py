"""Downloads that continue where they stopped and end with a verified file or with none."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from dassl_prompts.engine.files import NO_ROOM, write_text
from dassl_prompts.prepare.errors import ChecksumError, DiskFullError, DownloadError

CHUNK = 1 << 20
USER_AGENT = "dassl-prompts"
#: a server's answers that another attempt can change
PASSING = {408, 425, 429, 500, 502, 503, 504}
#: how web pages begin, in small letters
PAGE_STARTS = (b"<!doctype html", b"<html")


def download(
    url: str,
    path: str | os.PathLike,
    md5: str = "",
    *,
    attempts: int = 5,
    timeout: float = 60,
    pause: float = 1,
) -> Path:
    """Fetch ``url`` into ``path``, continuing an earlier attempt that was cut off.

    The bytes go to ``<path>.part``; it becomes ``path`` once its length and checksum are right. A part is
    continued only while the server says that the file is unchanged, by its mark of the version and its length.

    Args:
        md5: expected checksum; "" when none is published.
        attempts: how often a broken connection is taken up again, with a growing pause.
        timeout: seconds without a byte after which a connection counts as broken.

    Raises:
        DownloadError: the server cannot be reached, refuses, or breaks off every time (the part stays); it sends a web
            page where no checksum would show that.
        ChecksumError: the file is not the expected one; nothing stays.
        DiskFullError: no room; the part stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _locked(part):
        continued = part.exists()
        _fetch(url, part, attempts, timeout, pause, bool(md5))
        if md5 and file_md5(part) != md5 and continued:
            # An earlier run's bytes may be those of another version of the file.
            _discard(part)
            _fetch(url, part, attempts, timeout, pause, bool(md5))
        if md5 and (found := file_md5(part)) != md5:
            _discard(part)
            raise ChecksumError(f"{url}: checksum is {found}, expected {md5}; the file was not kept")
        os.replace(part, path)
        _discard(part)
    return path


def file_md5(path: str | os.PathLike) -> str:
    """MD5 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.md5()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url: str, part: Path, attempts: int, timeout: float, pause: float, verifiable: bool) -> None:
    for attempt in range(1, attempts + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            return _transfer(url, part, timeout, verifiable)
        except urllib.error.HTTPError as error:
            if error.code not in PASSING or attempt == attempts:
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            if attempt == attempts:
                reason = getattr(error, "reason", None) or error
                raise DownloadError(
                    f"{url}: {reason} ({attempts} attempts); run the same command again to continue"
                ) from error
        progressed = part.exists() and part.stat().st_size > before
        time.sleep(pause if progressed else pause * 2 ** (attempt - 1))


def _transfer(url: str, part: Path, timeout: float, verifiable: bool) -> None:
    """One connection: the missing bytes, or all of them where the server cannot continue."""
    have, version, whole = _resumable(part, verifiable)
    headers = {"User-Agent": USER_AGENT}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # nothing is missing
            return
        _discard(part)
        return _transfer(url, part, timeout, verifiable)
    with response:
        now = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        given = response.headers.get("Content-Range", "")
        if response.status != 206:
            have = 0
        elif not given.startswith(f"bytes {have}-"):
            raise http.client.HTTPException(f"asked for bytes from {have}, got {given}")
        elif (version and now and now != version) or (whole and given.rpartition("/")[2] not in ("*", whole)):
            # a server that does not know If-Range continues another file
            _discard(part)
            return _transfer(url, part, timeout, verifiable)
        if not verifiable:
            _refuse_page(response.headers.get_content_type(), url, part)
        length = response.headers.get("Content-Length")
        require_space(part.parent, int(length or 0), url)
        # A weak ETag does not promise equal bytes and is not allowed in If-Range.
        end = str(have + int(length)) if length else ""
        with disk_errors(part):
            write_text(f"{'' if now.startswith('W/') else now}\n{end}", _version_file(part))
        received = _append(response, part, have, int(length) if length else None)
    if length is not None and received != int(length):
        raise http.client.HTTPException(f"the connection broke off after {have + received:,} of {int(end):,} bytes")
    if not verifiable:
        with open(part, "rb") as file:
            start = file.read(len(max(PAGE_STARTS, key=len))).lower()
        if start.startswith(PAGE_STARTS):
            _refuse_page("text/html", url, part)


def _refuse_page(kind: str, url: str, part: Path) -> None:
    """Raise DownloadError for a web page, which a server sends for a refusal or a login, in the place of a file."""
    if kind in ("text/html", "application/xhtml+xml") and Path(part.stem).suffix not in (".html", ".htm"):
        _discard(part)
        raise DownloadError(f"{url}: the server sends a web page instead of the file; open the address in a browser")


def _append(response, part: Path, have: int, length: int | None) -> int:
    from tqdm import tqdm

    total = None if length is None else have + length
    received = 0
    bar = tqdm(
        desc=part.stem,
        initial=have,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        mininterval=0.5,
    )
    with bar, disk_errors(part), open(part, "ab" if have else "wb") as file:
        while chunk := response.read1(CHUNK):  # what has come, so that nothing is lost when no more does
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    return received


def _resumable(part: Path, verifiable: bool) -> tuple[int, str, str]:
    """Bytes that an earlier attempt left, and the server's mark of the version that they belong to and its length.

    Without a mark they can only be trusted when a checksum is going to be compared.
    """
    if not part.exists():
        return 0, "", ""
    noted = _version_file(part).read_bytes().decode("latin1") if _version_file(part).exists() else ""
    version, _, whole = noted.partition("\n")
    return (part.stat().st_size, version, whole) if version or verifiable else (0, "", "")


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFullError when ``folder``'s disk has less than ``needed`` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{what} needs {readable(needed)}, but {folder} has {readable(free)} left; "
            "make room and run the same command again"
        )


def readable(size: float) -> str:
    """``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@contextmanager
def disk_errors(path: Path):
    """Turn a full disk or an exceeded quota while writing ``path`` into DiskFullError."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(f"{path}: {error.strerror}; make room and run the same command again") from error
        raise


@contextmanager
def _locked(part: Path):
    """Keep two commands from writing one file."""
    lock = part.with_name(part.name + ".lock")
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"{part}: another command is downloading this file") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
