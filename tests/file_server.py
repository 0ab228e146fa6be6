"""A small HTTP server on 127.0.0.1 that behaves, or misbehaves, as a test wants."""

import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_BLOCK = 1 << 16


@dataclass
class FileServer:
    """Serves bytes by path.

    Attributes:
        files: content by path, such as "/a.pth".
        cut: {path: n}: how many bytes come before the connection ends, for the first request.
        redirects: {path: address}.
        ranges: whether a request for the rest of a file is understood.
        pause: seconds between two blocks of 64 kB.
        requests: (path, Range header or "") of everything that was asked for.
        port: where it listens.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    pause: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    def _handler(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range", "")
                owner.requests.append((self.path, wanted))
                if self.path in owner.redirects:
                    self.send_response(302)
                    self.send_header("Location", owner.redirects[self.path])
                    self.end_headers()
                    return
                if self.path not in owner.files:
                    self.send_error(404)
                    return
                content = owner.files[self.path]
                start = 0
                if wanted and owner.ranges:
                    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                    if start >= len(content):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    size = len(content)
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = owner.cut.pop(self.path, len(content))
                for first in range(start, end, _BLOCK):
                    try:
                        self.wfile.write(content[first : min(first + _BLOCK, end)])
                    except OSError:  # whoever asked is gone
                        return
                    time.sleep(owner.pause)

            def log_message(self, *_):
                pass

        return Handler
