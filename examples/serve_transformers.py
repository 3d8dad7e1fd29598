"""Serve a transformers model over HTTP with its internals on the sidecar's /metrics.

    sidecar serve &                                        # the exporter, on port 9478
    python examples/serve_transformers.py sidecar/demo/model
    curl -d 'def main():' localhost:8000                   # a completion
    curl localhost:9478/metrics | grep residual            # what went on inside

Everything of ours is the one line with `attach`.
"""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from transformers import AutoModelForCausalLM, AutoTokenizer

import sidecar.tap


def main(path: str, port: int = 8000) -> None:
    """Load the model at `path` and serve completions until interrupted."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    one_at_a_time = threading.Lock()

    class Completions(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Complete the text in the body by 32 tokens."""
            prompt = self.rfile.read(int(self.headers["Content-Length"])).decode()
            with one_at_a_time:
                tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=32)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(tokenizer.decode(tokens[0], skip_special_tokens=True).encode())

    with (
        sidecar.tap.attach(model, model_name="example"),
        ThreadingHTTPServer(("127.0.0.1", port), Completions) as server,
    ):
        print(f"serving {path} on http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
