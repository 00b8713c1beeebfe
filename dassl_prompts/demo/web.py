"""The service over HTTP: JSON in and out, everything bounded, one line for whatever is wrong (docs/demo.md)."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio.to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import dassl_prompts
from dassl_prompts.composed.answers import MAX_TEXT
from dassl_prompts.demo.classify import MAX_CLASSES, MAX_NAME
from dassl_prompts.demo.service import MAX_BYTES, SIDES, NotFound, Service
from dassl_prompts.images import ImageReadError

#: bytes of a request: a picture in base64 and what stands around it
MAX_BODY = MAX_BYTES * 4 // 3 + (1 << 16)
MAX_RESULTS, MAX_PATH = 200, 4096
#: that answer requests
THREADS = 2 * (os.cpu_count() or 1)
#: addresses of Gradio's for files, for what it fetches from elsewhere, and for its own development
ELSEWHERE = re.compile(
    r"(file|proxy)\s*=|/(file|stream|custom_component|component_server|deep_link|dev|monitoring|profiling|process_recording"
    r"|run-history|(undo-)?vibe-[a-z-]+)(/|$)"
)
#: names under which a browser on this machine reaches a server that only listens to it
LOCAL = ("127.0.0.1", "localhost")


def writable(text: str) -> str:
    """Text that JSON and a tokeniser can take.

    Raises:
        ValueError: it holds half of a surrogate pair, or a zero byte.
    """
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("it holds characters that are no text")
    return text


Text = Annotated[str, AfterValidator(writable)]
Number = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class SearchRequest(BaseModel):
    """A question: a text, a reference, or both. ``image``: path of a picture of the index; ``picture``: a file in base64."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Text = Field("", max_length=MAX_TEXT)
    image: Text = Field("", max_length=MAX_PATH)
    picture: str = Field("", max_length=MAX_BODY)
    method: Text = Field("", max_length=200)
    weight: Number = 0.5
    k: int = Field(10, ge=1, le=MAX_RESULTS)


class ClassifyRequest(BaseModel):
    """A picture for a run ("" is the first). ``classes``: what to tell apart, none for those of the training."""

    model_config = ConfigDict(extra="forbid", strict=True)

    run: Text = Field("", max_length=200)
    image: Text = Field("", max_length=MAX_PATH)
    picture: str = Field("", max_length=MAX_BODY)
    classes: list[Annotated[Text, Field(max_length=MAX_NAME)]] = Field([], max_length=MAX_CLASSES)
    top: int = Field(5, ge=1, le=MAX_CLASSES)


def build_app(service: Service, hosts: tuple[str, ...] = LOCAL) -> FastAPI:
    """The application with ``/search``, ``/classify``, ``/image`` and ``/about``.

    Args:
        hosts: names of this server in requests, so that a page of somebody else's cannot reach it by a name of its own; ("*",)
            for any.
    """
    app = FastAPI(
        title="dassl-prompts", version=dassl_prompts.__version__, docs_url=None, redoc_url=None, lifespan=few_threads
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Bounded, limit=MAX_BODY)

    @app.get("/about")
    def about() -> dict[str, Any]:
        """What can be asked."""
        answerer = service.answerer
        return {
            "images": len(answerer.index),
            "methods": list(answerer.methods),
            "default": answerer.default,
            "runs": list(service.classifiers),
        }

    @app.get("/search")
    def search_by_address(question: Annotated[AddressedQuestion, Query()]) -> Response:
        """A question about a picture of the index, or a text alone."""
        return answered(service, question.image, question)

    @app.post("/search")
    def search(question: SearchRequest) -> Response:
        """A question about a picture of the index or one that is sent, or a text alone."""
        return answered(service, picture_of(service, question), question)

    @app.post("/classify")
    def classify(request: ClassifyRequest) -> dict[str, Any]:
        """The likeliest classes of a picture."""
        image = picture_of(service, request)
        if not image:
            raise ValueError("give `image`, a path in the index, or `picture`, a file in base64")
        return service.classify(request.run, image, request.classes, request.top)

    @app.get("/image")
    def image(path: Annotated[Text, Query(max_length=MAX_PATH)], size: int = SIDES[0]) -> Response:
        """A picture of the index, scaled down."""
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(service.thumbnail(path, size), media_type="image/png", headers=headers)

    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


