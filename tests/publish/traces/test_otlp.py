"""Spans over the network, to real receivers: gRPC and HTTP, plain and TLS, alive and not."""

import datetime
import ipaddress
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sidecar.config import ExporterConfig
from sidecar.errors import ConfigError
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.reducer import Reducer
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.intake import Intake, Listener, each_of
from sidecar.publish.traces import otlp
from sidecar.publish.traces.otlp import SpanCarrier, read_headers
from sidecar.publish.traces.outbox import Outbox
from sidecar.publish.traces.sampling import Sampler
from sidecar.publish.traces.tracer import Tracer
from sidecar.wire.frame import Requests, pack
from tests import fakes
from tests.fakes import ENGINE, FRONTEND, LIMITS, NOW, SECOND, FakeClock, FakeInbox, FakeSource
from tests.otlp import HttpOtlpReceiver, OtlpReceiver
from tests.publish import drifting
from tests.publish.traces.spans import CALLER, eventually, is_balanced, span

RECEIVERS = {"grpc": OtlpReceiver, "http/protobuf": HttpOtlpReceiver}
PROTOCOLS = list(RECEIVERS)
Receiver = OtlpReceiver | HttpOtlpReceiver


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "EXPORT_SECONDS", 1.0)


@pytest.fixture(params=PROTOCOLS)
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    made: Receiver = RECEIVERS[request.param]()
    yield made
    made.stop()


def protocol_of(receiver: Receiver) -> str:
    return next(name for name, kind in RECEIVERS.items() if isinstance(receiver, kind))


def config(endpoint: str, protocol: str, **others: str | Path) -> ExporterConfig:
    keys = {"otlp_endpoint": endpoint, "otlp_protocol": protocol, **others}
    return ExporterConfig.read({f"SIDECAR_{k.upper()}": str(v) for k, v in keys.items()})


def tracer_to(
    endpoint: str,
    protocol: str,
    clock: FakeClock | None = None,
    drift: Callable[[], DriftView] = drifting.everything,
) -> Tracer:
    """A whole tracer that tries again at once."""
    carrier = SpanCarrier(config(endpoint, protocol))
    outbox = Outbox(carrier, linger_seconds=0.0, pause=lambda _: time.sleep(0.05))
    return Tracer(outbox, Sampler(1.0), drift, clock or FakeClock())


def messages(num: int) -> list[bytes]:
    """Frames of `num` finished requests, three of each."""
    engine, frontend = FakeSource(ENGINE), FakeSource(FRONTEND)
    made = []
    for k in range(num):
        internal = f"chatcmpl-{k}-0badcafe"
        done = fakes.finished(f"chatcmpl-{k}", traceparent=CALLER)
        made.append(pack(engine.frame(Requests([0, 1, 2], [fakes.request(internal)]))))
        made.append(pack(engine.frame(fakes.signatures(internal))))
        made.append(pack(frontend.frame(fakes.serving(done))))
    return made


def ingest(listener: Listener, told: list[bytes]) -> float:
    """Seconds that a fresh intake takes for these messages."""
    intake = Intake(FakeInbox(), Reducer(LIMITS), None, FakeClock(), listener)
    started = time.perf_counter()
    for message in told:
        intake.accept(message)
    return time.perf_counter() - started


def test_a_request_arrives_as_it_was_told(receiver: Receiver) -> None:
    """Frames in, and at the other end of the network one span under its caller's."""
    clock = FakeClock()
    tracer = tracer_to(receiver.endpoint, protocol_of(receiver), clock)
    tracer.start()
    ingest(tracer.hear, messages(1))
    clock.advance(20)
    eventually(receiver.spans)
    tracer.stop()
    (told,) = receiver.spans()
    resource = receiver.traces[0].resource_spans[0].resource
    attributes = {each.key: each.value for each in told.attributes}

    assert told.trace_id.hex() in CALLER
    assert told.parent_span_id.hex() in CALLER
    assert (told.start_time_unix_nano, told.end_time_unix_nano) == (NOW - 2 * SECOND, NOW)
    assert (told.name, told.kind) == ("chat tiny", Span.SPAN_KIND_SERVER)
    assert attributes["gen_ai.usage.output_tokens"].int_value == 9
    assert attributes["llm_internals.coverage.observed_ratio"].double_value == 72 / 88
    assert [each.name for each in told.events][-1] == "gen_ai.evaluation.result"
    assert {e.key: e.value.string_value for e in resource.attributes}["service.name"]
    assert is_balanced(tracer.get().account)


