"""A pod of the chart, run for real: Helm's engine renders it, podman plays it.

The engine's container is a skeleton that mounts this machine's own programs, read-only: `/usr`,
Python, and the packages of the environment that runs the tests, among them vLLM. It holds nothing
of this package but what the pod's init container lays into the shared volume.
"""

import contextlib
import ctypes
import io
import json
import sys
import sysconfig
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import yaml

from tests.deploy import chart
from tests.e2e.harness import MODEL, get_json, get_status, get_text, wait_for

SKELETON: Final = "localhost/llm-internals-skeleton:test"
ENGINE: Final = "engine"
BESIDE: Final = "llm-internals"
METRICS: Final = "http://127.0.0.1:9478"
API: Final = "http://127.0.0.1:9479"
SERVER: Final = "http://127.0.0.1:8000"
START_SECONDS: Final = 900
PYTHON: Final = Path("/engine/python")  # of the engine's container
SITE: Final = Path("/engine/site")
_CLONE_NEWNET: Final = 0x40000000
_LINKS: Final = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}

Asked = ParamSpec("Asked")
Told = TypeVar("Told")
Podman = Callable[..., str]


def make_skeleton(podman: Podman, folder: Path) -> None:
    """An image of empty folders, to mount a machine's programs into."""
    path = folder / "skeleton.tar"
    with tarfile.open(path, "w") as archive:
        for name, mode in {"usr": 0o755, "etc": 0o755, "run": 0o755, "tmp": 0o1777}.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for name, target in _LINKS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        users = b"vllm:x:65532:65532::/cache:/sbin/nologin\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size, entry.mode = len(users), 0o644
        archive.addfile(entry, io.BytesIO(users))
    podman("import", path, SKELETON)


