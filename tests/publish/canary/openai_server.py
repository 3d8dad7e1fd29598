"""A stand-in for vLLM's OpenAI server: real HTTP, and able to misbehave on request."""

import http.server
import json
import threading
import time
from typing import Any, Self


class OpenAiServer:
    """Answers completions and keeps their bodies.

    fails: (status, body) to answer completions with instead. delay: seconds before an answer.
    garbage: bytes sent instead of an answer, without HTTP. key: what clients have to bring.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.fails: tuple[int, bytes] | None = None
        self.fails_every = 1
        self.delay = 0.0
        self.garbage = b""
        self.key = ""
        self.models: Any = {"data": [{"id": "tiny"}, {"id": "adapter"}]}
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._released = threading.Event()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.answer(self, 200, json.dumps(fake.models).encode())

            def do_POST(self) -> None:
                fake.take(self)

            def log_message(self, *args: object) -> None:
                """Say nothing per request."""

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Root of the API."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, handler: Any) -> None:
        """One completion."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.times.append(time.monotonic())
            number = len(self.bodies)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._reply(handler, number)
        finally:
            with self._lock:
                self._at_once -= 1

    def _reply(self, handler: Any, number: int) -> None:
        self._released.wait(self.delay)
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            self.answer(handler, 401, b'{"error": "Unauthorized"}')
        elif self.garbage:
            handler.wfile.write(self.garbage)
            handler.close_connection = True
        elif self.fails and number % self.fails_every == 0:
            self.answer(handler, *self.fails)
        else:
            self.answer(handler, 200, b'{"choices": [{"text": "x"}]}')

    @staticmethod
    def answer(handler: Any, status: int, body: bytes) -> None:
        """One answer; a client that has gone is nobody's error."""
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            handler.close_connection = True
