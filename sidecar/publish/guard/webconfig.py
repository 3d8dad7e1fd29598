"""TLS, client certificates and passwords of a port, in the file format of Prometheus' exporters.

https://prometheus.io/docs/prometheus/latest/configuration/https/ : `tls_server_config` (cert_file,
key_file, client_ca_file, client_auth_type, min_version), `http_server_config.headers` and
`basic_auth_users` (bcrypt). Guarantees: a key that is not understood is an error, never ignored;
certificates and passwords are read again when their files change, and a change that cannot be
used leaves the last good one in force and is logged; passwords are compared in constant time.
"""

import hashlib
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import bcrypt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sidecar.config import PREFIX
from sidecar.errors import UNREADABLE, ConfigError

_KEY: Final = f"{PREFIX}WEB_CONFIG_FILE"
_REQUIRED: Final = "RequireAndVerifyClientCert"
_log = logging.getLogger(__name__)

Versions: Final[Mapping[str, ssl.TLSVersion]] = {
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}


# RFC 9110, 5.1 and 5.5: what is none would break every answer, not one.
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+\z")]
HeaderValue = Annotated[str, Field(pattern=r"^([!-~]([ -~\t]*[!-~])?)?\z")]


class Tls(BaseModel):
    """`tls_server_config`; relative files are beside the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    client_auth_type: Literal[
        "NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"
    ] = "NoClientCert"
    min_version: Literal["TLS12", "TLS13"] = "TLS12"


class Http(BaseModel):
    """`http_server_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    headers: Mapping[HeaderName, HeaderValue] = Field(default_factory=dict)


class WebConfig(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tls_server_config: Tls | None = None
    http_server_config: Http = Http()
    basic_auth_users: Mapping[
        str, Annotated[str, Field(pattern=r"^\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}$")]
    ] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigError."""
        try:
            config = cls.model_validate(_loaded(path.read_bytes()) or {})
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise ConfigError(f"{_KEY}: {path}: {_first(error)}") from error
        tls = config.tls_server_config
        if tls is not None and tls.client_ca_file is None and tls.client_auth_type == _REQUIRED:
            raise ConfigError(f"{_KEY}: {_REQUIRED} needs client_ca_file")
        return config


class WebGuard:
    """One web configuration in force.

    Raises ConfigError at once when the file, a certificate or a key cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._config = WebConfig.read(path)
        self._seen = self._times()
        self.context = self._context()

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Headers of every answer."""
        return tuple(self._config.http_server_config.headers.items())

    @property
    def needs_password(self) -> bool:
        """Whether somebody must say who they are."""
        self._refresh()
        return bool(self._config.basic_auth_users)

    @property
    def digest(self) -> bytes:
        """Of all users and their passwords' hashes: another one means that something changed."""
        return hashlib.sha256(repr(sorted(self._config.basic_auth_users.items())).encode()).digest()

    def is_user(self, name: str, password: bytes) -> bool:
        """Whether this is the password of this user. Some 50 ms of CPU: never on the event loop."""
        users = self._config.basic_auth_users
        if not users:
            return False
        # A user who does not exist costs as much as one who does.
        expected = users.get(name) or next(iter(users.values()))
        try:
            is_right = bcrypt.checkpw(password[:72], expected.encode())
        except ValueError:
            return False
        return is_right and name in users

    def _context(self) -> ssl.SSLContext | None:
        tls = self._config.tls_server_config
        if tls is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = Versions[tls.min_version]
        context.sni_callback = self._on_hello
        try:
            self._load(context, tls)
            if tls.client_ca_file is not None:
                context.load_verify_locations(self._beside(tls.client_ca_file))
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{_KEY}: {self._path}: {error}; give PEM files") from error
        if tls.client_auth_type == _REQUIRED:
            context.verify_mode = ssl.CERT_REQUIRED
        elif tls.client_auth_type == "VerifyClientCertIfGiven":
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _on_hello(self, _socket: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        self._refresh()

    def _refresh(self) -> None:
        """Read again what changed; the next connection has the new certificate."""
        times = self._times()
        if times == self._seen:
            return
        self._seen = times
        try:
            config = WebConfig.read(self._path)
            if self.context is not None and config.tls_server_config is not None:
                self._load(self.context, config.tls_server_config)
        except (ConfigError, OSError) as error:
            _log.error("the web configuration was not read again: %s", error)
        else:
            self._config = config

    def _load(self, context: ssl.SSLContext, tls: Tls) -> None:
        context.load_cert_chain(self._beside(tls.cert_file), self._beside(tls.key_file))

    def _beside(self, path: Path) -> Path:
        return self._path.parent / path

    def _times(self) -> tuple[int, ...]:
        """When each file was last changed; 0 for one that is not there."""
        tls = self._config.tls_server_config
        files = [self._path]
        if tls is not None:
            files += [self._beside(tls.cert_file), self._beside(tls.key_file)]
        return tuple(_changed(each) for each in files)


def _loaded(data: bytes) -> Any:
    """What the file says. Raises yaml.YAMLError, whatever PyYAML raises at a value or a depth."""
    try:
        return yaml.safe_load(data)
    except UNREADABLE as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error
    except RecursionError as error:
        raise yaml.YAMLError("nested too deep") from error


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        wrong = error.errors(include_input=False)[0]
        return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
    return str(error)
