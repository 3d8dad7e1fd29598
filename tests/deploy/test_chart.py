"""The Helm chart: what it makes is valid, restricted, and never in the way of the model."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart, lint, package
from helm_python.errors import HelmError
from kubernetes_validate import ValidationError

import sidecar
from helm import schema
from sidecar import cli
from sidecar.config import ExporterConfig, FleetConfig, TapConfig
from tests.deploy.chart import (
    CHART,
    MODEL,
    OPERATOR,
    ROOT,
    containers,
    environment,
    load,
    of_kind,
    pods,
    render,
    silently,
    validate,
)
from tests.deploy.matrix import ALL, EXAMPLES, MATRIX

VERSIONS = [f"1.{minor}" for minor in range(27, 38)]
OURS = ("llm-internals", "llm-internals-tap", "fleet")
WORKS_EVERYWHERE = ("classic", "everything", "multi-node.yaml", "fleet.yaml")
# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUMES = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "ephemeral", "projected"}

each_values = pytest.mark.parametrize("values", ALL.values(), ids=ALL)


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with load() as loaded:
        yield loaded


def with_engine(values: dict[str, Any]) -> bool:
    return values.get("engine", {}).get("enabled", True)


def test_helm_has_no_complaint() -> None:
    """Helm's own lint finds no error and warns of nothing."""
    with silently():
        report = lint(CHART, MODEL, strict=True)

    assert report["errors"] == []
    assert [told for told in report["messages"] if told["severity"] > 1] == []


def test_the_chart_is_of_this_release(chart: Chart) -> None:
    """The image's default tag is the version of the package."""
    assert chart.metadata["appVersion"] == sidecar.__version__


@each_values
def test_a_cluster_accepts_every_object(chart: Chart, values: dict[str, Any]) -> None:
    """Fields, types and names are those of Kubernetes, strictly."""
    things = render(chart, values)

    validate(things, "1.34")
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in things]
    assert len(names) == len(set(names))
    for _, name in names:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name), name
        assert len(name) <= 63


@pytest.mark.parametrize("kubernetes", VERSIONS)
@pytest.mark.parametrize("name", WORKS_EVERYWHERE)
def test_every_supported_release_accepts_it(chart: Chart, name: str, kubernetes: str) -> None:
    """From the first release that the chart says it supports to the newest known."""
    values = copy.deepcopy(ALL[name])
    if kubernetes in {"1.27", "1.28"}:
        values.setdefault("sidecar", {})["form"] = "classic"

    validate(render(chart, values, kubernetes), kubernetes)


def test_the_check_would_notice(chart: Chart) -> None:
    """A field that Kubernetes does not have is an error of these tests."""
    things = render(chart, MODEL)
    containers(pods(things)["chat-llm-internals"])["engine"]["volumeMount"] = []

    with pytest.raises(ValidationError, match="volumeMount"):
        validate(things, "1.34")


@pytest.mark.parametrize("kubernetes", ["1.27", "1.28"])
def test_a_native_sidecar_needs_a_cluster_that_has_them(chart: Chart, kubernetes: str) -> None:
    """An older one would run it once and never start the model; the message names the remedy."""
    with pytest.raises(HelmError, match=r"set sidecar\.form=classic"):
        render(chart, MODEL, kubernetes)


