"""The doors, and what may happen at each: an outcome in a word; an exception is a bug of ours."""

import re
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from hypothesis import strategies as st

from bench.fuzz import inputs
from sidecar.errors import ConfigError, FrameError, StateError, StoreError
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.plan import Survey
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Assembly, Window, Windows
from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish.api.posting import read as read_body
from sidecar.publish.api.problems import Unanswerable
from sidecar.publish.drift.answers import Announcement
from sidecar.publish.drift.judges import Judges
from sidecar.publish.drift.panel import Terms, panel_of
from sidecar.publish.guard.webconfig import WebConfig, WebGuard
from sidecar.publish.scan.answers import ScanWish
from sidecar.store import audit, baseline_file, sealed, snapshot
from sidecar.wire import control
from sidecar.wire.frame import Frame, Identity, Source, pack, unpack
from sidecar.wire.frame import Header as FrameHeader
from sidecar.wire.signature import Layout, size
from sidecar.wire.synthetic import SyntheticEngine
from sidecar.wire.traceparent import parse

ACCEPTED: Final = "accepted"
NOW_NS: Final = 1_790_000_000 * 10**9
KEY: Final = b"k" * 32
_LIMITS: Final = Limits(30 * 10**9, 10 * 10**9)
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # as h11 has it
_VALUE: Final = re.compile(r"([\x21-\x7e\x80-\xff]+([ \t]+[\x21-\x7e\x80-\xff]+)*)?")
_TERMS: Final = Terms("production", 300 * 10**9)
_LAYOUT: Final = Layout([0, 1], [1], [], [1], 3, 7, ["mood"])


class Door(NamedTuple):
    """take: what becomes of some bytes, in a word. drawn: such bytes, far and near from right."""

    name: str
    take: Callable[[bytes], str]
    drawn: st.SearchStrategy[bytes]


def slug(door: Door) -> str:
    """Its name as that of a folder."""
    return door.name.replace(" ", "-")


def _frame(data: bytes) -> str:
    """Decoded, folded, and told to whoever asks."""
    try:
        frame = unpack(data)
    except FrameError as error:
        return error.cause
    if unpack(pack(frame)).header != frame.header:
        raise AssertionError("what was accepted is not what is packed")
    reducer = Reducer(_LIMITS)
    reducer.update(frame, NOW_NS)
    reducer.get(NOW_NS)
    return ACCEPTED


def _signed_frame(data: bytes) -> str:
    """Nobody without the key is let in."""
    try:
        unpack(data, KEY)
    except FrameError as error:
        return error.cause
    if data not in _signed_frames():
        raise AssertionError("a frame was accepted that nobody signed")
    return ACCEPTED


def _baseline(data: bytes) -> str:
    """Read, and one window judged by it."""
    path = _put(data)
    try:
        held = baseline_file.read_file(path)
    except StoreError:
        return "refused"
    panel = panel_of(_TERMS, held.baseline)
    with np.errstate(all="ignore"):
        for seat in panel.seats.values():
            seat.channel.update(_window())
        _check(Judges(_TERMS, panel))
    return ACCEPTED


def _snapshot(data: bytes) -> str:
    """Read, restored, looked at, and kept again."""
    path = _put(data)
    try:
        held = snapshot.SnapshotFile(path).read()
    except StoreError:
        return "refused"
    judges = Judges(_TERMS, panel_of(_TERMS, None))
    if held is None:
        return "none"
    try:
        judges.restore(held)
    except StateError:
        return "refused by its channel"
    _check(judges)
    judges.export(NOW_NS)
    return ACCEPTED


def _check(judges: Judges) -> None:
    """A channel that fails is left out and told of, but it is a bug of ours nevertheless."""
    for each in judges.get(NOW_NS).channels:
        if each.num_errors:
            raise AssertionError(f"a channel failed: {each.verdict.reason}")


def _web(data: bytes) -> str:
    """Read, and put in force; every header of it can be sent."""
    path = _put(data)
    try:
        WebConfig.read(path)
        guard = WebGuard(path)
    except ConfigError:
        return "refused"
    if not all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in guard.headers):
        raise AssertionError("a header was accepted that no server can send")
    return ACCEPTED


def _control(data: bytes) -> str:
    """The operator's wishes."""
    try:
        control.decode(data)
    except ConfigError:
        return "refused"
    return ACCEPTED


def _body(data: bytes) -> str:
    """What is posted, to both routes that read it."""
    outcome = "refused"
    for model in (Announcement, ScanWish):
        try:
            read_body(model, data)
        except Unanswerable as error:
            if error.status_code != 422:
                raise
        else:
            outcome = ACCEPTED
    return outcome


def _audit(data: bytes) -> str:
    """Verified, and gone on with."""
    path = _put(data)
    try:
        audit.verify(path)
        audit.AuditLog(path).append(NOW_NS, "token", "test", {})
        audit.verify(path)
    except StoreError:
        return "refused"
    return ACCEPTED


