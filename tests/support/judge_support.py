"""A judge's server that is made here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Answers with what `says` gives, one after the other (the last for ever): a status, or a verdict."""

    def __init__(self) -> None:
        self.says: list[Any] = ["Right. Rating: [[9]]"]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(404, b"{}")

            def do_POST(self) -> None:
                outer.headers.append(self.headers)
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                said = outer.says.pop(0) if len(outer.says) > 1 else outer.says[0]
                if isinstance(said, int):
                    self._send(said, b"no")
                    return
                answer = {"choices": [{"message": {"content": said}}], "usage": {"prompt_tokens": 100}}
                answer["usage"]["completion_tokens"] = 10  # type: ignore[index]
                self._send(200, json.dumps(answer if isinstance(said, str) else said).encode())

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers until the end."""
    made = Server()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()
