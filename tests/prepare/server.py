"""A local web server that misbehaves on request."""

import re
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Files of a server and how it serves them.

    Attributes:
        files: path -> content.
        etags: path -> version mark; absent means that the server gives none.
        cut_after: path -> numbers of bytes after which the next connections break off.
        status: path -> error codes that the next requests get.
        ranges: whether parts can be asked for. if_range: whether the server knows If-Range.
        types: path -> Content-Type. stall: path -> numbers of bytes after which the next connections send nothing more.
        requests: (path, Range header) of every request.
    """

    def __init__(self):
        self.files, self.etags, self.cut_after, self.status = {}, {}, {}, {}
        self.ranges, self.if_range, self.requests, self.address = True, True, [], ""
        self.types, self.stall = {}, {}

    def url(self, path):
        return f"{self.address}{path}"


@contextmanager
def serve():
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            site.requests.append((self.path, asked))
            if site.status.get(self.path):
                return self.send_error(site.status[self.path].pop(0))
            if self.path not in site.files:
                return self.send_error(404)
            body, tag = site.files[self.path], site.etags.get(self.path)
            start = 0
            if asked and site.ranges and (not site.if_range or self.headers.get("If-Range", tag) == tag):
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if tag:
                self.send_header("ETag", tag)
            if self.path in site.types:
                self.send_header("Content-Type", site.types[self.path])
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            cuts = site.cut_after.get(self.path)
            if site.stall.get(self.path):
                self.wfile.write(body[start : start + site.stall[self.path].pop(0)])
                self.wfile.flush()
                return time.sleep(2)
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that was interrupted
                self.wfile.write(body[start : start + cuts.pop(0)] if cuts else body[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
