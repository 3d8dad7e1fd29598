"""What a running sidecar and Prometheus say of themselves.

Guarantee: whatever is answered, or not, becomes a finding.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sidecar.doctor.finding import Finding, Level

_BUILD: Final = "llm_internals_build_info"
_GROUPS: Final = "llm-internals"
Ask = Callable[[str], Any]  # a URL to the JSON it answers; raises OSError, or ValueError


def exporter(ask: Ask, url: str) -> Iterator[Finding]:
    """The sidecar whose API is at `url`."""
    try:
        status = ask(f"{url}/v1/status")
    except (OSError, ValueError) as error:
        yield Finding(
            Level.UNKNOWN, "sidecar", f"{url} cannot be asked: {error}",
            "start sidecar serve, or give its API with --url (and its --api-token-file)",
        )  # fmt: skip
        return
    yield Finding(Level.OK, "sidecar", f"{url}: release {status['version']}")
    yield from _refused(status["frames_refused"])
    engines = [each for each in status["sources"] if each["role"] == "engine"]
    if not engines:
        yield Finding(
            Level.WARN, "tap", "no engine was heard",
            "is SIDECAR_TAP=1 where vLLM runs, and SIDECAR_SOCKET the same file on both sides?",
        )  # fmt: skip
    for each in engines:
        yield _tap(each)
    for reason in status["reasons"]:
        yield Finding(Level.WARN, "telemetry", reason)


def baseline(ask: Ask, url: str) -> Iterator[Finding]:
    """How the baseline in force fits what is served."""
    try:
        told = ask(f"{url}/v1/baselines")
    except (OSError, ValueError):
        return  # `exporter` has said so
    if told["baseline"] is None:
        yield Finding(Level.WARN, "baseline in force", told["reason"])
        return
    yield Finding(Level.OK, "baseline in force", f"digest {told['baseline']['digest'][:12]}")


def prometheus(ask: Ask, url: str) -> Iterator[Finding]:
    """Whether Prometheus scrapes sidecars, and has our alerts."""
    try:
        scraped = ask(f"{url}/api/v1/query?query={_BUILD}")["data"]["result"]
        groups = ask(f"{url}/api/v1/rules")["data"]["groups"]
    except (OSError, ValueError, KeyError) as error:
        yield Finding(
            Level.WRONG, "prometheus", f"{url} cannot be asked: {error}", "correct --prometheus"
        )
        return
    if scraped:
        names = ", ".join(sorted(each["metric"].get("instance", "?") for each in scraped)[:8])
        yield Finding(Level.OK, "prometheus", f"scrapes {len(scraped)}: {names}")
    else:
        yield Finding(
            Level.WRONG, "prometheus", f"{url} scrapes no sidecar",
            "add a scrape job or the chart's PodMonitor for port 9478; see its /targets",
        )  # fmt: skip
    num = sum(len(each["rules"]) for each in groups if each["name"].startswith(_GROUPS))
    if num:
        yield Finding(Level.OK, "alerts", f"{num} rules are loaded")
    else:
        yield Finding(
            Level.WARN, "alerts", "none of our rules is loaded",
            "load dashboards/rules.yml, or the chart's PrometheusRule",
        )  # fmt: skip


def _refused(refused: Mapping[str, int]) -> Iterator[Finding]:
    told = {cause: num for cause, num in refused.items() if num}
    if not told:
        return
    counts = ", ".join(f"{num} {cause}" for cause, num in told.items())
    remedies = {
        "schema": "install one release on both sides",
        "mac": "give both sides one SIDECAR_KEY_FILE",
    }
    remedy = "; ".join(remedies[cause] for cause in told if cause in remedies)
    yield Finding(Level.WARN, "frames", f"refused so far: {counts}", remedy)


def _tap(source: Mapping[str, Any]) -> Finding:
    name, state = f"tap {source['source']}", source["state"]
    if state == "live":
        return Finding(Level.OK, name, "live")
    if state is None:
        return Finding(Level.UNKNOWN, name, "has not spoken of itself yet", "wait a second")
    detail = source["detail"] or source["reason"] or state
    return Finding(Level.WRONG, name, f"{state}: {detail}", "docs/support.md")
