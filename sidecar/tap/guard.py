"""The guest never hurts the host: what of ours raises is swallowed, counted and disarmed.

After `max_errors` exceptions at one site that site is not called again. The first exception of a
site is logged once with its traceback; the rest are only counted.
"""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """Runs our code in the engine's threads; returns None where it raised or is disarmed.

    errors: exceptions so far, by site.
    """

    def __init__(self, max_errors: int) -> None:
        self.errors: dict[str, int] = {}
        self._max_errors = max_errors

    def run(
        self, site: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """Result of `call`, or None when it raised or its site is disarmed."""
        if self.is_disarmed(site):
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:  # the one place where everything is caught
            self.count(site, error)
            return None

    def count(self, site: str, error: BaseException) -> None:
        """Count an exception of ours that was caught elsewhere."""
        self.errors[site] = self.errors.get(site, 0) + 1
        if self.errors[site] == 1:
            _LOG.warning("sidecar: error at %s; serving goes on", site, exc_info=error)

    def is_disarmed(self, site: str) -> bool:
        """Whether `site` has used up its exceptions."""
        return self.errors.get(site, 0) >= self._max_errors

    @property
    def disarmed(self) -> list[str]:
        """Sites that are not called any more."""
        # A copy: another thread may add a site meanwhile.
        return [site for site in list(self.errors) if self.is_disarmed(site)]


_LOG = logging.getLogger("sidecar.tap")
