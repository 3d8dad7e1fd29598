"""A running exporter, asked over its API what it executes and what it served.

Guarantees: every answer is checked against the wire's own types before it is used; what cannot be
reached or read is one line with the address. Loads httpx, so import it under `needs`.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import httpx
import msgspec
import numpy as np

from sidecar.errors import ConfigError
from sidecar.fold.drift.observation import Observation
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout, entries

_SECONDS: Final = 30.0
_MAX_SIGNATURES: Final = 2048  # that an exporter holds
_MAX_NUMBERS: Final = 1_000_000  # that go into one answer; each value counts twice, see `publish`


class Engine(NamedTuple):
    """What one engine worker executes; `layout` is None until it sent a signature."""

    source: str
    identity: Identity
    layout: Layout | None


class Told(NamedTuple):
    """A finished request, and of which engine; `key` is the same whenever it is told again."""

    key: tuple[str, str, int]
    engine: Engine
    observation: Observation


class Exporter:
    """The API at `url`, such as `http://127.0.0.1:9479`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(timeout=_SECONDS)
        self.is_full = False  # whether the latest answer held as many as it could

    def __enter__(self) -> "Exporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def engines(self) -> list[Engine]:
        """Every engine whose tap is heard. ConfigError when the exporter cannot be asked."""
        return [_engine(each, self._url) for each in self._get("/v1/identity")["engines"]]

    def observations(self) -> Iterator[Told]:
        """The latest finished requests, the oldest first; canaries are left out."""
        engines = {each.source: each for each in self.engines() if each.layout is not None}
        if not engines:
            return
        widest = max(len(list(entries(each.layout))) for each in engines.values() if each.layout)
        limit = max(1, min(_MAX_SIGNATURES, _MAX_NUMBERS // (2 * widest + 1)))
        answer = self._get(f"/v1/signatures?limit={limit}")
        self.is_full = len(answer["signatures"]) >= limit
        for each in reversed(answer["signatures"]):
            engine = engines.get(each["source"])
            names = answer["layouts"][each["layout"]]["entries"]
            is_of_it = engine and engine.layout and list(entries(engine.layout)) == names
            if engine and is_of_it and each["is_final"] and not each["canary"]:
                yield Told((each["source"], each["id"], each["t_ns"]), engine, _observed(each))

    def _get(self, path: str) -> Any:
        try:
            reply = self._client.get(self._url + path)
            reply.raise_for_status()
            return reply.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"{self._url}{path}: {error or type(error).__name__}; give the address of the API "
                "of `sidecar serve`, port 9479 unless told otherwise"
            ) from error


def _engine(told: Any, url: str) -> Engine:
    try:
        return Engine(
            told["source"],
            _struct(told["identity"], Identity),
            told["layout"] and _struct(told["layout"], Layout),
        )
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{url}/v1/identity: not the answer of this release ({error}); update both sides"
        ) from error


def _struct(told: dict[str, Any], kind: type[Any]) -> Any:
    return msgspec.convert([told[field] for field in kind.__struct_fields__], kind)


def _observed(told: dict[str, Any]) -> Observation:
    values = [np.nan if value is None else value for value in told["values"]]
    return Observation(
        told["t_ns"],
        told["source"],
        told["route"],
        told["adapter"],
        told["num_prompt_tokens"],
        told["num_generated_tokens"],
        "",
        np.array(values, np.float32),
    )
