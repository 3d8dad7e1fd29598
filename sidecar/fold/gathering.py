"""Finished requests put together: what each rank measured, its signature, what the front end saw.

The parts come in frames of their own, in any order: the record and the signature from each stage of
the pipeline, the rest from a front end, which calls the request by another id.

Guarantees: a request is given out once, `QUIET_NS` after its last part, and at the latest
`PATIENCE_NS` after its first; every part is in at most one request; at most `MAX_WAITING` requests
and `MAX_BYTES` bytes wait, and what is too many is given out early, not lost. Time arrives as data.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sidecar.fold.requests import Measured, client_ids, request_bytes
from sidecar.fold.signatures import Signed
from sidecar.wire.frame import Aborted, Finished, Requests, Serving, Signature, Signatures, Source

QUIET_NS: Final = 2 * 10**9  # the stages of a pipeline flush once a second, each by its own clock
PATIENCE_NS: Final = 15 * 10**9  # more than the longest time between frames, 10 s
MAX_WAITING: Final = 4096
MAX_BYTES: Final = 32 << 20

_Key = tuple[int, str]  # data-parallel rank and the engine's id


class Gathered(NamedTuple):
    """One finished request, as far as it was told of.

    id: the engine's; the client's when no engine told of it.
    model_name: as its front end said; "" when that never spoke.
    measured, signed: one for each rank that told, in order of the rank.
    serving, aborted: the front end's part: one of them, the latter when its client hung up; both
        None when it never came.
    """

    id: str
    model_name: str
    measured: tuple[Measured, ...]
    signed: tuple[Signed, ...]
    serving: Finished | None
    aborted: Aborted | None


class Gathering:
    """Parts in, finished requests out.

    num_late: parts that came after their request was given out.
    """

    def __init__(self, max_waiting: int = MAX_WAITING, max_bytes: int = MAX_BYTES) -> None:
        self.num_late = 0
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._waiting: dict[_Key, _Parts] = {}  # in order of their first part
        self._by_client: dict[str, dict[_Key, None]] = {}  # sets in order of arrival
        self._fronts: dict[str, list[_Front]] = {}  # whose engine has not spoken yet
        self._aborted: dict[str, _Front] = {}  # likewise, by the engine's id
        self._gone: dict[_Key, int] = {}  # given out a short while ago
        self._early: list[Gathered] = []

    @property
    def num_waiting(self) -> int:
        """Requests that wait for more of them."""
        return len(self._waiting) + sum(map(len, self._fronts.values())) + len(self._aborted)

    def update(self, source: Source, body: Requests | Signatures | Serving, now_ns: int) -> None:
        """Take the parts in one frame, read at `now_ns`; signatures of what goes on are no part."""
        match body:
            case Requests():
                layers = tuple(body.layers)
                for request in body.requests:
                    self._measure(source, Measured(source.name, layers, request), now_ns)
            case Signatures():
                for signature in filter(_is_final, body.signatures):
                    self._sign(source, Signed(source.name, body.layout, signature), now_ns)
            case Serving():
                self._serve(body, now_ns)
        self._bound()

    def take(self, now_ns: int) -> list[Gathered]:
        """What is whole, or has waited long enough."""
        due = [key for key, parts in self._waiting.items() if parts.is_due(now_ns)]
        found = [*self._early, *(self._give(key, now_ns) for key in due)]
        self._early.clear()
        found.extend(self._alone(now_ns - PATIENCE_NS))
        self._forget(now_ns - PATIENCE_NS)
        return found

    def take_all(self, now_ns: int) -> list[Gathered]:
        """Everything, as it is."""
        found = [*self._early, *(self._give(key, now_ns) for key in list(self._waiting))]
        self._early.clear()
        return [*found, *self._alone(now_ns)]

    def _serve(self, body: Serving, now_ns: int) -> None:
        for done in body.finished:
            self._finish(_Front(done, body.model_name, now_ns))
        for gone in body.aborted:
            self._abort(_Front(gone, body.model_name, now_ns))

    def _measure(self, source: Source, measured: Measured, now_ns: int) -> None:
        key = (source.dp, measured.request.id)
        parts = self._parts(key, measured.request.end_ns, now_ns)
        if parts is None:
            return
        if any(each.source == source.name for each in parts.measured.values()):
            parts = self._renew(key, measured.request.end_ns, now_ns)  # the id is used again
        parts.measured[source.pp, source.tp] = measured
        self._grow(parts, request_bytes(measured.request), now_ns)

    def _sign(self, source: Source, signed: Signed, now_ns: int) -> None:
        key = (source.dp, signed.signature.id)
        parts = self._parts(key, signed.signature.t_ns, now_ns)
        if parts is None:
            return
        if any(each.source == source.name for each in parts.signed.values()):
            parts = self._renew(key, signed.signature.t_ns, now_ns)
        parts.signed[source.pp, source.tp] = signed
        self._grow(parts, len(signed.signature.values), now_ns)

    def _finish(self, front: "_Front") -> None:
        named = self._by_client.get(front.told.id, ())
        free = [parts for key in named if (parts := self._waiting[key]).front is None]
        if not free:
            self._fronts.setdefault(front.told.id, []).append(front)
            return
        # The children of one request share its id, and clients use ids again: the nearest end.
        parts = min(free, key=lambda each: abs(each.end_ns - front.told.end_ns))
        parts.front, parts.last_ns = front, max(parts.last_ns, front.now_ns)

    def _abort(self, front: "_Front") -> None:
        # An engine's id is among those that its client may know it by.
        for key in self._by_client.get(front.told.id, ()):
            parts = self._waiting[key]
            if parts.id == front.told.id and parts.front is None:
                parts.front, parts.last_ns = front, max(parts.last_ns, front.now_ns)
                return
        self._aborted[front.told.id] = front

    def _parts(self, key: _Key, end_ns: int, now_ns: int) -> "_Parts | None":
        """Where a part of `key` belongs; None when it comes too late."""
        if key in self._gone:
            self.num_late += 1
            return None
        if key not in self._waiting:
            self._open(key, end_ns, now_ns)
        return self._waiting[key]

    def _open(self, key: _Key, end_ns: int, now_ns: int) -> None:
        for client_id in client_ids(key[1]):
            self._by_client.setdefault(client_id, {})[key] = None
        front = self._aborted.pop(key[1], None) or self._nearest(key[1], end_ns)
        self._waiting[key] = _Parts(key[1], end_ns, now_ns, now_ns, front=front)

    def _nearest(self, internal_id: str, end_ns: int) -> "_Front | None":
        """Of front ends that came first, the one that saw this request end; no longer waiting."""
        for client_id in client_ids(internal_id):
            if fronts := self._fronts.get(client_id):
                nearest = min(fronts, key=lambda each: abs(each.told.end_ns - end_ns))
                fronts.remove(nearest)
                if not fronts:
                    del self._fronts[client_id]
                return nearest
        return None

    def _renew(self, key: _Key, end_ns: int, now_ns: int) -> "_Parts":
        self._early.append(self._give(key, now_ns))
        del self._gone[key]
        self._open(key, end_ns, now_ns)
        return self._waiting[key]

    def _grow(self, parts: "_Parts", num_bytes: int, now_ns: int) -> None:
        parts.num_bytes += num_bytes
        parts.last_ns = now_ns
        self._num_bytes += num_bytes

    def _give(self, key: _Key, now_ns: int) -> Gathered:
        parts = self._waiting.pop(key)
        self._num_bytes -= parts.num_bytes
        self._gone[key] = now_ns
        for client_id in set(client_ids(key[1])):
            named = self._by_client[client_id]
            del named[key]
            if not named:
                del self._by_client[client_id]
        return parts.gathered()

    def _alone(self, oldest_ns: int) -> Iterator[Gathered]:
        """Of front ends, those told of by `oldest_ns`: no engine measured such a request."""
        for client_id, fronts in list(self._fronts.items()):
            yield from (each.alone() for each in fronts if each.now_ns <= oldest_ns)
            kept = [front for front in fronts if front.now_ns > oldest_ns]
            self._fronts[client_id] = kept
            if not kept:
                del self._fronts[client_id]
        for internal_id, front in list(self._aborted.items()):
            if front.now_ns <= oldest_ns:
                yield self._aborted.pop(internal_id).alone()

    def _forget(self, oldest_ns: int) -> None:
        self._gone = {key: ns for key, ns in self._gone.items() if ns > oldest_ns}

    def _bound(self) -> None:
        while self._waiting and (
            len(self._waiting) > self._max_waiting or self._num_bytes > self._max_bytes
        ):
            key = next(iter(self._waiting))
            self._early.append(self._give(key, self._waiting[key].last_ns))
        while sum(map(len, self._fronts.values())) + len(self._aborted) > self._max_waiting:
            oldest = [fronts[0] for fronts in self._fronts.values()] + [*self._aborted.values()]
            self._early.extend(self._alone(min(each.now_ns for each in oldest)))
        while len(self._gone) > 4 * self._max_waiting:
            del self._gone[next(iter(self._gone))]


class _Front(NamedTuple):
    """A front end's part, of which model, and when it was read."""

    told: Finished | Aborted
    model_name: str
    now_ns: int

    def alone(self) -> Gathered:
        """The request of which nobody else told."""
        return Gathered(self.told.id, self.model_name, (), (), *self.parts())

    def parts(self) -> tuple[Finished | None, Aborted | None]:
        """What the front end told, in one of two places."""
        told = self.told
        return (told, None) if isinstance(told, Finished) else (None, told)


@dataclass(slots=True)
class _Parts:
    """What is known of one request; `end_ns` is the engine's."""

    id: str
    end_ns: int
    first_ns: int
    last_ns: int
    measured: dict[tuple[int, int], Measured] = field(default_factory=dict)  # by rank
    signed: dict[tuple[int, int], Signed] = field(default_factory=dict)
    front: _Front | None = None
    num_bytes: int = 0

    def is_due(self, now_ns: int) -> bool:
        is_quiet = self.front is not None and now_ns - self.last_ns >= QUIET_NS
        return is_quiet or now_ns - self.first_ns >= PATIENCE_NS

    def gathered(self) -> Gathered:
        front = self.front
        model_name = "" if front is None else front.model_name
        done, gone = (None, None) if front is None else front.parts()
        measured = tuple(measured for _, measured in sorted(self.measured.items()))
        signed = tuple(signed for _, signed in sorted(self.signed.items()))
        return Gathered(self.id, model_name, measured, signed, done, gone)


def _is_final(signature: Signature) -> bool:
    return signature.is_final
