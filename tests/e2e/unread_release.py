"""Register the plugin under a vLLM release that nobody has read; print what it says and does."""

import json
import os
import sys
from pathlib import Path

from sidecar.tap.vllm import plugin, releases
from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Status, unpack


def main(path: Path) -> None:
    """Print the status frame that arrives at `path`, and whether vLLM was patched."""
    receiver = Receiver(path)
    os.environ |= {"SIDECAR_TAP": "1", "SIDECAR_SOCKET": str(path)}
    releases.installed_version = lambda: "0.99.0"
    plugin.register()
    data = receiver.receive(10)
    body = unpack(data).body if data else None
    from vllm.v1.worker.worker_base import WorkerWrapperBase  # after, to see it unpatched

    patched = hasattr(WorkerWrapperBase.init_device, "_sidecar_patched")
    found = body if isinstance(body, Status) else Status("starting")
    said = {"state": found.state, "reason": found.reason, "detail": found.detail}
    print(json.dumps(said | {"patched": patched}), flush=True)
    receiver.close()
    os._exit(0)  # vLLM's imports leave threads that are not ours


if __name__ == "__main__":
    main(Path(sys.argv[1]))
