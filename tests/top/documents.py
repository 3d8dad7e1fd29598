"""Answers of a sidecar, as far as `sidecar top` reads them."""

from typing import Any

NOW = 1_790_000_000
URL = "http://127.0.0.1:9479"


def answers(num_layers: int = 4, level: str = "ok", seconds: int = 30) -> dict[str, Any]:
    """By path, without what is asked after it."""
    starts = [(NOW - seconds + place) * 10**9 for place in range(seconds)]
    columns = [
        {
            "t_ns": t_ns,
            "rows": 5,
            "values": [layer + 0.01 * place for layer in range(num_layers)],
            "z": [float(layer) for layer in range(num_layers)],
        }
        for place, t_ns in enumerate(starts)
    ]
    return {
        "/v1/status": {
            "now_ns": NOW * 10**9,
            "summary": {"level": level, "sentence": "This is how things stand.", "layers": []},
            "sources": [
                {
                    "source": "engine-dp0",
                    "state": "live",
                    "last_frame_age_seconds": 0.4,
                    "detail": "",
                    "reason": "",
                }
            ],
        },
        "/v1/drift": {"channels": [channel("canary", "armed"), channel("mix", "armed", on=False)]},
        "/v1/timeline": {
            "unit": "ratio",
            "reference": "own start",
            "layers": list(range(num_layers)),
            "columns": columns,
        },
        "/v1/timeline/lines": {
            "lines": {
                "tokens": {"unit": "tokens per second", "values": [None, *range(1, seconds)]},
                "waiting": {"unit": "requests", "values": [None] * seconds},
            }
        },
        "/v1/timeline/signals": {"signals": [{"id": "residual_rms"}, {"id": "block_influence"}]},
    }


def channel(name: str, state: str, *, on: bool = True) -> dict[str, Any]:
    """A drift channel, with one cause."""
    cause = {"stream": "s", "layer": 3, "signal": "residual_rms", "share": 1.75}
    return {
        "channel": name,
        "is_configured": on,
        "state": state,
        "reason": "a reason",
        "level": 0.25,
        "since_ns": NOW * 10**9,
        "causes": [cause],
    }


class Sidecar:
    """Answers like one; `failing` says why it does not. Remembers what it was asked."""

    def __init__(self, told: dict[str, Any] | None = None) -> None:
        self.told = answers() if told is None else told
        self.failing = ""
        self.asked: list[str] = []

    def __call__(self, path: str) -> Any:
        """Answer."""
        self.asked.append(path)
        if self.failing:
            raise OSError(self.failing)
        return self.told.get(path.partition("?")[0])
