"""The demo with small fakes for both servers, as a process that a test can signal.

Run: python fake_demo.py VLLM_PORT SIDECAR_PORT CACHE [--seconds N] [--grace S] [--vllm=FLAGS]
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sidecar.demo import processes, session, traffic
from sidecar.demo.options import Options
from sidecar.demo.processes import Service

FAKE_SERVER = Path(__file__).with_name("fake_server.py")


def fakes(options: Options, run_dir: Path, flags: Sequence[str]) -> Sequence[Service]:
    (run_dir / "ingest.sock").touch()
    (run_dir / "tamper.key").write_text("the key of this run")
    named = (("sidecar", options.metrics_url, ()), ("vLLM", options.vllm_url, flags))
    return [
        Service(
            name=name,
            command=(sys.executable, str(FAKE_SERVER), url.rpartition(":")[2], *extra),
            environment=dict(os.environ),
            log=options.cache / f"{name}.log",
            ready=f"{url}/health",
        )
        for name, url, extra in named
    ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("sidecar_port", type=int)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--grace", type=float, default=processes.GRACE_SECONDS)
    parser.add_argument("--vllm", type=str.split, default=[])
    given = parser.parse_args()
    processes.GRACE_SECONDS = given.grace
    pool = traffic.Pool("shared ", ("one", "two"))
    traffic.pools = lambda seed: {"prose": pool}  # the corpus takes seconds to parse
    options = Options(
        port=given.port,
        metrics_port=given.sidecar_port,
        api_port=given.sidecar_port,
        rate=20.0,
        seconds=given.seconds,
        cache=given.cache,
        start_seconds=30.0,
    )
    return session.run(options, lambda options, run_dir: fakes(options, run_dir, given.vllm))


if __name__ == "__main__":
    sys.exit(main())
