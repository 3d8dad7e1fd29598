"""The commands and environments of the two real servers."""

from pathlib import Path

from sidecar.config import ExporterConfig, TapConfig
from sidecar.demo.options import Options
from sidecar.demo.services import exporter, vllm

OPTIONS = Options(port=1, metrics_port=2, api_port=3, model=Path("/m"), cache=Path("/c"))
RUN_DIR = Path("/run/demo")


def test_both_sides_meet_at_one_socket_in_the_private_folder() -> None:
    """The socket given to the exporter is the one that the tap reads from its environment."""
    command = exporter(OPTIONS, RUN_DIR, {}).command
    socket = command[command.index("--socket") + 1]
    config = TapConfig.read(sidecar_keys(vllm(OPTIONS, RUN_DIR, {}, None).environment))
    assert str(config.socket) == socket == "/run/demo/ingest.sock"
    assert config.tap
    assert config.budget_share == 0.0  # a toy's steps are too short for any share of them


def test_both_listen_on_loopback_only() -> None:
    """A demo is never reachable from another machine."""
    environment = exporter(OPTIONS, RUN_DIR, {}).environment
    config = ExporterConfig.read(sidecar_keys(environment))
    assert config.metrics_host == config.api_host == "127.0.0.1"
    command = vllm(OPTIONS, RUN_DIR, {}, None).command
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_vllm_compiles_and_writes_below_the_cache_and_the_folder() -> None:
    """Graphs are compiled, kept in the cache; sockets and temporary files go with the run."""
    service = vllm(OPTIONS, RUN_DIR, {}, "/usr/bin/c++")
    assert "--enforce-eager" not in service.command
    environment = service.environment
    assert environment["VLLM_CACHE_ROOT"] == "/c/vllm"
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == "/c/inductor"
    assert environment["TMPDIR"] == environment["VLLM_RPC_BASE_PATH"] == "/run/demo"
    assert environment["CXX"] == "/usr/bin/c++"


def test_settings_of_other_servers_are_not_inherited() -> None:
    """A plugin list, an API key or a multiprocess folder of the operator's stays out."""
    environ = {"VLLM_PLUGINS": "x", "VLLM_API_KEY": "k", "PROMETHEUS_MULTIPROC_DIR": "d", "A": "b"}
    for service in (exporter(OPTIONS, RUN_DIR, environ), vllm(OPTIONS, RUN_DIR, environ, None)):
        assert service.environment["A"] == "b"
        assert not {"VLLM_PLUGINS", "VLLM_API_KEY"} & set(service.environment)


def sidecar_keys(environment: object) -> dict[str, str]:
    assert isinstance(environment, dict)
    return {name: value for name, value in environment.items() if name.startswith("SIDECAR_")}
