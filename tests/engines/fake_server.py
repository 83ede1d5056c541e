"""A real server on loopback that misbehaves as told, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Said:
    """One answer of the server: status, body (None: a chat completion of `text`), headers, and how late."""

    text: str = "fine"
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    finish: str = "stop"
    message: dict[str, Any] = field(default_factory=dict)

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.text, **self.message}
        return json.dumps(
            {
                "choices": [{"message": message, "finish_reason": self.finish}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3},
            }
        ).encode()


@dataclass
class Asked:
    """What came in: path, headers, JSON, and how many requests were under way."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    under_way: int


class Server:
    """Answer by a function of the request; keep everything asked."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Said]) -> None:
        self.asked: list[Asked] = []
        self._answer = answer
        self._under_way = 0
        self._lock = threading.Lock()
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self._under_way += 1
            self.asked.append(Asked(handler.path, dict(handler.headers), body, self._under_way))
            said = self._answer(body, len(self.asked))
        time.sleep(said.seconds)
        with self._lock:
            self._under_way -= 1
        content = said.content()
        handler.send_response(said.status)
        for name, value in said.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Said]) -> Iterator[Server]:
    """Serve on a free port of this machine."""
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up waiting
                server.handle(self)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
