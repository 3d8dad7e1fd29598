"""A stand-in for both servers of the demo: small, quick, and able to misbehave on request.

Run: python fake_server.py PORT [--delay S] [--die S] [--deaf] [--brood]
--delay: seconds before the port is opened. --die: seconds until it ends with status 3.
--deaf: SIGTERM is ignored. --brood: starts a child that ignores SIGTERM too.
"""

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

LAYERS = 3
STATUS = {
    "ready": True,
    "reasons": [],
    "sources": [{"source": "engine-dp0-pp0-tp0", "role": "engine", "state": "live"}],
    "serving": [
        {
            "requests_running": 2,
            "requests_waiting": 0,
            "generated_tokens": 100,
            "ttft_seconds": {"count": 4, "mean": 0.05},
            "time_per_output_token_seconds": {"count": 4, "mean": 0.004},
        }
    ],
}
ROWS = [
    {
        "layer": layer,
        "phase": phase,
        "position": position,
        "signals": {
            "residual_rms": {"mean": 1.5 + layer},
            "residual_peak": {"mean": 7.25},
            "block_influence": {"mean": 0.125},
        },
    }
    for layer in range(LAYERS)
    for phase in ("prefill", "decode")
    for position in ("first", "rest")
]
DRIFT = {"channels": [{"channel": "canary", "state": "armed", "reason": "hard rule only"}]}
DOCUMENTS = {"/v1/status": STATUS, "/v1/layers": {"rows": ROWS}, "/v1/drift": DRIFT}
TAMPERED = {"results": [{"layer": 1, "tensors": ["norm"]}]}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every GET with JSON and every completion with one token."""

    def do_GET(self) -> None:
        self._answer(json.dumps(DOCUMENTS.get(self.path, {})).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/collective_rpc":
            is_known = self.headers["x-llm-internals-demo"] == "the key of this run"
            self._answer(json.dumps(TAMPERED if is_known else {}).encode())
        else:
            self._answer(b"data: {}\n\ndata: [DONE]\n\n" if body["stream"] else b"{}")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing per request."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--die", type=float)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--brood", action="store_true")
    given = parser.parse_args()
    if given.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if given.brood:
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code], process_group=0)
    print("Starting to load model", flush=True)
    if given.die is not None:
        threading.Timer(given.die, end).start()
    time.sleep(given.delay)
    print("Starting vLLM server", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()


def end() -> None:
    print("last words", flush=True)
    os._exit(3)


if __name__ == "__main__":
    main()
