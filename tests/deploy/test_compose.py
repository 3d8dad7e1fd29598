"""Compose: each profile is accepted, and so is what it mounts, by the program that reads it."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from sidecar import cli
from sidecar.config import ExporterConfig, TapConfig
from tests.deploy.chart import ROOT

FOLDER = ROOT / "compose"
PROFILES = ("cpu", "gpu")
OURS = ("tap", "sidecar")
MONITORING = ("prometheus", "alertmanager", "grafana", "otel-collector")

each_profile = pytest.mark.parametrize("profile", PROFILES)


def program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not on PATH; `make tools` fetches it"
    return found


def said(*command: str | Path) -> str:
    """What a program prints that must be content."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        # Nothing that this machine has set may stand in for what the file forgot.
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@functools.cache
def compose(profile: str) -> dict[str, Any]:
    """The whole of it as Compose understands it."""
    arguments = ("--profile", profile, "config", "--format", "json")
    return dict(json.loads(said(program("docker-compose"), *arguments)))


def services(profile: str) -> dict[str, dict[str, Any]]:
    return dict(compose(profile)["services"])


def environment(service: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in service.get("environment", {}).items() if value}


def mounts(service: dict[str, Any], kind: str) -> dict[str, str]:
    """What is mounted from where, by the place it is mounted at."""
    found = [each for each in service.get("volumes", []) if each["type"] == kind]
    return {each["target"]: each["source"] for each in found}


def test_compose_itself_accepts_it() -> None:
    """Quietly: no unknown key, no variable that must be set, no warning."""
    for profile in PROFILES:
        words = ("--profile", profile, "config", "--quiet")
        assert said(program("docker-compose"), *words) == ""


@each_profile
def test_a_profile_has_one_vllm_and_all_that_watches_it(profile: str) -> None:
    """Both answer to the same name, so nothing else depends on which one runs."""
    found = services(profile)

    assert set(found) == {*OURS, *MONITORING, f"vllm-{profile}"}
    assert found[f"vllm-{profile}"]["networks"]["default"]["aliases"] == ["vllm"]


def test_only_the_gpu_profile_asks_for_one() -> None:
    """The CPU profile runs where there is none, and serves the bundled model."""
    cpu, gpu = services("cpu")["vllm-cpu"], services("gpu")["vllm-gpu"]

    assert "deploy" not in cpu
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert Path(mounts(cpu, "bind")["/model"]) == ROOT / "sidecar" / "demo" / "model"
    assert cpu["command"][0] == "/model"


@each_profile
def test_whatever_is_mounted_is_there(profile: str) -> None:
    """Docker would make an empty folder of a file that is not."""
    for service in services(profile).values():
        for source in mounts(service, "bind").values():
            assert Path(source).exists(), source
    for config in compose(profile)["configs"].values():
        assert len(Path(config["file"]).read_bytes().strip()) >= 16


@each_profile
def test_every_port_is_on_loopback(profile: str) -> None:
    """Nothing of this is reached from another machine."""
    for service in services(profile).values():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"


@each_profile
def test_everything_runs_with_the_least_rights(profile: str) -> None:
    """No capability, no new privilege; all but vLLM with a read-only root; no root where we say."""
    for name, service in services(profile).items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        if name.startswith("vllm") or name in OURS:
            assert service["user"] == "65532:65532"
        if not name.startswith("vllm"):
            assert service["read_only"] is True


@each_profile
def test_both_sides_read_what_they_are_given_and_meet(profile: str) -> None:
    """One socket in one volume, one key, and the tap on the path of vLLM's Python."""
    found = services(profile)
    engine, beside = found[f"vllm-{profile}"], found["sidecar"]
    tap = TapConfig.read(environment(engine))
    exporter = ExporterConfig.read(environment(beside))

    assert tap.tap is True
    assert tap.socket == exporter.socket
    where = str(tap.socket.parent)
    assert mounts(engine, "volume")[where] == mounts(beside, "volume")[where] == "socket"
    assert mounts(engine, "volume")[environment(engine)["PYTHONPATH"]] == "tap"
    assert mounts(found["tap"], "volume") == {"/opt/llm-internals": "tap"}
    assert tap.canary_key_file == exporter.canary_key_file
    for service in (engine, beside):
        given = {f"/{each['source']}" for each in service["configs"]}
        named = {value for key, value in environment(service).items() if key.endswith("KEY_FILE")}
        assert named <= given
    assert str(exporter.api_token_file) in {f"/{each['source']}" for each in beside["configs"]}