def test_a_drift_verdict_that_changes_arrives(receiver: Receiver) -> None:
    """As a span of its own, whatever is sampled."""
    view = drifting.everything()
    channels = []
    for each in view.channels:
        calm = each.verdict._replace(state=ChannelState.ARMED)
        channels.append(each._replace(verdict=calm))
    views = iter([view._replace(channels=tuple(channels))])
    tracer = tracer_to(receiver.endpoint, protocol_of(receiver), drift=lambda: next(views, view))
    tracer.start()
    eventually(receiver.spans)
    tracer.stop()

    assert "drift traffic page" in {each.name for each in receiver.spans()}


def test_headers_of_the_file_are_sent_along(receiver: Receiver, tmp_path: Path) -> None:
    """A token, which stands in no environment variable."""
    file = tmp_path / "headers"
    file.write_text("# of the vendor\n\nAuthorization: Bearer a:b\nx-team : blue \n")
    made = config(receiver.endpoint, protocol_of(receiver), otlp_headers_file=file)
    carrier = SpanCarrier(made)
    is_taken = carrier.export([span()])
    carrier.shutdown()

    assert is_taken
    assert receiver.headers[0]["authorization"] == "Bearer a:b"
    assert receiver.headers[0]["x-team"] == "blue"


@pytest.mark.parametrize(
    ("text", "message"),
    [("no colon\n", "line 1 is not `name: value`"), (": x", "line 1 is not"), ("ä: 1", "ascii")],
)
def test_a_file_of_headers_that_cannot_be_used_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    """With the key, before anything starts."""
    file = tmp_path / "headers"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"SIDECAR_OTLP_HEADERS_FILE: .*{message}"):
        read_headers(file)
    with pytest.raises(ConfigError, match=r"SIDECAR_OTLP_HEADERS_FILE: .*No such file"):
        read_headers(tmp_path / "none")


