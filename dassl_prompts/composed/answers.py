"""Answers to composed questions as plain data: what ``search ask``, an application over HTTP and the page of the demo share."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dassl_prompts.composed.asked_models import load_model, transform_of
from dassl_prompts.composed.index import ImageIndex
from dassl_prompts.composed.query import BASELINES, SUMS, QueryFunction, image_text_sum
from dassl_prompts.features.store import digest_of
from dassl_prompts.images import decode_image, read_bytes
from dassl_prompts.models.tokens import TokenEncoder

#: bytes of references' tokens that are kept, the least recently used go first
KEPT_BYTES = 64 << 20
#: texts whose tokens are kept
KEPT_TEXTS = 64
#: pixels of the largest picture that is decoded for a question, and letters of the longest sentence
MAX_PIXELS, MAX_TEXT = 50_000_000, 2000
#: the columns of an answer
TEXT, IMAGE, COMPOSED = "text", "image", "composed"


class Reference(NamedTuple):
    """A reference image: its pixels, the digest of its file, and its row in the index, None where it is not in it."""

    picture: Image.Image
    digest: bytes
    row: int | None


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        reference, text: one of them at least. method: one of :attr:`Answerer.methods`; "" is that of the index.
        weight: share of the text in a sum, 0 to 1. k: results per column. keep_reference: it may be among them.
    """

    reference: Reference | None = None
    text: str = ""
    method: str = ""
    weight: float = 0.5
    k: int = 10
    keep_reference: bool = False


@dataclass
class Answer:
    """``rows``: (row, score) of the columns that the question allows, best first; ``column``: the one that answers it.

    ``data`` is the same as JSON has it, ``milliseconds`` what took how long.
    """

    column: str
    rows: dict[str, list[tuple[int, float]]]
    data: dict[str, Any] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)


class Method(NamedTuple):
    """``query`` with the towers of ``encoder``; ``weighted`` makes it for a weight."""

    encoder: TokenEncoder
    query: QueryFunction
    weighted: Any = None


class KeptTexts:
    """The text side of an encoder as training-free queries ask it; of the last texts it is kept."""

    def __init__(self, encoder: TokenEncoder):
        self.text_tokens = lru_cache(maxsize=KEPT_TEXTS)(lambda captions: encoder.text_tokens(list(captions)))


