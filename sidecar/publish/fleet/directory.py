"""Which exporters there are: Prometheus knows, since it scrapes them.

An instant query has one series for each exporter that was scraped within the last minutes. Its
labels name the replica, and say where its API is: under `api_label` when the target has that label
(from `static_configs` or relabelling), else at `api_port` of the host in `instance`.

Guarantees: at most `MAX_EXPORTERS`, in order of their names, each name once; a label that is no
address is refused with FleetError, as is everything else that is no answer of Prometheus.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, NamedTuple

import httpx
import msgspec

from sidecar.errors import FleetError
from sidecar.fold.drift.contrast import MAX_REPLICAS
from sidecar.publish.fleet.fetching import Limits, fetch, shown

MAX_EXPORTERS: Final = MAX_REPLICAS
_MAX_BYTES: Final = 8 << 20
_MAX_NAME: Final = 200
_HOST: Final = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
_ADDRESS: Final = re.compile(rf"(?P<scheme>https?://)?{_HOST}(:(?P<port>\d{{1,5}}))?/?", re.ASCII)


class Exporter(NamedTuple):
    """One replica: its name, and the address of its API."""

    name: str
    url: str


class Places(NamedTuple):
    """Where to ask, and which labels say what."""

    prometheus: str
    query: str
    replica_label: str
    api_label: str
    api_port: int


async def find(client: httpx.AsyncClient, places: Places, seconds: float) -> tuple[Exporter, ...]:
    """The exporters that Prometheus knows. Raises FleetError, also when there are none."""
    url = f"{places.prometheus.rstrip('/')}/api/v1/query"
    body = await fetch(client, url, {"query": places.query}, Limits(seconds, _MAX_BYTES))
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FleetError("decode", f"{shown(url)}: no answer of Prometheus: {error}") from error
    found = dict(_exporters(answer, places))
    if not found:
        raise FleetError(
            "schema",
            f"{shown(url)}: no series for {places.query}: have Prometheus scrape port 9478 of "
            "every exporter, or correct the query",
        )
    names = sorted(found)[:MAX_EXPORTERS]
    return tuple(Exporter(name, found[name]) for name in names)


class _Series(msgspec.Struct):
    metric: dict[str, str]


class _Data(msgspec.Struct):
    result: Annotated[list[_Series], msgspec.Meta(max_length=10_000)]


class _Answer(msgspec.Struct):
    data: _Data


def _exporters(answer: _Answer, places: Places) -> Iterator[tuple[str, str]]:
    for series in answer.data.result:
        labels = series.metric
        name = labels.get(places.replica_label, "")
        if not name or len(name) > _MAX_NAME:
            raise FleetError(
                "schema",
                f"a series of {places.query} has no usable label {places.replica_label}: set "
                "SIDECAR_FLEET_REPLICA_LABEL to one that names the replica",
            )
        yield name, _api(labels, places)


def _api(labels: Mapping[str, str], places: Places) -> str:
    told = labels.get(places.api_label, "")
    found = _ADDRESS.fullmatch(told or labels.get("instance", ""))
    if found is None:
        raise FleetError(
            "schema",
            f"{(told or labels.get('instance', ''))[:_MAX_NAME]!r} is no address of an API: "
            f"relabel {places.api_label} to host:port",
        )
    port = found["port"] if told and found["port"] else str(places.api_port)
    return f"{found['scheme'] or 'http://'}{found['host']}:{port}"
