"""A Ray cluster as the pool: the parts of long work run where there is room.

Workers open the same paths as this process, so recordings lie on a disk that all of them see.
Guarantees: at most `MAX_WAITING` results wait in the cluster's memory; a worker with another
release is refused, since its numbers may mean something else.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import ray

import sidecar
from sidecar.errors import ConfigError, SidecarError

Part = TypeVar("Part")
Result = TypeVar("Result")
LOCAL: Final = "local"
MAX_WAITING: Final = 32


class OnRay:
    """The cluster at `address` (`host:6379`, `ray://host:10001`, `auto`), or a new one: `local`.

    Use as a context manager: it is left at the end, and a local one stopped. ConfigError when it
    cannot be reached. Options of a local one, such as `num_cpus`, go to `ray.init`.
    """

    def __init__(self, address: str, **options: Any) -> None:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--ray {address}: {reason}; give host:port of the head, ray://host:10001 of its "
                f"client server, or {LOCAL} for a cluster on this machine"
            ) from error

    def __enter__(self) -> "OnRay":
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
        """`function` of each part, in order, as many at once as the cluster has room for."""
        run = ray.remote(_run)
        shared = ray.put(function)  # once, with all that it holds, such as a plan
        waiting: deque[Any] = deque()
        for part in parts:
            waiting.append(run.remote(shared, part, sidecar.__version__))
            if len(waiting) >= MAX_WAITING:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _run(function: Callable[[Part], Result], part: Part, release: str) -> Result:
    if sidecar.__version__ != release:
        raise ConfigError(
            f"a Ray worker has release {sidecar.__version__} and this process {release}; "
            "install the same everywhere"
        )
    return function(part)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SidecarError):
            raise cause from None  # the operator's own mistake, without the worker's traceback
        raise