@asynccontextmanager
async def few_threads(app: FastAPI) -> AsyncIterator[None]:
    """Answer by few threads: each holds memory of its own, and more than there are processors wait for each other anyway."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


class AddressedQuestion(BaseModel):
    """:class:`SearchRequest` in the address: without ``picture``."""

    model_config = ConfigDict(extra="forbid")

    text: Text = Field("", max_length=MAX_TEXT)
    image: Text = Field("", max_length=MAX_PATH)
    method: Text = Field("", max_length=200)
    weight: Number = 0.5
    k: int = Field(10, ge=1, le=MAX_RESULTS)


def picture_of(service: Service, request: SearchRequest | ClassifyRequest) -> str:
    """The name of the picture that a request is about, "" for none."""
    if request.image and request.picture:
        raise ValueError("give `image` or `picture`, not both")
    if not request.picture:
        return request.image
    try:
        return service.keep(base64.b64decode(request.picture, validate=True))
    except binascii.Error:
        raise ValueError("`picture` is not base64") from None


def answered(service: Service, image: str, question: SearchRequest | AddressedQuestion) -> Response:
    """The answer as `search ask --json` prints it; how long it took stands in the header."""
    answer, _ = service.search(image, question.text, question.method, question.weight, question.k)
    timing = ", ".join(f"{name};dur={value:.1f}" for name, value in answer.milliseconds.items())
    return JSONResponse(answer.data, headers={"Server-Timing": timing})


# -- what is wrong -------------------------------------------------------------------------------------------


def refusal(status: int, line: object) -> JSONResponse:
    """One line of bounded length, as JSON."""
    text = " ".join(str(line).encode("utf-8", "replace").decode().split())
    return JSONResponse({"error": text[:500]}, status)


async def wrong_value(request: Request, error: Exception) -> Response:
    return refusal(400, error)


async def not_found(request: Request, error: Exception) -> Response:
    return refusal(404, error)


async def not_a_picture(request: Request, error: Exception) -> Response:
    return refusal(422, error)


async def not_understood(request: Request, error: Exception) -> Response:
    first = error.errors()[0]
    place = ".".join(map(str, first.get("loc", ())[1:]))
    return refusal(422, f"{place or 'the request'}: {first.get('msg', 'not understood')}")


async def refused(request: Request, error: Exception) -> Response:
    return refusal(error.status_code, error.detail)


async def our_fault(request: Request, error: Exception) -> Response:
    """The traceback is for the server's owner alone."""
    traceback.print_exception(error, file=sys.stderr)
    return refusal(500, "an error of the server, whose log says more")


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    ImageReadError: not_a_picture,
    NotFound: not_found,
    ValueError: wrong_value,
    RequestValidationError: not_understood,
    HTTPException: refused,
    Exception: our_fault,
}


class Bounded:
    """Refuses requests with more than ``limit`` bytes, whatever their header says, before anything is made of them; and those
    by which Gradio would send files of its own or fetch what lies elsewhere, which the page does not need.
    """

    def __init__(self, app, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if ELSEWHERE.search(scope["path"]):
            await self.refuse(send, 403, "no files are served under this address")
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told[:20]) > self.limit:
            await self.refuse_length(receive, send)
            return
        seen, answering = 0, False

        async def counted():
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise TooLarge
            return message

        async def noticed(message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self.app(scope, counted, noticed)
        except TooLarge:
            if not answering:
                await self.refuse_length(receive, send)

    async def refuse_length(self, receive, send) -> None:
        """Many clients read no answer before they have sent everything: some more of it is taken and dropped."""
        dropped, more = 0, True
        while more and dropped < 8 * self.limit:
            message = await receive()
            dropped += len(message.get("body", b""))
            more = message.get("more_body", False)
        await self.refuse(send, 413, f"the request has more than {self.limit:,} bytes, the limit")

    async def refuse(self, send, status: int, line: str) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": line}).encode()})


class TooLarge(Exception):
    """A request went over the limit while it was read."""
