"""What the fleet job serves: families, answers, and who may acknowledge."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from sidecar.publish.fleet.app import create_fleet_app
from sidecar.publish.fleet.metrics import exposition
from sidecar.publish.guard.audited import UNWRITTEN
from sidecar.store.audit import AuditLog
from sidecar.wire.signals import FLEET_METRICS
from tests.fold.drift.fleets import LENGTH, NUM_STREAMS, START, shift
from tests.publish.fleet.test_fleet import World
from tests.publish.hosts import answering

Samples = dict[tuple[str, ...], float]


def paged() -> World:
    """Four replicas, of which the third differs, and Prometheus has just gone."""
    world = World()
    world.fleet.shifts = {world.names[2]: shift(4.0, NUM_STREAMS)}
    world.run(14)
    world.hosts.answers["prometheus"] = answering(503)
    world.run(1)
    return world


@pytest.fixture(scope="module")
def world() -> World:
    return paged()


def client(world: World, host: str = "127.0.0.1") -> TestClient:
    return TestClient(create_fleet_app(world.job), client=(host, 50_000))


def samples(text: str) -> Samples:
    return {
        (sample.name.removeprefix("llm_internals_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_families_say_which_replica_and_why(world: World) -> None:
    """The state of each, its streams, since when; and what became of answers and windows."""
    found = samples(client(world).get("/metrics").text)

    assert found["drift_state", "replica", "page"] == 1
    assert found["drift_state", "replica", "armed"] == 0
    assert found["drift_pages_total", "replica"] == 1
    assert found["replica_state", "10.0.0.2:9478", "page"] == 1
    assert found["replica_state", "10.0.0.1:9478", "armed"] == 1
    assert found["replica_level_ratio", "10.0.0.2:9478"] > 1
    assert found["replica_since_timestamp_seconds", "10.0.0.2:9478"] >= START / 1e9
    assert ("replica_since_timestamp_seconds", "10.0.0.1:9478") not in found
    named = [key for key in found if key[0] == "replica_stream_level_ratio"]
    assert {key[1] for key in named} == {"10.0.0.2:9478"}
    assert {key[4] for key in named if found[key] > 0.5} == {"high"}
    assert found["replica_windows_total", "judged"] == 14 * 4
    assert found["replica_windows_total", "insufficient"] == 4
    assert found["replica_answering", "10.0.0.0:9478"] == 1
    assert found[("replica_discovery_success",)] == 0
    assert found["replica_refused_total", "status"] == 1
    assert found[("replica_judged_timestamp_seconds",)] == (START + 15 * LENGTH) / 1e9


def test_each_family_of_the_table_is_published(world: World) -> None:
    """In the text format and in OpenMetrics, which its own parser reads."""
    told = {
        family.name
        for family in text_string_to_metric_families(exposition(world.job.get(), openmetrics=False))
    }
    text = client(world).get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    read = {family.name for family in openmetrics.text_string_to_metric_families(text)}

    assert {metric.name for metric in FLEET_METRICS} <= told
    assert read == told


def test_promtool_has_no_complaint(world: World) -> None:
    """Names, units, help texts and types pass its linter."""
    promtool = shutil.which("promtool")
    assert promtool, "promtool is not on PATH; `make tools` fetches it"
    body = exposition(world.job.get(), openmetrics=False).encode()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_a_job_that_knows_nothing_yet_has_families_too() -> None:
    """Collecting, with the reason in the API; never an error."""
    fresh = client(World())
    found = samples(fresh.get("/metrics").text)
    answer = fresh.get("/v1/drift").json()

    assert found["drift_state", "replica", "collecting"] == 1
    assert answer["state"] == "collecting"
    assert answer["reason"] == "the exporters were not asked yet"
    assert fresh.get("/healthz").text == "ok\n"


def test_the_answer_tells_what_the_families_tell(world: World) -> None:
    """With the sentences beside the numbers."""
    answer = client(world).get("/v1/drift").json()

    assert answer["channel"] == "replica"
    assert answer["state"] == "page"
    assert "10.0.0.2:9478 differs" in answer["reason"]
    assert "status 503" in answer["trouble"]
    assert len(answer["causes"]) == 20
    by_name = {each["replica"]: each for each in answer["replicas"]}
    assert by_name["10.0.0.2:9478"]["causes"] == answer["causes"]
    assert by_name["10.0.0.1:9478"]["causes"] == []
    assert answer["windows"] == {"judged": 56, "insufficient": 4, "late": 0}
    assert answer["exporters"][0]["url"] == "http://10.0.0.0:9479"


def test_a_page_is_acknowledged_over_loopback_as_json_alone() -> None:
    """The port is open to scrapes, so nobody else, and no browser's form, can silence a page."""
    world, path = paged(), "/v1/drift/replica/acknowledge"
    far = client(world, "10.1.2.3").post(path, json={})
    form = client(world).post(path, data={"a": "b"})
    assert (far.status_code, form.status_code) == (403, 415)
    assert "loopback" in far.json()["detail"]
    assert client(world).get("/v1/drift").json()["state"] == "page"
    answer = client(world).post(path, json={}).json()

    assert answer["state"] == "armed"
    assert answer["is_acknowledged"]


def test_an_acknowledgement_is_in_the_audit_log_before_it_is_done(tmp_path: Path) -> None:
    """Who is refused leaves no entry; without an entry the page stays."""
    world, path = paged(), "/v1/drift/replica/acknowledge"
    file = tmp_path / "audit.jsonl"
    app = create_fleet_app(world.job, AuditLog(file))
    TestClient(app, client=("10.1.2.3", 1)).post(path, json={})
    assert not file.exists()
    file.write_text("not ours\n")
    near = TestClient(app, client=("127.0.0.1", 1))
    refused = near.post(path, json={})
    assert (refused.status_code, refused.json()["remedy"]) == (503, UNWRITTEN)
    assert near.get("/v1/drift").json()["state"] == "page"
    file.unlink()
    assert near.post(path, json={}).json()["state"] == "armed"
    (entry,) = [json.loads(line) for line in file.read_text().splitlines()]

    assert (entry["who"], entry["action"]) == ("loopback", "drift.acknowledge")
    assert entry["detail"] == {"channel": "replica"}
