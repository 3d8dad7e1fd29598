"""A running exporter, asked over its API what it executes and what it served.

Guarantees: every answer is checked against the wire's own types before it is used; what cannot be
reached or read is one line with the address. Loads httpx, so import it under `needs`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

import httpx
import msgspec
import numpy as np

from sidecar.errors import ConfigError
from sidecar.fold.drift.observation import Observation
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout, size

_SECONDS: Final = 30.0
_MAX_SIGNATURES: Final = 2048  # that an exporter holds
_MAX_NUMBERS: Final = 1_000_000  # that go into one answer; each value counts twice, see `publish`


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class Engine(NamedTuple):
    """What one engine worker executes; `layout` is None until it sent a signature."""

    source: str
    identity: Identity
    layout: Layout | None


class Told(NamedTuple):
    """A finished request, and what it is of; `key` is the same whenever it is told again."""

    key: tuple[str, str, int]
    identity: Identity
    layout: Layout
    observation: Observation


class Exporter:
    """The API at `url`, such as `http://127.0.0.1:9479`; `headers` are what opens it."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = dict(headers or {})
        self._client = httpx.Client(timeout=_SECONDS)
        self._limit = 0  # signatures that fit into one answer; 0 until their size is known
        self.is_full = False  # whether the latest answer held as many as it could

    def __enter__(self) -> "Exporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def engines(self) -> list[Engine]:
        """Every engine whose tap is heard. ConfigError when the exporter cannot be asked."""
        answer = self._get("/v1/signatures")
        with self._read("/v1/signatures"):
            layouts = [_struct(each, Layout) for each in answer["layouts"]]
            told = reversed(answer["signatures"])
            latest = {each["source"]: layouts[each["layout"]] for each in told}
        identities = self._identities()
        return [Engine(name, each, latest.get(name)) for name, each in identities.items()]

    def observations(self) -> list[Told]:
        """The latest finished requests, the oldest first; canaries are left out."""
        identities = self._identities()
        if not self._limit:
            self._signatures(1)
        if not self._limit:
            return []
        layouts, told = self._signatures(self._limit)
        with self._read("/v1/signatures"):
            return [
                Told(
                    (each["source"], each["id"], each["t_ns"]),
                    identities[each["source"]],
                    layouts[each["layout"]],
                    _observed(each),
                )
                for each in reversed(told)
                if each["is_final"] and not each["canary"] and each["source"] in identities
            ]

    def _signatures(self, limit: int) -> tuple[list[Layout], list[Any]]:
        """The latest of them, latest first; and how many the next answer can hold."""
        answer = self._get(f"/v1/signatures?limit={limit}")
        with self._read("/v1/signatures"):
            layouts = [_struct(each, Layout) for each in answer["layouts"]]
            self.is_full = len(answer["signatures"]) >= limit
            widest = max(map(size, layouts), default=0)
            self._limit = widest and max(1, min(_MAX_SIGNATURES, _MAX_NUMBERS // (2 * widest)))
            return layouts, answer["signatures"]

    def _identities(self) -> dict[str, Identity]:
        """What each engine executes whose tap has spoken."""
        answer = self._get("/v1/status")
        with self._read("/v1/status"):
            return {
                each["source"]: _struct(each["identity"], Identity)
                for each in answer["sources"]
                if each["role"] == "engine" and each["state"] is not None
            }

    def _get(self, path: str) -> Any:
        try:
            reply = self._client.get(self._url + path, headers=self._headers)
            reply.raise_for_status()
            return reply.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"{self._url}{path}: {error or type(error).__name__}; give the address of the API "
                "of `sidecar serve`, port 9479 unless told otherwise"
            ) from error

    @contextmanager
    def _read(self, path: str) -> Iterator[None]:
        try:
            yield
        except (IndexError, KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            raise ConfigError(
                f"{self._url}{path}: not the answer of this release ({error!r}); update both sides"
            ) from error


def _struct(told: dict[str, Any], kind: type[_Struct]) -> _Struct:
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
