"""The whole of what an operator has, once for a session of tests.

A real vLLM with the tap under the demo's traffic, the sidecar with the demo's preset and a canary,
a real Prometheus that scrapes both and judges dashboards/rules.yml, a real Alertmanager, and at the
two ends a pager (webhook) and an OTLP receiver. Everything is on loopback. Prometheus scrapes and
judges every two seconds, and Alertmanager does not wait to group; the rules, their `for` and the
inhibitions are as shipped.
"""

import asyncio
import json
import secrets
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from sidecar.config import ExporterConfig
from sidecar.demo import corpus, gate, services, tampering, traffic
from tests.e2e.harness import CANARY_SECRET, ROOT, Stack, get_json, wait_for
from tests.monitoring import Alertmanager, Job, Pager, Prometheus
from tests.otlp import OtlpReceiver

RULES = ROOT / "dashboards" / "rules.yml"
ROUTES = ROOT / "dashboards" / "alertmanager.yml"
NAMESPACE, POD = "llm", "tiny-0"  # as a PodMonitor would label both containers of one pod
RATE = 2.0  # requests a second
ARM_SECONDS = 1200.0  # some 100 on a quiet machine


@dataclass
class Traffic:
    """The demo's requests, sent from a thread until `stop`."""

    url: str
    tally: traffic.Tally = field(default_factory=traffic.Tally)

    def start(self) -> "Traffic":
        """Draw the prompts and begin; the first request is sent some seconds later."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._over = threading.Event()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more; requests on their way are dropped."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._send())

    async def _send(self) -> None:
        stream = traffic.requests(traffic.pools(0), 0)
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            sending = asyncio.create_task(
                traffic.send(client, stream, services.SERVED_NAME, RATE, self.tally)
            )
            await asyncio.to_thread(self._over.wait)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@dataclass
class Strike:
    """What was done to the model: its `layer`, the names of the tensors in it, and when (Unix)."""

    layer: int
    tensors: list[str]
    at: float


class Observatory:
    """See the module; its parts are attributes: stack, prometheus, alertmanager, pager, otlp."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tamper_key = secrets.token_hex(32)
        self._started: list[Any] = []
        self.otlp = self._end_later(OtlpReceiver())
        self.pager = self._end_later(Pager())
        self.stack = Stack(folder, args=_ARGS, metrics_file=None)
        self.stack.environ.update(_environ(folder, self.stack.url, self.otlp.endpoint))
        (folder / "tamper.key").write_text(self._tamper_key)
        (folder / "canary.key").write_bytes(CANARY_SECRET)
        self.alertmanager = Alertmanager(folder / "alertmanager", self._routes(folder))
        self.prometheus = Prometheus(folder / "prometheus", _jobs(self.stack), (RULES,))
        self.traffic = Traffic(self.stack.url)

    def start(self) -> "Observatory":
        """Start everything; returns when vLLM serves and Prometheus has scraped both."""
        self._end_later(self.stack).start()
        self._end_later(self.alertmanager).start()
        self.prometheus.alertmanager = self.alertmanager.address
        self._end_later(self.prometheus).start()
        self._end_later(self.traffic).start()
        self.prometheus.wait_for('count(up{job=~"vllm|sidecar"} == 1) == 2')
        return self

    def stop(self) -> None:
        """End everything, the last first."""
        while self._started:
            self._started.pop().stop()

    def drift(self) -> dict[str, dict[str, Any]]:
        """Channels of /v1/drift by name."""
        channels = get_json(f"{self.stack.api_url}/v1/drift")["channels"]
        return {each["channel"]: each for each in channels}

    def wait_until_armed(self) -> None:
        """Return once the canary channel has learnt what is benign, and is quiet."""
        wait_for(
            lambda: self.drift().get("canary", {}).get("state") == "armed",
            "the canary is armed",
            ARM_SECONDS,
            every=1.0,
        )

    def tamper(self) -> Strike:
        """Change weights of the model that is being served; there is no way back."""
        request = urllib.request.Request(
            f"{self.stack.url}/collective_rpc",
            json.dumps({"method": tampering.METHOD}).encode(),
            {"Content-Type": "application/json", gate.HEADER: self._tamper_key},
        )
        at = time.time()
        with urllib.request.urlopen(request, timeout=120) as answer:
            told = json.load(answer)["results"][0]
        return Strike(told["layer"], told["tensors"], at)

    def _routes(self, folder: Path) -> Path:
        """The example that is shipped; both receivers are the pager, and nothing waits."""
        config = yaml.safe_load(ROUTES.read_text())
        for route in (config["route"], *config["route"]["routes"]):
            route |= {"group_wait": "0s", "group_interval": "1s"}
        for receiver in config["receivers"]:
            receiver["webhook_configs"] = [{"url": self.pager.url}]
        file = folder / "alertmanager.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        return file

    def _end_later(self, part: Any) -> Any:
        self._started.append(part)
        return part


_ARGS = ("--worker-extension-cls", tampering.EXTENSION, "--middleware", gate.MIDDLEWARE)


def _environ(folder: Path, vllm_url: str, otlp_endpoint: str) -> dict[str, str]:
    known = ExporterConfig.model_fields
    return {
        "SIDECAR_PRESET": "demo",
        "SIDECAR_STATE_DIR": str(folder / "state"),
        "SIDECAR_ROUTES": ",".join(corpus.DOMAINS),
        "SIDECAR_CANARY_URL": vllm_url,
        "SIDECAR_CANARY_MODEL": services.SERVED_NAME,
        "SIDECAR_CANARY_KEY_FILE": str(folder / "canary.key"),
        **services.CANARY,
        "VLLM_SERVER_DEV_MODE": "1",  # without it nobody could tamper
        gate.KEY_FILE: str(folder / "tamper.key"),
        **({"SIDECAR_OTLP_ENDPOINT": otlp_endpoint} if "otlp_endpoint" in known else {}),
        **({"SIDECAR_OTLP_INSECURE": "1"} if "otlp_insecure" in known else {}),
    }


def _jobs(stack: Stack) -> list[Job]:
    of_the_pod = {"namespace": NAMESPACE, "pod": POD}
    return [
        Job("sidecar", [f"127.0.0.1:{stack.metrics_port}"], of_the_pod),
        Job("vllm", [f"127.0.0.1:{stack.port}"], of_the_pod),
    ]


def observing(folder: Path) -> Iterator[Observatory]:
    """Start an observatory for a fixture, and end it afterwards, whatever happens."""
    observatory = Observatory(folder)
    try:
        yield observatory.start()
    finally:
        observatory.stop()
