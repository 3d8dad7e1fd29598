"""The commands and environments of the two real servers."""

from pathlib import Path

from sidecar.config import ExporterConfig, TapConfig
from sidecar.demo import gate, tampering
from sidecar.demo.corpus import DOMAINS
from sidecar.demo.options import Options
from sidecar.demo.services import exporter, vllm, write_keys

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


def test_both_sides_know_the_canarys_secret_and_where_it_sings() -> None:
    """The preset is the demo's, said to be one; the tap knows the routes of the traffic."""
    config = ExporterConfig.read(sidecar_keys(exporter(OPTIONS, RUN_DIR, {}).environment))
    tap = TapConfig.read(sidecar_keys(vllm(OPTIONS, RUN_DIR, {}, None).environment))
    assert config.is_demo
    assert config.canary_url == OPTIONS.vllm_url
    assert config.canary_key_file == tap.canary_key_file == RUN_DIR / "canary.key"
    assert config.canary_seconds <= 10  # the hard rule needs two rounds
    assert set(tap.routes) == set(DOMAINS)


def test_what_is_for_development_stands_behind_the_gate() -> None:
    """With a key of this run, which only who reads the private folder has."""
    service = vllm(OPTIONS, RUN_DIR, {}, None)
    command, environment = service.command, service.environment
    assert command[command.index("--middleware") + 1] == gate.MIDDLEWARE
    assert command[command.index("--worker-extension-cls") + 1] == tampering.EXTENSION
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment[gate.KEY_FILE] == "/run/demo/tamper.key"


def test_the_secrets_of_a_run_are_its_own(tmp_path: Path) -> None:
    """Two different ones, other ones each time, and long enough."""
    drawn = set()
    for _ in range(2):
        write_keys(tmp_path)
        drawn |= {(tmp_path / name).read_text() for name in ("canary.key", "tamper.key")}
    assert len(drawn) == 4
    assert min(map(len, drawn)) >= 32


def test_settings_of_other_servers_are_not_inherited() -> None:
    """A plugin list, an API key or a multiprocess folder of the operator's stays out."""
    environ = {"VLLM_PLUGINS": "x", "VLLM_API_KEY": "k", "PROMETHEUS_MULTIPROC_DIR": "d", "A": "b"}
    for service in (exporter(OPTIONS, RUN_DIR, environ), vllm(OPTIONS, RUN_DIR, environ, None)):
        assert service.environment["A"] == "b"
        assert not {"VLLM_PLUGINS", "VLLM_API_KEY"} & set(service.environment)


def sidecar_keys(environment: object) -> dict[str, str]:
    assert isinstance(environment, dict)
    return {name: value for name, value in environment.items() if name.startswith("SIDECAR_")}
