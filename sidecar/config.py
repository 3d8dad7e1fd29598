"""Configuration of the tap, the exporter and the fleet job: read once, validated once, then frozen.

Every key is an environment variable with the prefix `SIDECAR_`; the tap's keys may also come as
`--additional-config '{"sidecar": {...}}'` of vLLM. A key nobody knows, or a value out of range,
raises ConfigError with the key and the remedy. The environment is a parameter, never a global.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sidecar.errors import ConfigError

PREFIX: Final = "SIDECAR_"
METRICS_PORT: Final = 9478
API_PORT: Final = 9479
FLEET_PORT: Final = 9480
DEMO_WINDOW_SECONDS: Final = 5.0
RUN_DIR: Final = Path("/run/llm-internals")
SOCKET_NAME: Final = "ingest.sock"
CONTROL_NAME: Final = "control.json"
# A Kubernetes Service named `sidecar` puts such names into every pod beside it.
_OF_KUBERNETES: Final = re.compile(
    r"^SIDECAR_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$"
)
_FALSE: Final = ("0", "false", "no", "off", "")


def _names(value: object) -> object:
    """A list of names may be written with commas."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


class Shared(BaseModel):
    """Keys that both sides read: where they meet, and what proves who speaks or steers.

    socket: path of the unix socket.
    key_file: file whose bytes sign every frame (HMAC-SHA256); none means unsigned.
    canary_key_file: file whose bytes prove that a request is a canary of the operator's; with none
        no request is one.
    control_file: file whose contents steer the tap while it runs; beside the socket by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # A lambda, because the function stands below its readers, public first.
    socket: Path = Field(default_factory=lambda: default_socket())  # noqa: PLW0108
    key_file: Path | None = None
    canary_key_file: Path | None = None
    control_file: Path | None = None

    @property
    def control_path(self) -> Path:
        """Where the control of the running tap is looked for."""
        return self.control_file or self.socket.with_name(CONTROL_NAME)

    def key(self) -> bytes | None:
        """Bytes of the key file, or None when none is configured."""
        return _secret("KEY_FILE", self.key_file)

    def canary_key(self) -> bytes | None:
        """Bytes of the canary's key file, or None when none is configured."""
        return _secret("CANARY_KEY_FILE", self.canary_key_file)


class TapConfig(Shared):
    """Keys of the tap, inside the engine.

    tap: whether the tap is on at all.
    flush_seconds: time between frames.
    max_errors: exceptions of ours at one site before that site is disarmed.
    requests: whether each finished request is described by a record of its own.
    signatures: whether requests are summed up as signatures, at their end and every second.
    signature_layers: layers of a signature, evenly spaced, the first and the last included.
    attention_layers: attention layers that are sampled, spaced likewise; 0 for none.
    attention_every: each of them is sampled once in so many steps; 0 for never.
    attention_requests: requests sampled in one step at most.
    confidence_every: generated tokens are measured every so many steps; 0 for never.
    router: whether the routers of mixture-of-experts layers are measured.
    sketch_layers: layers whose residual stream is projected, spaced likewise; 0 for none.
    sketch_size, sketch_seed: random orthonormal directions per layer, and what draws them.
    probe_file: JSON file that describes probes of your own; none by default.
    adapters: LoRA adapters that may be labels, separated by commas; others are `other`.
    routes: kinds of traffic that may be labels, likewise; a client names its own (docs/routes.md).
    weights_digest: whether the files of the model are hashed once, in the background.
    budget_share: most time that the tap may take, as a share of the engine's; 0 for no limit.
    allow_opt_out: whether a client may ask that its request is not measured.
    scans: whether an operator may have requests scanned, row by row (docs/scan.md).
    """

    tap: bool = False
    flush_seconds: Annotated[float, Field(ge=0.05, le=10.0)] = 1.0
    max_errors: Annotated[int, Field(ge=1, le=1000)] = 10
    requests: bool = True
    signatures: bool = True
    signature_layers: Annotated[int, Field(ge=1, le=64)] = 10
    attention_layers: Annotated[int, Field(ge=0, le=64)] = 10
    attention_every: Annotated[int, Field(ge=0, le=1_000_000)] = 16
    attention_requests: Annotated[int, Field(ge=1, le=1024)] = 8
    confidence_every: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    router: bool = True
    sketch_layers: Annotated[int, Field(ge=0, le=16)] = 4
    sketch_size: Annotated[int, Field(ge=1, le=64)] = 16
    sketch_seed: Annotated[int, Field(ge=0, lt=1 << 62)] = 0
    probe_file: Path | None = None
    adapters: Annotated[tuple[str, ...], BeforeValidator(_names), Field(max_length=32)] = ()
    routes: Annotated[tuple[str, ...], BeforeValidator(_names), Field(max_length=32)] = ()
    weights_digest: bool = True
    budget_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    allow_opt_out: bool = False
    scans: bool = True

    @classmethod
    def read(cls, environ: Mapping[str, str], extra: Mapping[str, Any] | None = None) -> Self:
        """Settings from `environ`; those in `extra` (vLLM's additional config) win."""
        return _validate(cls, {**_from_environ(environ, cls), **(extra or {})})

    @classmethod
    def meeting_point(cls, environ: Mapping[str, str]) -> Self:
        """Where the sidecar listens, when the other keys cannot be used: enough to say so."""
        known = {PREFIX + field.upper() for field in Shared.model_fields}
        return cls.read({name: value for name, value in environ.items() if name in known})