@each_values
def test_pods_keep_the_restricted_standard(chart: Chart, values: dict[str, Any]) -> None:
    """No root, no privilege, no capability, no foreign volume, no token of the cluster."""
    for pod in pods(render(chart, values)).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= VOLUMES
        for container in containers(pod).values():
            told = container["securityContext"]
            assert told["allowPrivilegeEscalation"] is False
            assert told["capabilities"] == {"drop": ["ALL"]}
            assert told["runAsNonRoot"] is True
            assert told["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not any("hostPort" in port for port in container.get("ports", []))


@each_values
def test_what_is_ours_writes_nowhere_but_to_its_volumes(
    chart: Chart, values: dict[str, Any]
) -> None:
    """A read-only root, and memory that is bounded."""
    found = 0
    for pod in pods(render(chart, values)).values():
        for name, container in containers(pod).items():
            if name in OURS:
                found += 1
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert container["resources"]["limits"]["memory"]
    assert found or not with_engine(values)


@each_values
def test_kubernetes_never_judges_the_sidecar(chart: Chart, values: dict[str, Any]) -> None:
    """No probe of it exists, so no probe of it can take the model out of service or restart it."""
    for pod in pods(render(chart, values)).values():
        for name, container in containers(pod).items():
            probes = {key for key in container if key.endswith("Probe")}
            if name in {"llm-internals", "llm-internals-tap"}:
                assert probes == set()
            if name == "engine" and pod["metadata"]["labels"]["llm-internals.io/role"] != "worker":
                assert {container[probe]["httpGet"]["port"] for probe in probes} == {"http"}


@each_values
def test_what_is_ours_never_ends_by_itself(chart: Chart, values: dict[str, Any]) -> None:
    """Beside the model each command is kept: started again, or run once and never failing."""
    for pod in pods(render(chart, values)).values():
        for name, container in containers(pod).items():
            if name in {"llm-internals", "llm-internals-tap"}:
                parsed = cli._parser().parse_args(container["args"])
                assert parsed.command == "keep"
                assert parsed.once is (name == "llm-internals-tap")
            if name == "llm-internals-tap":
                told = cli._parser().parse_args(parsed.words)
                assert (told.command, str(told.folder)) == ("lay-tap", "/opt/llm-internals")
            if name == "llm-internals":
                assert cli._parser().parse_args(parsed.words).command == "serve"
                assert parsed.health == "http://127.0.0.1:9478/healthz"


@each_values
def test_secrets_that_are_not_there_yet_keep_nobody_waiting(
    chart: Chart, values: dict[str, Any]
) -> None:
    """A pod starts without them; only the key that the server itself asks for is demanded."""
    for pod in pods(render(chart, values)).values():
        for volume in pod["spec"]["volumes"]:
            if volume["name"].startswith("llm-internals") and "secret" in volume:
                assert volume["secret"]["optional"] is True


@each_values
def test_both_sides_meet_at_one_socket(chart: Chart, values: dict[str, Any]) -> None:
    """One volume in memory, one path, and every volume that is mounted is there."""
    for pod in pods(render(chart, values)).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounted = {
            name: {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            for name, container in containers(pod).items()
        }
        used = {volume for mounts in mounted.values() for volume in mounts.values()}
        assert used == set(volumes)
        if "llm-internals" not in mounted:
            continue
        assert volumes["llm-internals-socket"]["emptyDir"]["medium"] == "Memory"
        for name in ("engine", "llm-internals"):
            where = Path(environment(containers(pod)[name])["SIDECAR_SOCKET"])
            assert mounted[name][str(where.parent)] == "llm-internals-socket"


@each_values
def test_the_environment_is_what_each_side_reads(chart: Chart, values: dict[str, Any]) -> None:
    """The tap, the sidecar and the fleet job accept what the chart sets, to the last key."""
    for pod in pods(render(chart, values)).values():
        found = containers(pod)
        if "engine" in found:
            assert TapConfig.read(environment(found["engine"])).tap is True
        if "llm-internals" in found:
            config = ExporterConfig.read(environment(found["llm-internals"]))
            assert config.state_dir == Path("/var/lib/llm-internals")
            is_open = values.get("fleet", {}).get("enabled", False)
            assert config.api_host == ("0.0.0.0" if is_open else "127.0.0.1")
        if "fleet" in found:
            assert FleetConfig.read(environment(found["fleet"])).fleet_prometheus


@each_values
def test_files_that_are_named_are_mounted(chart: Chart, values: dict[str, Any]) -> None:
    """Each path in the environment lies in a volume of that container."""
    for pod in pods(render(chart, values)).values():
        for container in containers(pod).values():
            folders = [mount["mountPath"] for mount in container["volumeMounts"]]
            for name, value in environment(container).items():
                if name.startswith("SIDECAR_") and name.endswith(("_FILE", "_DIR", "_SOCKET")):
                    assert any(value.startswith(folder) for folder in folders), (name, value)


def test_settings_arrive_as_they_were_given(chart: Chart) -> None:
    """Large numbers, lists, fractions and flags survive Helm's idea of a number."""
    found = containers(pods(render(chart, MATRIX["settings"]))["chat-llm-internals"])
    tap = TapConfig.read(environment(found["engine"]))
    exporter = ExporterConfig.read(environment(found["llm-internals"]))

    assert tap.attention_every == 1_000_000
    assert tap.routes == ("chat", "search")
    assert exporter.series_cap == 1_000_000
    assert exporter.record is True
    assert exporter.stale_seconds == 12.5


def test_both_forms_run_the_same_container(chart: Chart) -> None:
    """Native: it starts before vLLM and ends after it. Classic: it stands beside it."""
    native = pods(render(chart, MODEL))["chat-llm-internals"]["spec"]
    classic = pods(render(chart, MATRIX["classic"]))["chat-llm-internals"]["spec"]

    names = [each["name"] for each in native["initContainers"]]
    assert names == ["llm-internals-tap", "llm-internals"]
    assert [each["name"] for each in native["containers"]] == ["engine"]
    assert [each["name"] for each in classic["initContainers"]] == ["llm-internals-tap"]
    assert [each["name"] for each in classic["containers"]] == ["engine", "llm-internals"]
    beside = native["initContainers"][1]
    assert beside.pop("restartPolicy") == "Always"
    assert beside == classic["containers"][1]


def test_a_tap_in_the_image_is_not_laid(chart: Chart) -> None:
    """No init container, no volume, no PYTHONPATH."""
    pod = pods(render(chart, MATRIX["classic, tap in the image"]))["chat-llm-internals"]

    assert "initContainers" not in pod["spec"]
    assert "PYTHONPATH" not in environment(containers(pod)["engine"])
    assert "llm-internals-tap" not in {volume["name"] for volume in pod["spec"]["volumes"]}


def test_another_baseline_is_no_rollout(chart: Chart) -> None:
    """A new address and checksum change a ConfigMap and not one byte of a pod."""
    before = MATRIX["baseline of an address"]
    after = copy.deepcopy(before)
    after["baseline"] |= {"url": "https://files/newer.baseline", "sha256": "1" * 64}
    old, new = render(chart, before), render(chart, after)

    assert of_kind(old, "ConfigMap") != of_kind(new, "ConfigMap")
    assert pods(old) == pods(new)


def test_ranks_become_flags_and_gpus(chart: Chart) -> None:
    """One GPU for each rank of the pod, whatever kinds of parallelism there are."""
    found = containers(pods(render(chart, ALL["everything"]))["chat-llm-internals"])
    workers = pods(render(chart, ALL["multi-node.yaml"]))

    engine = found["engine"]
    assert {"--tensor-parallel-size=4", "--data-parallel-size=2"} <= set(engine["args"])
    assert engine["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert environment(found["llm-internals"])["SIDECAR_CANARY_RANKS"] == "2"
    for pod in workers.values():
        assert containers(pod)["engine"]["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_over_several_nodes_one_pod_is_the_server(chart: Chart) -> None:
    """The leader listens, is probed and is sent canaries; workers are headless."""
    values = {**EXAMPLES["multi-node.yaml"], "canary": {"keySecret": {"name": "canary"}}}
    things = render(chart, values)
    leader = containers(pods(things)["chat-llm-internals leader"])
    worker = containers(pods(things)["chat-llm-internals worker"])

    assert of_kind(things, "Deployment") == []
    assert "--headless" in worker["engine"]["args"]
    assert "--headless" not in leader["engine"]["args"]
    assert "SIDECAR_CANARY_URL" in environment(leader["llm-internals"])
    assert "SIDECAR_CANARY_URL" not in environment(worker["llm-internals"])
    [service] = of_kind(things, "Service")
    assert service["spec"]["selector"]["llm-internals.io/role"] == "leader"


@each_values
def test_selectors_select_what_is_there(chart: Chart, values: dict[str, Any]) -> None:
    """Services, monitors, policies and budgets each find a pod of the release."""
    things = render(chart, values)
    labels = [pod["metadata"]["labels"] for pod in pods(things).values()]
    selectors = [service["spec"]["selector"] for service in of_kind(things, "Service")]
    for kind in ("PodMonitor", "PodDisruptionBudget"):
        selectors += [thing["spec"]["selector"]["matchLabels"] for thing in of_kind(things, kind)]
    for policy in of_kind(things, "NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
    assert selectors
    foreign = {"llm-internals.io/sidecar": "true"}  # pods that another chart makes
    for selector in selectors:
        if with_engine(values) or selector != foreign:
            assert any(selector.items() <= each.items() for each in labels), selector


@each_values
def test_nobody_but_the_fleet_job_is_let_to_the_api(chart: Chart, values: dict[str, Any]) -> None:
    """No rule admits anybody to port 9479, or to every port, except the release's own pods."""
    own = {"app.kubernetes.io/name": "llm-internals", "app.kubernetes.io/instance": "chat"}
    policies = of_kind(render(chart, values), "NetworkPolicy")
    assert policies
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        for rule in policy["spec"]["ingress"]:
            ports = {port["port"] for port in rule.get("ports", [])}
            if not ports or 9479 in ports:
                for peer in rule["from"]:
                    assert own.items() <= peer["podSelector"]["matchLabels"].items()
                    assert set(peer) == {"podSelector"}


def test_what_fits_not_together_is_refused_with_the_remedy(chart: Chart) -> None:
    """Each of these would install, and not work or not be safe."""
    fleet = {"enabled": True, "prometheus": "http://prometheus:9090"}
    wrong: list[tuple[str, dict[str, Any]]] = [
        (r"name the model that vLLM serves", {}),
        (r"give the address of the Prometheus", {"fleet": {"enabled": True}}),
        (r"set api\.tokenSecret\.name", {"fleet": fleet}),
        (
            r"give a query",
            {"fleet": fleet, "engine": {"enabled": False}, "api": {"tokenSecret": {"name": "t"}}},
        ),
        (r"baseline\.sha256", {"baseline": {"from": "url", "url": "https://files/b"}}),
        (r"needs baseline\.volume", {"baseline": {"from": "volume"}}),
        (r"divide", {"engine": {"model": "m", "nodes": 2, "tensorParallel": 3}}),
        (
            r"canary\.apiKeySecret",
            {
                "engine": {"model": "m", "apiKeySecret": {"name": "k"}},
                "canary": {"keySecret": {"name": "c"}},
            },
        ),
        (
            r"add llm_internals_sidecar",
            {"engine": {"model": "m", "env": [{"name": "VLLM_PLUGINS", "value": "lora"}]}},
        ),
        (
            r"tap\.pythonPath",
            {"engine": {"model": "m", "env": [{"name": "PYTHONPATH", "value": "/x"}]}},
        ),
    ]
    for remedy, values in wrong:
        whole = {**MODEL, **values} if values else {}
        with pytest.raises(HelmError, match=remedy):
            render(chart, whole)


@pytest.mark.parametrize(
    ("told", "values"),
    [
        ("at '/engine': additional properties 'replica' not allowed", {"engine": {"replica": 1}}),
        ("at '/engine/port': maximum", {"engine": {"port": 99999}}),
        ("at '/tap/settings': additional properties", {"tap": {"settings": {"flush": 1}}}),
        ("at '/tap/settings/flush_seconds'", {"tap": {"settings": {"flush_seconds": 100}}}),
        ("at '/sidecar/settings'", {"sidecar": {"settings": {"api_host": "0.0.0.0"}}}),
        ("at '/sidecar/form': value must be one of", {"sidecar": {"form": "nativ"}}),
        ("at '/baseline/sha256'", {"baseline": {"sha256": "abc"}}),
        ("at '/image/digest'", {"image": {"digest": "latest"}}),
        ("at '/podMonitor/interval'", {"podMonitor": {"interval": "15"}}),
        ("additional properties 'engin' not allowed", {"engin": {}}),
    ],
)
def test_a_wrong_value_is_named(chart: Chart, told: str, values: dict[str, Any]) -> None:
    """The message of the schema says where, and what is allowed there."""
    with pytest.raises(HelmError, match=re.escape(told)):
        render(chart, {**MODEL, **values})


def test_without_the_operator_pods_say_themselves_where_to_scrape(chart: Chart) -> None:
    """By annotation, and never both ways, or every number would be counted twice."""
    for apis in ((), (OPERATOR,)):
        things = render(chart, MODEL, apis=apis)
        [pod] = pods(things).values()
        annotated = "prometheus.io/scrape" in pod["metadata"]["annotations"]
        assert annotated is not bool(of_kind(things, "PodMonitor"))
        assert bool(of_kind(things, "PrometheusRule")) is bool(apis)


def test_the_package_holds_what_the_folder_holds(chart: Chart, tmp_path: Path) -> None:
    """Rules and dashboards are in the archive, programs are not, and it renders the same."""
    with silently():
        archive = package(CHART, destination=tmp_path)
    with Chart.load(archive) as packed:
        names = {each["name"] for each in packed.files}
        wanted = {
            f"dashboards/json/{path.name}" for path in (ROOT / "dashboards" / "json").glob("*.json")
        }
        assert wanted
        assert names == {"dashboards/rules.yml", ".helmignore", *wanted}
        assert render(packed, ALL["everything"]) == render(chart, ALL["everything"])


PARENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: theirs
spec:
  selector:
    matchLabels: {app: theirs}
  template:
    metadata:
      labels:
        app: theirs
        {{- include "llm-internals.podLabels" $.internals | nindent 8 }}
    spec:
      securityContext:
        {{- include "llm-internals.podSecurityContext" $.internals | nindent 8 }}
      automountServiceAccountToken: false
      initContainers:
        {{- include "llm-internals.tapInitContainer" $.internals | nindent 8 }}
        {{- include "llm-internals.sidecarInitContainer" $.internals | nindent 8 }}
      containers:
        - name: vllm
          image: theirs/vllm:1
          env:
            {{- include "llm-internals.engineEnv" $.internals | nindent 12 }}
          volumeMounts:
            {{- include "llm-internals.engineVolumeMounts" $.internals | nindent 12 }}
      volumes:
        {{- include "llm-internals.volumes" $.internals | nindent 8 }}
"""


def test_another_chart_includes_the_sidecar(tmp_path: Path) -> None:
    """A chart that depends on this one puts the tap and the sidecar into its own pod."""
    parent = tmp_path / "theirs"
    (parent / "templates").mkdir(parents=True)
    (parent / "charts").mkdir()
    (parent / "charts" / "llm-internals-sidecar").symlink_to(CHART)
    told = {"apiVersion": "v2", "name": "theirs", "version": "1.0.0"}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(told))
    values = {"engine": {"enabled": False}, "tap": {"settings": {"flush_seconds": 2}}}
    (parent / "values.yaml").write_text(yaml.safe_dump({"llm-internals-sidecar": values}))
    text = PARENT.replace("$.internals", '(index .Subcharts "llm-internals-sidecar")')
    (parent / "templates" / "engine.yaml").write_text(text)

    with load(parent) as chart:
        things = render(chart, {})

    validate(things, "1.34")
    pod = pods(things)["theirs"]
    assert TapConfig.read(environment(containers(pod)["vllm"])).flush_seconds == 2
    assert "llm-internals" in containers(pod)
    monitors = of_kind(things, "PodMonitor")
    assert monitors
    for monitor in monitors:
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert selector.items() <= pod["metadata"]["labels"].items()


def test_the_schema_is_up_to_date() -> None:
    """`make chart` has been run since the configuration changed."""
    assert schema.PATH.read_text() == schema.text(), "run: make chart"


def test_every_value_with_a_default_is_in_the_schema(chart: Chart) -> None:
    """And every key of the schema has a default, so that values.yaml lists them all."""
    free = {"settings", "global"}

    def compare(where: str, values: Any, told: dict[str, Any]) -> None:
        if not isinstance(values, dict) or "properties" not in told:
            return
        assert set(values) - free == set(told["properties"]) - free, where
        for key in set(values) - free:
            compare(f"{where}.{key}", values[key], told["properties"][key])

    compare("", chart.values, schema.schema())
