"""What the page and HTTP answer, as plain data and without web code: questions to an index, pictures to trained runs."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache

from PIL import Image

from dassl_prompts.composed.answers import Answer, Answerer, Question, Reference
from dassl_prompts.composed.index_table import place_of
from dassl_prompts.demo.classify import Classifier
from dassl_prompts.features.store import digest_of
from dassl_prompts.images import decode_image, read_image, split_member

#: bytes of a picture that somebody sends, and pixels of what is decoded of it
MAX_BYTES, MAX_PIXELS = 12 << 20, 40_000_000
#: pictures that somebody sent and that may be asked about again, the least recently used go first; bytes of all of them
KEPT_SENT, KEPT_BYTES = 64, 64 << 20
#: sides of the pictures that answers show
SIDES = (128, 256)
#: names a picture that was sent, before its digest
SENT = "sent:"


class NotFound(LookupError):
    """There is no such picture, run or method."""


class Service:
    """One index, trained classifiers, and pictures that were sent; may be used by several threads.

    Args:
        answerer: of the index. classifiers: trained runs. targets: the right answers of questions, by (reference, text).
    """

    def __init__(
        self,
        answerer: Answerer,
        classifiers: Sequence[Classifier] = (),
        targets: Mapping[tuple[str, str], list[str]] | None = None,
    ):
        self.answerer, self.targets = answerer, targets or {}
        self.classifiers: dict[str, Classifier] = {}
        for one in classifiers:
            number = 2
            while one.name in self.classifiers:
                one.name, number = f"{one.name.split(' #')[0]} #{number}", number + 1
            self.classifiers[one.name] = one
        self.sent: OrderedDict[str, bytes] = OrderedDict()
        self.lock = threading.Lock()
        #: large pictures and products of large matrices: no more at a time than there are processors
        self.working = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))
        self.thumbnail = lru_cache(maxsize=1024)(self._thumbnail)

    # -- pictures --------------------------------------------------------------------------------------------

    def keep(self, content: bytes) -> str:
        """Keep a picture that was sent; returns the name under which questions refer to it.

        Raises:
            ValueError: too many bytes. ImageReadError: no picture, or too many pixels.
        """
        if len(content) > MAX_BYTES:
            raise ValueError(f"the picture has {len(content):,} bytes, the limit is {MAX_BYTES:,}")
        with self.working:
            decode_image(content, "(sent)", max_pixels=MAX_PIXELS)
        name = f"{SENT}{digest_of(content).hex()}"
        with self.lock:
            self.sent[name] = content
            self.sent.move_to_end(name)
            while len(self.sent) > KEPT_SENT or sum(map(len, self.sent.values())) > max(KEPT_BYTES, len(content)):
                self.sent.popitem(last=False)
        return name

    def content_of(self, name: str) -> bytes:
        """A picture that was sent.

        Raises:
            NotFound: it was not, or long ago.
        """
        with self.lock:
            if name not in self.sent:
                raise NotFound("the picture that was sent is not kept any more: send it again")
            self.sent.move_to_end(name)
            return self.sent[name]

    def reference(self, name: str) -> Reference:
        """A picture of the index by its path in answers, or one that was sent.

        Raises:
            NotFound: there is none.
        """
        if name.startswith(SENT):
            return self.answerer.reference_of_bytes(self.content_of(name))
        self.require_inside(name)
        try:
            return self.answerer.reference_of_shown(name)
        except FileNotFoundError:
            raise NotFound(f"the picture {name[:200]!r} is not there any more") from None

    def require_inside(self, shown: str) -> str:
        """The path of a picture of the index; links that lead out of its folders are not followed.

        Raises:
            NotFound: there is none.
        """
        table = self.answerer.index.table
        row = table.find_shown(shown)
        if row is not None:
            path = table.path(row)
            roots = [os.path.realpath(place_of(start)) for start in table.starts]
            real = os.path.realpath(split_member(path)[0])
            if any(real == root or real.startswith(os.path.join(root, "")) for root in roots):
                return path
        raise NotFound(f"the index has no picture {shown[:200]!r}")

    def _thumbnail(self, name: str, side: int) -> bytes:
        """A picture as PNG, scaled to fit into a square.

        Raises:
            NotFound: there is none. ImageReadError: it cannot be read. ValueError: another side than those of :data:`SIDES`.
        """
        if side not in SIDES:
            raise ValueError(f"size is {side}; choose {' or '.join(map(str, SIDES))}")
        orientation = self.answerer.orientation
        with self.working:
            if name.startswith(SENT):
                picture = decode_image(self.content_of(name), "(sent)", orientation, MAX_PIXELS)
            else:
                try:
                    picture = read_image(self.require_inside(name), orientation)
                except FileNotFoundError:
                    raise NotFound(f"the picture {name[:200]!r} is not there any more") from None
            return scaled(picture, side)

    # -- answers ---------------------------------------------------------------------------------------------

    def search(
        self, image: str = "", text: str = "", method: str = "", weight: float = 0.5, k: int = 10
    ) -> tuple[Answer, list[str]]:
        """The answer to a question, and the right pictures where they are known.

        Raises:
            ValueError, NotFound: it cannot be answered; says why.
        """
        with self.working:
            reference = self.reference(image) if image else None
            answer = self.answerer.answer(Question(reference, text, method, weight, k))
        return answer, self.targets.get((image, text.strip()), [])

    def classify(self, run: str, image: str, classes: Sequence[str] = (), top: int = 5) -> dict:
        """See :meth:`~dassl_prompts.demo.classify.Classifier.answer`; "" is the first run.

        Raises:
            ValueError, NotFound: it cannot be answered; says why.
        """
        classifier = self.classifier(run)
        with self.working:
            return classifier.answer(self.reference(image).picture, classes, top)

    def classifier(self, run: str) -> Classifier:
        """A run by its name.

        Raises:
            NotFound: there is none.
        """
        if not self.classifiers:
            raise NotFound("no trained run was given: start with --classify RUN_DIR")
        run = run or next(iter(self.classifiers))
        if run not in self.classifiers:
            raise NotFound(f"there is no run {run[:200]!r}; there are {', '.join(map(repr, self.classifiers))}")
        return self.classifiers[run]


def scaled(picture: Image.Image, side: int) -> bytes:
    """A PNG that fits into a square of ``side`` pixels; small pictures stay as they are."""
    copy = picture.copy()
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return png(copy)


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