class Answerer:
    """An index and the models that it is asked with; may be used by several threads.

    Attributes:
        index: that answers. methods: by name: ``image``, ``text``, sums, and runs by the name of their method (with the
            folder's, where several have it). default: the one of the index.
    """

    def __init__(self, index: ImageIndex, model: dict, runs: Sequence[str] = (), device="cpu"):
        self.index, self.device = index, device
        self.orientation = index.manifest["settings"]["orientation"]
        self.encoder, query, ratio = load_model(model, device)
        self.require_towers(self.encoder, model.get("run") or model["backbone"])
        self.transform = transform_of(self.encoder, ratio)
        self.texts = KeptTexts(self.encoder)
        self.methods = {name: Method(self.encoder, make(self.texts)) for name, make in BASELINES.items()}
        for name, first in SUMS.items():
            self.methods[name] = self.methods[name]._replace(weighted=self.weighted_sum(first))
        self.default = model.get("query", "")
        if model.get("run"):
            self.default = self.add_run(model["run"], self.encoder, query)
        for run in runs:
            encoder, query, _ = load_model({"run": run}, device)
            self.require_towers(encoder, run)
            self.default = self.add_run(run, encoder, query)
        self.kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self.lock = threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, runs: Sequence[str] = ()) -> Answerer:
        """The index in a folder with its own model, on the GPU where there is one; with ``runs`` the last of them is the default.

        Raises:
            FileNotFoundError, ValueError: no index, a damaged one, no such model, or one with other towers than the index has.
        """
        index = ImageIndex.open(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(index, index.manifest["model"], runs, device)

    def require_towers(self, encoder: TokenEncoder, name: str) -> None:
        if encoder.image_fingerprint() != self.index.manifest["settings"]["weights"]:
            raise ValueError(f"{self.index.folder} was made with other weights than {name} has now: index again")

    def add_run(self, run: str, encoder: TokenEncoder, query: QueryFunction) -> str:
        """Take in the query of a run; returns its name."""
        from dassl_prompts.engine import PromptTrainer

        name = PromptTrainer.read_run(run)["trainer"]
        name = name if name not in self.methods else f"{name} {os.path.basename(os.path.abspath(run))}"
        number = 2
        while name in self.methods:
            name, number = f"{name.split(' #')[0]} #{number}", number + 1
        self.methods[name] = Method(encoder, query)
        return name

    def weighted_sum(self, normalize_first: bool):
        return lambda weight: image_text_sum(self.texts, normalize_first, weight)

    # -- references ------------------------------------------------------------------------------------------

    def reference_of_file(self, path: str) -> Reference:
        """A file, or a member of an archive.

        Raises:
            OSError: it cannot be read as a picture.
        """
        return self._reference(read_bytes(path), path, self.index.table.find(absolute(path)))

    def reference_of_bytes(self, content: bytes) -> Reference:
        """A file's content that somebody sent.

        Raises:
            ImageReadError: it is no picture, or one with more than :data:`MAX_PIXELS`.
        """
        return self._reference(content, "(sent)", None)

    def reference_of_shown(self, shown: str) -> Reference:
        """A picture of the index by the path that answers have.

        Raises:
            KeyError: the index has no such picture.
        """
        row = self.row_of(shown)
        return self._reference(read_bytes(self.index.table.path(row)), shown, row)

    def row_of(self, shown: str) -> int:
        """The row of a picture by the path that answers have.

        Raises:
            KeyError: the index has no such picture.
        """
        row = self.index.table.find_shown(shown)
        if row is None:
            raise KeyError(f"the index has no picture {shown[:200]!r}")
        return row

    def _reference(self, content: bytes, name: str, row: int | None) -> Reference:
        return Reference(decode_image(content, name, self.orientation, MAX_PIXELS), digest_of(content), row)

    # -- questions -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, question: Question) -> Answer:
        """The best images by the text alone, the reference alone and both, as far as the question has them.

        Raises:
            ValueError: it has neither, or a value that cannot be; says what can.
        """
        name = self.check(question)
        times: dict[str, float] = {}
        reference = question.reference
        hidden = [reference.row] if reference and reference.row is not None and not question.keep_reference else []
        with self.lock:  # all processors for one question, then for the next
            with timed(times, "encode"):
                queries = self.queries(question, self.methods[name])
            with timed(times, "search"):
                found = dict(zip(queries, self.index.search(torch.cat(list(queries.values())), question.k, hidden)))
        column = COMPOSED if reference and question.text else TEXT if question.text else IMAGE
        return Answer(column, found, self.data(question, name, found), times)

    def check(self, question: Question) -> str:
        """The name of the method that a question asks for."""
        name = question.method or self.default
        if name not in self.methods:
            raise ValueError(f"there is no method {name[:80]!r}; there are {', '.join(map(repr, self.methods))}")
        if question.reference is None and not question.text.strip():
            raise ValueError("a question needs an image, a text, or both")
        if len(question.text) > MAX_TEXT:
            raise ValueError(f"the text has {len(question.text):,} letters, the limit is {MAX_TEXT:,}")
        if not 0 <= question.weight <= 1 or math.isnan(question.weight):
            raise ValueError(f"the weight is {question.weight}; give a number from 0 to 1")
        if question.k < 1:
            raise ValueError(f"k is {question.k}; ask for at least one result")
        return name

    def queries(self, question: Question, method: Method) -> dict[str, Tensor]:
        """Query features [1, d] of the columns."""
        queries, texts = {}, (question.text,)
        nothing = torch.zeros(1, 1, self.encoder.width, device=self.device)
        if question.text.strip():
            queries[TEXT] = self.methods["text"].query(texts, nothing)
        if question.reference:
            tokens = self.tokens(question.reference)
            queries[IMAGE] = self.methods["image"].query(texts, tokens)
            if TEXT in queries:
                query = method.weighted(question.weight) if method.weighted else method.query
                queries[COMPOSED] = query(texts, tokens)
        return {column: query.float().cpu() for column, query in queries.items()}

    def tokens(self, reference: Reference) -> Tensor:
        """Token map [1, n, d] of a reference; all methods have the same image tower."""
        tokens = self.kept.pop(reference.digest, None)
        if tokens is None:
            pixels = self.transform(reference.picture)[None].to(self.device)
            tokens = self.encoder.image_tokens(pixels).float()
        self.kept[reference.digest] = tokens
        while len(self.kept) > 1 and sum(kept.nbytes for kept in self.kept.values()) > KEPT_BYTES:
            self.kept.popitem(last=False)
        return tokens

    def data(self, question: Question, name: str, found: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
        """The answer as JSON has it; a column that the question does not allow is null."""
        table, reference = self.index.table, question.reference
        asked = {
            "image": None if reference is None or reference.row is None else printable(table.shown(reference.row)),
            "digest": reference.digest.hex() if reference else None,
            "text": question.text,
            "method": name,
            "weight": question.weight if self.methods[name].weighted else None,
            "k": question.k,
        }
        columns = {
            column: [
                {"rank": rank, "path": printable(table.shown(row)), "score": round(score, 6)}
                for rank, (row, score) in enumerate(found[column], 1)
            ]
            if column in found
            else None
            for column in (TEXT, IMAGE, COMPOSED)
        }
        return {"question": asked, "answers": columns}


def absolute(path: str) -> str:
    """Of a file, or a member of an archive."""
    archive, separator, member = path.partition("::")
    return os.path.abspath(archive) + separator + member


def printable(path: str) -> str:
    """A path in which bytes that are no text are shown as such."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def timed(times: dict[str, float], name: str):
    """Note how many milliseconds the block took."""
    began = time.perf_counter()
    yield
    times[name] = 1000 * (time.perf_counter() - began)