@each_profile
def test_what_one_container_leaves_to_the_next_lasts(profile: str) -> None:
    """A volume in memory is emptied when nobody uses it, so only those that stay share one."""
    volumes = compose(profile)["volumes"]
    in_memory = {
        name for name, each in volumes.items() if each.get("driver_opts", {}).get("type") == "tmpfs"
    }
    [ending] = [each for each in services(profile).values() if each["restart"] == "no"]

    assert in_memory == {"socket"}
    [(target, name)] = mounts(ending, "volume").items()
    assert name == "tap"
    # Else a new volume is root's, and the user that lays the tap cannot write to it.
    dockerfile = (ROOT / ending["build"]["dockerfile"]).read_text()
    assert f"--chown={ending['user']} /empty {target}\n" in dockerfile


@each_profile
def test_who_is_asked_is_there(profile: str) -> None:
    """Each address names a service of this file, and the port that it listens on."""
    found = services(profile)
    listening = {
        "vllm": 8000,
        "sidecar": 9478,
        "prometheus": 9090,
        "alertmanager": 9093,
        "otel-collector": 4317,
    }
    assert set(listening) - {"vllm"} <= set(found)
    beside = ExporterConfig.read(environment(found["sidecar"]))
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    [alerting] = prometheus["alerting"]["alertmanagers"]
    groups = [group for job in prometheus["scrape_configs"] for group in job["static_configs"]]
    targets = [
        target for group in [*groups, *alerting["static_configs"]] for target in group["targets"]
    ]
    [source] = datasources()
    urls = [f"http://{target}" for target in targets]
    urls += [str(beside.canary_url), str(beside.otlp_endpoint), source["url"]]
    assert len(urls) == 6
    for url in urls:
        parts = urlsplit(url)
        assert listening[str(parts.hostname)] == parts.port, url


def test_our_commands_exist() -> None:
    """And the one that lays the tap never keeps vLLM from starting."""
    found = services("cpu")
    tap = cli._parser().parse_args(found["tap"]["command"])
    beside = cli._parser().parse_args(found["sidecar"]["command"])

    assert (tap.command, tap.once) == ("keep", True)
    laying = cli._parser().parse_args(tap.words)
    assert (laying.command, str(laying.folder)) == ("lay-tap", "/opt/llm-internals")
    assert beside.command == "keep"
    assert cli._parser().parse_args(beside.words).command == "serve"


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    """With the rules where the file names them."""
    mounted = mounts(services("cpu")["prometheus"], "bind")
    for target, source in mounted.items():
        shutil.copy(source, tmp_path / Path(target).name)

    told = said(program("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert "SUCCESS: 1 rule files found" in told


def test_alertmanager_accepts_its_configuration() -> None:
    """The example of the repository."""
    [source] = mounts(services("cpu")["alertmanager"], "bind").values()

    assert "SUCCESS" in said(program("amtool"), "check-config", source)


def datasources() -> list[dict[str, Any]]:
    path = FOLDER / "grafana" / "datasources" / "prometheus.yml"
    return list(yaml.safe_load(path.read_text())["datasources"])


def test_grafana_finds_its_dashboards() -> None:
    """Where the provider looks, the repository's own are mounted; the first page is one of them."""
    grafana = services("cpu")["grafana"]
    mounted = mounts(grafana, "bind")
    path = FOLDER / "grafana" / "dashboards" / "llm-internals.yml"
    [provider] = yaml.safe_load(path.read_text())["providers"]
    home = Path(environment(grafana)["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

    where = Path(mounted[provider["options"]["path"]])
    assert where == ROOT / "dashboards" / "json"
    assert (where / home.name).exists()
    assert str(home.parent) == provider["options"]["path"]
    for kind in ("datasources", "dashboards"):
        assert Path(mounted[f"/etc/grafana/provisioning/{kind}"]) == FOLDER / "grafana" / kind


def test_the_collector_has_a_way_for_spans() -> None:
    """Each pipeline is made of parts that are configured, and each part is used."""
    config = yaml.safe_load((FOLDER / "otel-collector.yml").read_text())
    pipelines = config["service"]["pipelines"]

    assert set(pipelines) == {"traces", "metrics"}
    for kind in ("receivers", "processors", "exporters"):
        used = {part for pipeline in pipelines.values() for part in pipeline[kind]}
        assert used == set(config[kind])
    assert config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(":4317")