def values(image: str) -> chart.Values:
    """The chart's values: this machine's vLLM on the bundled model; else what is usual."""
    repository, _, tag = image.rpartition(":")
    site = Path(sysconfig.get_path("purelib"))
    mounted = {"usr": "/usr", "python": sys.base_prefix, "site": site, "model": MODEL}
    places = {"usr": "/usr", "python": PYTHON, "site": SITE, "model": "/engine/model"}
    volumes = [{"name": name, "hostPath": {"path": str(path)}} for name, path in mounted.items()]
    mounts = [
        {"name": name, "mountPath": str(path), "readOnly": True} for name, path in places.items()
    ]
    # That this package is installed here as well must not be what vLLM finds it by.
    for number, each in enumerate(site.glob("llm_internals_sidecar-*.dist-info")):
        volumes.append({"name": f"nothing-{number}", "emptyDir": {}})
        mounts.append({"name": f"nothing-{number}", "mountPath": str(SITE / each.name)})
    environ = {
        "LD_LIBRARY_PATH": str(PYTHON / "lib"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    program = f"{PYTHON}/bin/python{sysconfig.get_python_version()}"
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        # podman does not know containers of the native form.
        "sidecar": {"form": "classic"},
        # A step of a toy model is shorter than what the tap adds to it.
        "tap": {"pythonPath": [str(SITE)], "settings": {"flush_seconds": 0.2, "budget_share": 0}},
        "engine": {
            "image": dict(zip(("repository", "tag"), SKELETON.rsplit(":", 1), strict=True))
            | {"pullPolicy": "Never"},
            # `vllm serve` asks for the name of a build that is not the one for CPU.
            "command": [program, "-m", "vllm.entrypoints.openai.api_server", "--model"],
            "model": "/engine/model",
            "servedName": "tiny",
            "gpuResource": "",
            "shmSize": "1Gi",
            "args": [
                "--host=127.0.0.1",
                "--dtype=bfloat16",
                "--max-model-len=1024",
                "--max-num-seqs=8",
                "--enforce-eager",
            ],
            "env": [{"name": name, "value": value} for name, value in environ.items()],
            "extraVolumes": volumes,
            "extraVolumeMounts": mounts,
        },
    }


def rendered(image: str) -> chart.Thing:
    """The Deployment as Helm's engine writes it."""
    with chart.load() as ours:
        [made] = chart.of_kind(chart.render(ours, values(image)), "Deployment")
    return made


def as_podman_can(deployment: chart.Thing) -> chart.Thing:
    """What podman plays of it.

    Without probes, which podman gives to systemd, and ports, which it forwards from a network that
    this pod has not: the tests ask instead. And containers that ended well stay so, since podman
    starts even an init container again wherever it starts the others again.
    """
    made: chart.Thing = json.loads(json.dumps(deployment))
    spec = made["spec"]["template"]["spec"]
    spec["restartPolicy"] = "OnFailure"
    for each in spec["containers"]:
        for key in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
            each.pop(key, None)
    return made


class Pod:
    """A pod that podman plays.

    podman: runs it with its words and returns what it printed. deployment: as it was rendered.
    """

    def __init__(self, podman: Podman, deployment: chart.Thing) -> None:
        self._podman = podman
        self._containers = deployment["spec"]["template"]["spec"]["containers"]
        self._name = f"{deployment['metadata']['name']}-pod-0"
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)

    def inside(
        self, asking: Callable[Asked, Told], *args: Asked.args, **kwargs: Asked.kwargs
    ) -> Told:
        """Call something in the pod's own network."""
        return self._thread.submit(asking, *args, **kwargs).result()

    def execute(self, container: str, *words: str) -> str:
        """Run a program in a container; what it printed."""
        return self._podman("exec", self._container(container), *words)

    def log(self, container: str) -> str:
        """What a container has said."""
        return self._podman("logs", self._container(container))

    def kill(self, container: str) -> None:
        """kill -9 the first process of a container, and with it the container."""
        self._podman("kill", "--signal", "KILL", self._container(container))
        wait_for(lambda: not self.runs(container), f"{container} ends", 60)

    def start(self, container: str) -> None:
        """Start a container that ended, as Kubernetes would."""
        self._podman("start", self._container(container))

    def pid(self, container: str) -> int:
        """Number of its first process, on this machine."""
        return int(self._podman("inspect", "-f", "{{.State.Pid}}", self._container(container)))

    def runs(self, container: str) -> bool:
        """Whether it is there and has not ended."""
        told = self._podman("inspect", "-f", "{{.State.Running}}", self._container(container))
        return told.strip() == "true"

    def is_ready(self) -> bool:
        """As Kubernetes sees it: every container runs, and passes its readiness probe, if any."""
        return all(self.runs(each["name"]) and self._passes(each) for each in self._containers)

    def complete(self, num_tokens: int) -> dict[str, Any]:
        """One completion by the pod's vLLM."""
        body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": num_tokens}
        body |= {"ignore_eos": True, "temperature": 0.0}

        def post() -> dict[str, Any]:
            data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{SERVER}/v1/completions", data, headers)
            with urllib.request.urlopen(request, timeout=300) as reply:
                return dict(json.load(reply))

        return self.inside(post)

    def source(self) -> dict[str, Any]:
        """What the sidecar has heard of the engine; empty when nothing."""
        told = self.inside(get_json, f"{API}/v1/status")
        return next((each for each in told["sources"] if each["role"] == "engine"), {})

    def coverage(self, completion_id: str) -> dict[str, Any]:
        """What of a completion was measured, and what was not; empty while it is not told."""
        told = self.inside(get_json, f"{API}/v1/requests?limit=100")["requests"]
        mine = (each for each in told if each["id"].startswith(f"{completion_id}-0-"))
        return next((dict(each["coverage"]) for each in mine), {})

    def metrics(self) -> str:
        """The text of /metrics."""
        return self.inside(get_text, f"{METRICS}/metrics")

    def end(self) -> None:
        """Remove it and its containers."""
        self._thread.shutdown()
        self._podman("pod", "rm", "--force", "--time", "10", self._name)

    def _passes(self, container: chart.Thing) -> bool:
        probe = container.get("readinessProbe")
        if probe is None:
            return True
        asked = probe["httpGet"]
        [port] = [
            each["containerPort"] for each in container["ports"] if each["name"] == asked["port"]
        ]
        try:
            return self.inside(get_status, f"http://127.0.0.1:{port}{asked['path']}") < 400
        except OSError:
            return False

    def _container(self, name: str) -> str:
        return f"{self._name}-{name}"

    def _enter(self) -> None:
        """Put the calling thread into the pod's network, that of its pause container."""
        form = ("pod", "inspect", "-f", "{{.InfraContainerID}}", self._name)
        infra = self._podman("inspect", "-f", "{{.State.Pid}}", self._podman(*form).strip())
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{infra.strip()}/ns/net") as network:  # noqa: PTH123 - no file of a folder
            if libc.setns(network.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the pod's network cannot be entered")


@contextlib.contextmanager
def playing(podman: Podman, image: str, folder: Path) -> Iterator[Pod]:
    """A pod with `image` as the sidecar's, from when its vLLM serves; it ends with the block."""
    make_skeleton(podman, folder)
    deployment = rendered(image)
    manifest = folder / "pod.yaml"
    manifest.write_text(yaml.safe_dump(as_podman_can(deployment)))
    podman("play", "kube", "--replace", "--network", "none", manifest)
    pod = Pod(podman, deployment)
    try:
        wait_for(lambda: serves(pod), "vLLM serves", START_SECONDS, 0.5)
        yield pod
    finally:
        pod.end()


def serves(pod: Pod) -> bool:
    """Whether it is ready by now; fails the test when its engine has ended."""
    assert pod.runs(ENGINE), pod.log(ENGINE)[-6000:]
    return pod.is_ready()


def child_of(pid: int) -> int:
    """The one process that this one has started."""
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def rights_of(pid: int) -> dict[str, str]:
    """User, capabilities and the like of a process of this machine."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