def _traceparent(data: bytes) -> str:
    """A header that any client may send."""
    context = parse(data.decode("latin-1"))
    if context is None:
        return "none"
    if parse(context.header) != context:
        raise AssertionError("a context does not read as it is written")
    return ACCEPTED


@cache
def _folder() -> Path:
    # In memory where there is such a place: thousands of files a minute.
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))


def _put(data: bytes) -> Path:
    path = _folder() / "input"
    path.write_bytes(data)
    return path


@cache
def _frames() -> tuple[Frame, ...]:
    engine = SyntheticEngine(2, num_heads=2, num_experts=2)
    requests = engine.requests(2, NOW_NS)
    bodies = [engine.status(), engine.step(), requests, engine.tables(), engine.scan(4, 3)]
    bodies += [engine.signatures(2, NOW_NS), engine.serving(NOW_NS)]
    return tuple(
        Frame(FrameHeader("boot-one", Source("engine"), k + 1, NOW_NS, 0, 0), body)
        for k, body in enumerate(bodies)
    )


@cache
def _signed_frames() -> frozenset[bytes]:
    return frozenset(pack(each, KEY) for each in _frames())


def _observations() -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            NOW_NS + k * 3 * 10**9,
            "engine-dp0-pp0-tp0",
            ("chat", "code")[k % 2],
            "",
            (40, 400)[k // 2 % 2],
            20,
            "",
            (3 + 0.1 * rng.standard_normal(size(_LAYOUT))).astype("<f4"),
        )
        for k in range(600)
    ]


@cache
def _fit() -> Fit:
    survey = Survey(Schema.of(_LAYOUT))
    for item in _observations():
        survey.update(item)
    fit = Fit(Header(Identity(model_name="m"), _LAYOUT, Assembly()), survey.get())
    for item in _observations():
        fit.update(item)
    return fit


@cache
def _window() -> Window:
    windows = Windows(Schema.of(_LAYOUT), Assembly())
    closed = [each for item in _observations() for each in windows.update(item)]
    return [*closed, *windows.advance(NOW_NS + 10**13)][0]


@cache
def _baseline_payload() -> bytes:
    fit = _fit()
    return msgspec.msgpack.encode({"baseline": fit.get().to_plain(), "fit": fit.to_plain()})


@cache
def _snapshot_payload() -> bytes:
    judges = Judges(_TERMS, panel_of(_TERMS, None))
    judges.announce("a deployment", NOW_NS)
    made = judges.export(NOW_NS)
    return msgspec.msgpack.encode({"saved_ns": made.saved_ns, "channels": made.channels})


def _resealed(kind: str, version: int) -> Callable[[bytes], bytes]:
    return lambda payload: sealed.seal(kind, version, {}, payload)


@cache
def _audit_log() -> bytes:
    path = _folder() / "log"
    path.unlink(missing_ok=True)
    log = audit.AuditLog(path)
    for k in range(4):
        log.append(NOW_NS + k, "token", "drift.acknowledge", {"channel": "traffic"})
    return path.read_bytes()


_WEB: Final = (
    b"tls_server_config:\n  cert_file: a.pem\n  key_file: a.key\n  min_version: TLS13\n",
    b"http_server_config:\n  headers: {X-Frame-Options: deny}\n",
    b"basic_auth_users:\n  ops: $2b$04$" + b"a" * 53 + b"\n",
)
_CONTROLS: Final = (
    control.encode(control.Control(is_on=False, layers=[0, 3], scan_requests=2, scan_id="a1")),
)
_BODIES: Final = (b'{"note": "new weights"}', b'{"num_requests": 3}', b"{}")
_PARENT: Final = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_HEAD_BYTES: Final = 4 + 32  # magic and schema, and the place of the signature


def _framed(payload: bytes) -> bytes:
    return pack(_frames()[0])[:_HEAD_BYTES] + payload


def doors() -> Sequence[Door]:
    """All of them."""
    frames = [pack(each) for each in _frames()]
    payloads = [each[_HEAD_BYTES:] for each in frames]
    signed = sorted(_signed_frames())
    baseline = _resealed(baseline_file.KIND, baseline_file.VERSION)
    kept = _resealed(snapshot.KIND, snapshot.VERSION)
    return (
        Door("frame", _frame, inputs.near(frames) | inputs.packed(payloads, _framed)),
        Door("signed frame", _signed_frame, inputs.near(signed)),
        Door(
            "baseline",
            _baseline,
            inputs.near([baseline(_baseline_payload())])
            | inputs.packed([_baseline_payload()], baseline),
        ),
        Door(
            "snapshot",
            _snapshot,
            inputs.near([kept(_snapshot_payload())]) | inputs.packed([_snapshot_payload()], kept),
        ),
        Door("web config", _web, inputs.near(_WEB) | inputs.written(_WEB)),
        Door("control file", _control, inputs.near(_CONTROLS) | inputs.written(_CONTROLS)),
        Door("posted body", _body, inputs.near(_BODIES) | inputs.written(_BODIES)),
        Door("audit log", _audit, inputs.near([_audit_log()])),
        Door("traceparent", _traceparent, inputs.near([_PARENT])),
    )
