"""All that stands before the routes of the two ports, put together from the configuration.

Order, from outside: headers of every answer, limits, password or token, audit log, routes.
"""

from collections.abc import Iterator
from ssl import SSLContext
from typing import Final, NamedTuple

from prometheus_client.core import Metric as Family
from starlette.types import ASGIApp

from sidecar.config import ExporterConfig
from sidecar.errors import StoreError
from sidecar.fold.reducer import Snapshot
from sidecar.publish.guard.audited import Audited, Log, create_log
from sidecar.publish.guard.door import Door
from sidecar.publish.guard.headers import SafeHeaders
from sidecar.publish.guard.limits import Limits, Rate
from sidecar.publish.guard.passwords import Passwords
from sidecar.publish.guard.refusal import Refusals
from sidecar.publish.guard.tokens import Tokens
from sidecar.publish.guard.webconfig import WebGuard
from sidecar.publish.metrics.collectors import family
from sidecar.store.audit import AuditLog, Head

# Of one address. A page asks some five times a second, Prometheus once in seconds.
RATE: Final = Rate(100.0, 500.0)


class Guard(NamedTuple):
    """What guards one exporter.

    tokens: None lets in everybody who reaches the API's port. web: TLS and passwords, or None.
    """

    refusals: Refusals
    log: Log
    tokens: Tokens | None = None
    web: WebGuard | None = None
    hosts: tuple[str, ...] = ()

    @property
    def context(self) -> SSLContext | None:
        """TLS of both ports; None serves plain HTTP."""
        return self.web.context if self.web else None

    def metrics(self, app: ASGIApp) -> ASGIApp:
        """The port of /metrics, guarded."""
        if self.web is not None:
            app = Passwords(app, self.refusals, self.web)
        return self._outer(app)

    def api(self, app: ASGIApp) -> ASGIApp:
        """The port of the API, guarded; its token goes before a password."""
        app = Audited(app, self.refusals, self.log)
        app = Door(app, self.refusals, self.tokens, self.hosts)
        if self.web is not None and self.tokens is None:
            app = Passwords(app, self.refusals, self.web)
        return self._outer(app)

    def collect(self, _: Snapshot) -> Iterator[Family]:
        """Its part of /metrics."""
        counts = self.refusals.get()
        yield family("http_refused", [((cause,), num) for cause, num in counts.items()])
        if isinstance(self.log, AuditLog):
            yield family("audit_entries", [((), _head(self.log).number)])

    def _outer(self, app: ASGIApp) -> ASGIApp:
        more = self.web.headers if self.web else ()
        return SafeHeaders(Limits(app, self.refusals, RATE), more)


def create_guard(config: ExporterConfig) -> Guard:
    """Raises ConfigError when a file that was named cannot be used."""
    token = config.api_token()
    return Guard(
        Refusals(),
        create_log(config.state_dir),
        None if token is None else Tokens(token),
        None if config.web_config_file is None else WebGuard(config.web_config_file),
        config.api_hosts,
    )


def _head(log: AuditLog) -> Head:
    try:
        return log.head()
    except StoreError:
        return Head()
