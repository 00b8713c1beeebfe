"""``Datum``: what datasets are made of, and what few-shot caches hold."""

from __future__ import annotations


class Datum:
    """One image with its label.

    Whether the file exists is not checked here (Dassl asserts it, one ``stat`` per image) but when the image
    is read.

    Args:
        impath: path of the image.
        label: class label, 0-based.
        domain: domain label.
        classname: class name.
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""):
        if not isinstance(impath, str):
            raise TypeError(f"impath must be a string, got {impath!r}")
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname

    def __repr__(self) -> str:
        return f"Datum({self.impath!r}, label={self.label}, classname={self.classname!r})"
