"""CoOp's files on Google Drive: links from CoOp's page, fetched with gdown where that is installed."""

from __future__ import annotations

import re
from pathlib import Path

from dassl_prompts.prepare.download import download
from dassl_prompts.prepare.errors import ByHandError, DownloadError, PrepareError
from dassl_prompts.prepare.sources import COOP_PAGE, COOP_PAGE_FOR_PEOPLE

_NAME_OR_LINK = re.compile(
    r"`(?P<name>[\w.-]+\.(?:json|txt|zip|mat))`"
    r"|https://drive\.google\.com/(?:file/d/|open\?id=|uc\?id=)(?P<id>[\w-]+)"
)


def parse_page(text: str) -> dict[str, str]:
    """File name -> Google Drive id: each link belongs to the file named last before it in its line.

    A name with two different links is left out: a person has to choose.
    """
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        name = None
        for match in _NAME_OR_LINK.finditer(line):
            if match["name"]:
                name = match["name"]
            elif name:
                found.setdefault(name, set()).add(match["id"])
    return {name: ids.pop() for name, ids in found.items() if len(ids) == 1}


class CoopPage:
    """CoOp's page, read once when the first link is asked for.

    Args:
        cache: folder to fetch the page into.
        url: where it is; a path of a local copy works too.
    """

    def __init__(self, cache: Path, url: str = COOP_PAGE):
        self.cache, self.url = cache, url
        self._ids: dict[str, str] | None = None
        self._problem: PrepareError | None = None

    def ids(self) -> dict[str, str]:
        """File name -> Google Drive id.

        Raises:
            PrepareError: the page cannot be fetched; the same error again without another attempt.
        """
        if self._problem:
            raise self._problem
        if self._ids is None:
            try:
                self._ids = parse_page(self._read())
            except PrepareError as error:
                self._problem = error
                raise
        return self._ids

    def _read(self) -> str:
        if "://" not in self.url:
            return Path(self.url).read_text(encoding="utf-8")
        page = download(self.url, self.cache / ".coop_page.md", attempts=2)
        try:
            return page.read_text(encoding="utf-8")
        finally:
            page.unlink()

    def fetch(self, name: str, path: Path) -> None:
        """Fetch the file ``name`` that CoOp's page links into ``path``.

        Raises:
            ByHandError: there is no usable link, or gdown is not installed.
            DownloadError: Google Drive does not hand it out.
        """
        try:
            drive_id = self.ids().get(name)
        except PrepareError as error:
            raise ByHandError(f"{name}: linked from {COOP_PAGE_FOR_PEOPLE} ({error})") from error
        if drive_id is None:
            raise ByHandError(f"{name}: look for it on {COOP_PAGE_FOR_PEOPLE}")
        address = f"https://drive.google.com/file/d/{drive_id}/view"
        try:
            import gdown
        except ModuleNotFoundError:
            raise ByHandError(f"{name}: {address} (or `pip install gdown` and run the same command again)") from None

        path.parent.mkdir(parents=True, exist_ok=True)
        # the names of gdown's errors differ between its versions
        refusals = tuple(e for e in vars(gdown.exceptions).values() if isinstance(e, type) and issubclass(e, Exception))
        try:
            got = gdown.download(id=drive_id, output=str(path), resume=True)
        except (*refusals, OSError) as error:
            raise DownloadError(
                f"{name}: Google Drive refuses {address} to programs ({error}); fetch it by hand"
            ) from error
        if got is None or not path.exists():
            raise DownloadError(f"{name}: Google Drive did not deliver {address}; fetch it by hand")
        _refuse_page(path, address)


def _refuse_page(path: Path, address: str) -> None:
    """Google Drive answers exceeded quotas and missing rights with a web page under the file's name."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        path.unlink()
        raise DownloadError(f"{path.name}: Google Drive answered {address} with a web page; fetch it by hand")
