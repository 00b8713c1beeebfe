"""What can go wrong while getting data; every kind has an exit code of its own."""

from __future__ import annotations


class PrepareError(Exception):
    """Base class; ``exit_code`` is what the command ends with."""

    exit_code = 1


class ByHandError(PrepareError):
    """Something has to be fetched by a person; the message says what, from where and where to put it."""

    exit_code = 3


class DownloadError(PrepareError):
    """A server could not be reached or did not deliver."""

    exit_code = 4


class ChecksumError(PrepareError):
    """A file arrived whole but is not the published one."""

    exit_code = 5


class DiskFullError(PrepareError):
    """Not enough room; what has been downloaded stays and is continued by the next run."""

    exit_code = 6


class ArchiveError(PrepareError):
    """An archive is damaged, lacks what it should hold, or would write outside its folder."""

    exit_code = 7


class CheckError(PrepareError):
    """A dataset is there but not as it should be."""

    exit_code = 8
