"""A hundred requests that may not be answered: paths that lead elsewhere, pictures that are none, bodies that are no questions.

All are harmless: nothing of them is decoded beyond its header, and nothing outside the server is touched.
"""

import base64
import io
import json
import struct
import zlib
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image


class Request(NamedTuple):
    name: str
    method: str
    url: str
    content: bytes = b""
    headers: dict = {}


JSON = {"content-type": "application/json"}
#: none of them is a picture of an index
PATHS = [
    "/etc/passwd",
    "../../../etc/passwd",
    "..\\..\\etc\\passwd",
    "%2e%2e/%2e%2e/etc/passwd",
    "sub/../../secret.png",
    "./0.png",
    "sub//1.png",
    "0.png/",
    "0.png\0.jpg",
    "file:///etc/passwd",
    "http://127.0.0.1/0.png",
    "~/0.png",
    "/proc/self/environ",
    "index.json",
    "a.zip::../../etc/passwd",
    "sent:../../etc/passwd",
    "sent:00000000000000000000000000000000",
    "0.png" * 2000,
    "\ufeff0.png",
    "link.png",
]
ROUTES = [
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/static/../../../etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file=http://127.0.0.1/",
    "/gradio_api/stream/x/y/../../../etc/passwd",
    "/image",
    "/image?path=0.png&size=100000",
    "/image?path=0.png&size=x",
    "/search",
    "/search?text=x&k=0",
    "/search?text=x&k=1000000000000",
    "/search?text=x&weight=nan",
    "/search?text=x&weight=2",
    "/search?text=x&method=magic",
    "/search?text=" + "x" * 3000,
    "/search?text=x&unknown=1",
    "/search?text=%00",
]


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says to have so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def whole(kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(out, kind)
    return out.getvalue()


def pictures() -> dict[str, bytes]:
    """Files that are sent as pictures and are none, or too large ones by their header."""
    good = whole()
    return {
        "nothing": b" ",
        "text": b"no picture at all",
        "cut png": good[: len(good) // 2],
        "cut jpeg": whole("JPEG")[:200],
        "png of 10^10 pixels": png(100_000, 100_000),
        "png of 2^31 pixels": png(2**16, 2**15),
        "png without pixels": png(64, 64),
        "gif of 2^32 pixels": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00\x00\x00;",
        "bmp of 2^60 pixels": b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24) + bytes(24),
        "ppm of 10^12 pixels": b"P6 1000000 1000000 255\n",
        "tiff of nothing": b"II*\x00\x08\x00\x00\x00\x00\x00",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pdf": b"%PDF-1.7\n",
        "zip": b"PK\x05\x06" + bytes(18),
        "html": b"<!doctype html><title>x</title>",
    }


def bodies() -> dict[str, bytes]:
    """Of requests to /search and /classify."""
    return {
        "nothing": b"",
        "no json": b"text=x",
        "cut json": b'{"text": "x"',
        "list": b"[1, 2]",
        "number": b"7",
        "null": b"null",
        "bytes": b"\xff\xfe\x00",
        "deep": b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "unknown key": b'{"text": "x", "shell": "x"}',
        "text is a number": b'{"text": 7}',
        "text is a list": b'{"text": ["x"]}',
        "half a letter": b'{"text": "\\ud800"}',
        "zero byte": b'{"text": "\\u0000"}',
        "long text": json.dumps({"text": "x" * 100_000}).encode(),
        "no question": b"{}",
        "two pictures": json.dumps({"image": "0.png", "picture": "eA=="}).encode(),
        "no base64": b'{"picture": "!!!"}',
        "k is a text": b'{"text": "x", "k": "7"}',
        "weight is NaN": b'{"text": "x", "weight": NaN}',
        "weight is infinite": b'{"text": "x", "weight": 1e999}',
        "too large": b'{"picture": "' + b"A" * (17 << 20) + b'"}',
    }


def requests() -> list[Request]:
    """All hundred."""
    found = [Request(f"image {path[:20]!r}", "GET", f"/image?path={quote(path)}") for path in PATHS]
    found += [Request(f"search {path[:20]!r}", "GET", f"/search?text=x&image={quote(path)}") for path in PATHS]
    found += [Request(f"route {route[:30]!r}", "GET", route) for route in ROUTES]
    for name, content in pictures().items():
        body = json.dumps({"picture": base64.b64encode(content).decode()}).encode()
        found.append(Request(f"picture: {name}", "POST", "/search", body, JSON))
    found += [Request(f"body: {name}", "POST", "/search", content, JSON) for name, content in bodies().items()]
    found += [
        Request("other method", "PUT", "/search", b"{}", JSON),
        Request("removal", "DELETE", "/image?path=0.png"),
        Request("other host", "GET", "/about", headers={"host": "evil.example"}),
    ]
    return found