class Judging(BaseModel):
    """Keys of whoever judges windows; the exporter's docstring says what each means."""

    preset: Literal["production", "demo"] = "production"
    window_seconds: Annotated[float, Field(ge=1.0, le=3600.0)] = 300.0
    state_dir: Path | None = None

    @property
    def is_demo(self) -> bool:
        """Whether windows are short for a demonstration."""
        return self.preset == "demo"

    @property
    def window_ns(self) -> int:
        """Length of a window in force: as given, else as the preset has it."""
        is_given = "window_seconds" in self.model_fields_set
        seconds = DEMO_WINDOW_SECONDS if self.is_demo and not is_given else self.window_seconds
        return round(seconds * 1e9)


class ExporterConfig(Shared, Judging):
    """Keys of the exporter.

    metrics_host, metrics_port: where /metrics and health are served.
    api_host, api_port: where the API is served; loopback unless told otherwise.
    api_token_file: file with the token that the API asks for; none lets in whoever reaches its
        port, which must be one of loopback then.
    api_hosts: host names that the API is asked under beside those of loopback, separated by commas;
        `*` for any.
    web_config_file: TLS, passwords and headers of both ports, in the format of Prometheus'
        exporters.
    series_cap: most series of layers, heads, experts and the like in one exposition; the rest is
        counted, not published. 50 000 take some 30 ms of CPU a scrape (`bench/scrape.py`), and hold
        one engine of 61 layers, 128 heads and 256 experts.
    metrics_file: TOML file that says which layers, heads and families /metrics shows; none is the
        default of examples/metrics.toml, at most 2,000 series for a dense model of 80 layers.
    stale_seconds: a source unheard for this long is no longer published.
    max_age_seconds: frames older than this when read are counted and discarded.
    preset: production, or demo, which judges short windows so that a demonstration shows a verdict
        in minutes; its rates of false pages mean nothing, and every reason says so.
    window_seconds: length of a window of traffic, by the time of the frames; a preset's own when
        it is not given.
    state_dir: folder that keeps what the drift channels have learnt over a restart; none keeps it
        in memory alone.
    record: whether every request is recorded there, for `sidecar baseline fit`; never its words.
    baseline_file: the reference that traffic is compared with; none means that it is not compared.
    baseline_source_file: JSON file that says where the baseline is fetched from, into
        `baseline_file`, and its checksum; none fetches nothing.
    baseline_key_file: ed25519 public key that the baseline file must be signed by; none means
        unsigned files are read.
    canary_url: root of the served model's API, of this replica alone; none sends no canaries.
    canary_model: name of the model there; the first that the server names by default.
    canary_suite: JSONL file of known-safe prompts; the bundled one by default.
    canary_seconds: from the start of one round of canaries to the next.
    canary_learn_seconds: the same until what is benign has been learnt (200 rounds).
    canary_rate: most canary requests a second, of one data-parallel rank.
    canary_ranks: data-parallel ranks behind the URL; each gets every round.
    canary_api_key_file: file with the key that the server asks its clients for.
    otlp_endpoint: root of an OpenTelemetry receiver that gets a span for each sampled or anomalous
        request; none sends no traces. https:// is TLS, http:// is not.
    otlp_protocol: grpc (usually port 4317) or http/protobuf (4318).
    otlp_headers_file: file with one `name: value` a line, sent with every batch, such as a token.
    otlp_ca_file: PEM file of who may sign the receiver's certificate; the system's by default.
    trace_ratio: share of the requests whose caller decided nothing that become spans; a caller's
        own decision (`traceparent`) is kept, and anomalous requests are sent always.
    otlp_metrics_seconds: time between pushes of all metrics to the receiver; 0 for never.
    """

    metrics_host: str = "0.0.0.0"  # noqa: S104 - Prometheus scrapes from another pod
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = METRICS_PORT
    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Field(ge=0, le=65535)] = API_PORT
    api_token_file: Path | None = None
    api_hosts: Annotated[tuple[str, ...], BeforeValidator(_names), Field(max_length=32)] = ()
    web_config_file: Path | None = None
    series_cap: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    metrics_file: Path | None = None
    stale_seconds: Annotated[float, Field(ge=1.0, le=3600.0)] = 30.0
    max_age_seconds: Annotated[float, Field(ge=0.1, le=3600.0)] = 10.0
    record: bool = False
    baseline_file: Path | None = None
    baseline_source_file: Path | None = None
    baseline_key_file: Path | None = None
    canary_url: Annotated[str, Field(pattern=r"^https?://[^\s/]")] | None = None
    canary_model: str | None = None
    canary_suite: Path | None = None
    canary_seconds: Annotated[float, Field(ge=1.0, le=86_400.0)] = 300.0
    canary_learn_seconds: Annotated[float, Field(ge=0.5, le=86_400.0)] = 15.0
    canary_rate: Annotated[float, Field(ge=0.1, le=1000.0)] = 8.0
    canary_ranks: Annotated[int, Field(ge=1, le=64)] = 1
    canary_api_key_file: Path | None = None
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/]")] | None = None
    otlp_protocol: Literal["grpc", "http/protobuf"] = "grpc"
    otlp_headers_file: Path | None = None
    otlp_ca_file: Path | None = None
    trace_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    otlp_metrics_seconds: Annotated[float, Field(ge=0.0, le=3600.0)] = 0.0

    def api_token(self) -> bytes | None:
        """What the API asks its clients for; None when everybody who reaches its port may ask."""
        return _secret("API_TOKEN_FILE", self.api_token_file)

    def canary_api_key(self) -> str:
        """What the served model asks its clients for; "" when it asks for nothing."""
        if self.canary_api_key_file is None:
            return ""
        try:
            return self.canary_api_key_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{PREFIX}CANARY_API_KEY_FILE: {error}; give a text file this user can read"
            ) from error

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Settings from `environ`."""
        config = _validate(cls, _from_environ(environ, cls))
        if config.api_token_file is None and not _is_loopback(config.api_host):
            raise ConfigError(
                f"{PREFIX}API_HOST={config.api_host!r}: who reaches the API there can change what "
                f"is watched; give it a token with {PREFIX}API_TOKEN_FILE, or serve it on loopback"
            )
        return config


class FleetConfig(Judging):
    """Keys of the fleet job, which compares the replicas of one deployment.

    fleet_prometheus: address of Prometheus' HTTP API, which knows the exporters.
    fleet_query: instant query with one series for each exporter of *this* deployment.
    fleet_replica_label: label whose value names a replica.
    fleet_api_label: label that holds the address of an exporter's API, where there is one.
    fleet_api_port: where it is absent, the API is at this port of the host in `instance`.
    fleet_api_token_file: file with the token that the exporters' API asks for.
    fleet_host, fleet_port: where the job's own /metrics, health and API are served.
    fleet_poll_seconds: time between rounds of asking.
    fleet_timeout_seconds: most time that one answer may take.
    preset, window_seconds, state_dir: as for the exporters; the first two must be theirs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fleet_prometheus: str = ""
    fleet_query: Annotated[str, Field(min_length=1)] = "llm_internals_build_info"
    fleet_replica_label: Annotated[str, Field(min_length=1)] = "instance"
    fleet_api_label: str = "llm_internals_api"
    fleet_api_port: Annotated[int, Field(ge=1, le=65535)] = API_PORT
    fleet_api_token_file: Path | None = None
    fleet_host: str = "0.0.0.0"  # noqa: S104 - Prometheus scrapes from another pod
    fleet_port: Annotated[int, Field(ge=0, le=65535)] = FLEET_PORT
    fleet_poll_seconds: Annotated[float, Field(ge=0.1, le=3600.0)] = 30.0
    fleet_timeout_seconds: Annotated[float, Field(ge=0.1, le=60.0)] = 5.0

    def fleet_api_token(self) -> bytes | None:
        """What the exporters' API asks for; None when it asks for nothing."""
        return _secret("FLEET_API_TOKEN_FILE", self.fleet_api_token_file)

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Settings from `environ`. Raises ConfigError, also when nobody said where to ask."""
        config = _validate(cls, _from_environ(environ, cls))
        if not config.fleet_prometheus.startswith(("http://", "https://")):
            raise ConfigError(
                f"{PREFIX}FLEET_PROMETHEUS={config.fleet_prometheus!r}: give the address of "
                "Prometheus, such as --prometheus http://prometheus:9090"
            )
        return config


def default_socket() -> Path:
    """Where both sides meet unless told otherwise.

    `/run/llm-internals/` when this user can write or create it, else a folder of this user's
    under the temporary directory. Both sides run as one user by default, so both find the same.
    """
    for folder in (RUN_DIR, RUN_DIR.parent):
        if folder.exists():
            if os.access(folder, os.W_OK | os.X_OK):
                return RUN_DIR / SOCKET_NAME
            break
    return Path("/tmp") / f"llm-internals-{os.getuid()}" / SOCKET_NAME  # noqa: S108 - owner-only folder


def is_tap_on(environ: Mapping[str, str]) -> bool:
    """Whether `SIDECAR_TAP` asks for the tap; the cheap test that runs in every vLLM process."""
    return environ.get(f"{PREFIX}TAP", "").strip().lower() not in _FALSE


_Config = TypeVar("_Config", bound=BaseModel)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secret(key: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{PREFIX}{key}: {error}; give a file this user can read") from error
    if len(secret) < 16:
        raise ConfigError(f"{PREFIX}{key}: fewer than 16 bytes; write 32 random bytes there")
    return secret


def _from_environ(environ: Mapping[str, str], cls: type[BaseModel]) -> dict[str, str]:
    known = {
        *TapConfig.model_fields,
        *ExporterConfig.model_fields,
        *FleetConfig.model_fields,
    }
    given: dict[str, str] = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or _OF_KUBERNETES.search(name):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key not in known:
            raise ConfigError(_unknown(name, [PREFIX + field.upper() for field in known]))
        if key in cls.model_fields:
            given[key] = value
    return given


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"{name}: unknown key; {remedy}"


def _validate(cls: type[_Config], given: Mapping[str, Any]) -> _Config:
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(cls, each) for each in error.errors())) from error


def _explain(cls: type[BaseModel], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown(key, list(cls.model_fields))
    return f"{PREFIX}{key.upper()}={error['input']!r}: {error['msg']}"