@pytest.fixture(scope="module")
def certificate() -> tuple[bytes, bytes]:
    """Key and certificate of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return private, made.public_bytes(pem)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tls_believes_the_configured_authority_alone(
    protocol: str,
    certificate: tuple[bytes, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it the receiver is a stranger, and gets nothing; no variable overrules it."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    file = tmp_path / "ca.pem"
    file.write_bytes(certificate[1])
    receiver: Receiver = RECEIVERS[protocol](certificate=certificate)
    try:
        trusting = SpanCarrier(config(receiver.endpoint, protocol, otlp_ca_file=file))
        distrustful = SpanCarrier(config(receiver.endpoint, protocol))
        is_taken = trusting.export([span("sent")]), distrustful.export([span("kept")])
        trusting.shutdown()
        distrustful.shutdown()
    finally:
        receiver.stop()

    assert receiver.endpoint.startswith("https://")
    assert is_taken == (True, False)
    assert [each.name for each in receiver.spans()] == ["sent"]


def test_an_authority_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """One sentence with the key, for either protocol."""
    for protocol in PROTOCOLS:
        with pytest.raises(ConfigError, match=r"SIDECAR_OTLP_CA_FILE: .*give a PEM file"):
            SpanCarrier(config("https://127.0.0.1:1", protocol, otlp_ca_file=tmp_path / "none"))


# --- receivers in trouble --------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_receiver_that_comes_back_gets_what_waited(protocol: str) -> None:
    """It is away when the first batch is sent, and is tried again."""
    kind = RECEIVERS[protocol]
    first = kind()
    port = first.port
    first.stop()
    carrier = SpanCarrier(config(first.endpoint, protocol))
    outbox = Outbox(carrier, linger_seconds=0.0, pause=lambda _: time.sleep(0.05))
    outbox.start()
    outbox.put(span("patient"))
    eventually(lambda: outbox.get().num_refused)
    second = kind(port)
    try:
        eventually(lambda: outbox.get().sent + sum(outbox.get().dropped.values()) == 1)
        outbox.put(span("next"))
        eventually(lambda: "next" in {each.name for each in second.spans()})
    finally:
        outbox.stop()
        second.stop()
    account = outbox.get()

    assert account.sent >= 1
    assert account.finished == 2
    assert is_balanced(account)


def test_a_receiver_that_refuses_for_a_while_loses_nothing() -> None:
    """503, then 200: the batch is sent once."""
    receiver = HttpOtlpReceiver()
    receiver.status = 503
    carrier = SpanCarrier(config(receiver.endpoint, "http/protobuf"))

    def pause(_: float) -> None:
        receiver.status = 200

    outbox = Outbox(carrier, linger_seconds=0.0, pause=pause)
    outbox.start()
    outbox.put(span("patient"))
    eventually(lambda: outbox.get().sent == 1)
    outbox.stop()
    receiver.stop()

    assert [each.name for each in receiver.spans()] == ["patient"]
    assert outbox.get().num_refused >= 1


def test_a_receiver_that_never_accepts_costs_its_spans_and_no_more() -> None:
    """400: they are given up after five tries, each counted."""
    receiver = HttpOtlpReceiver()
    receiver.status = 400
    carrier = SpanCarrier(config(receiver.endpoint, "http/protobuf"))
    outbox = Outbox(carrier, linger_seconds=0.0, pause=lambda _: None)
    outbox.start()
    outbox.put(span())
    eventually(lambda: outbox.get().dropped["not_taken"] == 1)
    outbox.stop()
    receiver.stop()

    assert is_balanced(outbox.get())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("trouble", ["dead", "hanging"])
def test_no_receiver_slows_ingest(protocol: str, trouble: str) -> None:
    """The same frames, with a receiver in trouble and without traces: by ratio."""
    receiver: Receiver = RECEIVERS[protocol]()
    receiver.is_open.clear()
    if trouble == "dead":
        receiver.stop()
    clock = FakeClock()
    tracer = tracer_to(receiver.endpoint, protocol, clock)
    watch = drifting.watch()
    told = messages(300)
    without = min(ingest(each_of([watch.hear]), told) for _ in range(3))
    tracer.start()
    with_traces = []
    for _ in range(3):
        with_traces.append(ingest(each_of([watch.hear, tracer.hear]), told))
        clock.advance(20)  # what was heard is told of now, while the next frames come
    eventually(lambda: tracer.get().account.finished >= 300)
    tracer.stop()
    account = tracer.get().account
    if trouble != "dead":
        receiver.stop()

    # Spans are made meanwhile, of which every one takes its share of the same Python.
    assert min(with_traces) < 10 * without + 1.0
    assert account.sent == 0
    assert sum(account.dropped.values()) == account.finished
    assert is_balanced(account)


def test_stopping_is_quick_with_a_receiver_that_hangs(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sidecar ends in time; what was on its way counts as lost."""
    monkeypatch.setattr(otlp, "EXPORT_SECONDS", 30.0)
    receiver.is_open.clear()
    tracer = tracer_to(receiver.endpoint, protocol_of(receiver))
    tracer.start()
    ingest(tracer.hear, messages(5))
    started = time.monotonic()
    tracer.stop()
    seconds = time.monotonic() - started
    account = tracer.get().account

    assert seconds < 20  # it takes two
    assert account.dropped["shutdown"] == account.finished == 5


def test_a_receiver_that_is_away_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The metrics say how often; the log says why."""
    receiver = HttpOtlpReceiver()
    receiver.stop()
    carrier = SpanCarrier(config(receiver.endpoint, "http/protobuf"))
    for _ in range(4):
        carrier.export([span()])
    told = [each for each in caplog.records if each.name.startswith("opentelemetry")]

    assert len(told) <= 1
