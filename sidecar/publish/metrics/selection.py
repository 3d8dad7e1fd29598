"""Which of the many series are published: layers, populations, heads, experts.

Guarantees: the default is at most 2,000 series for a dense model of 80 layers, whatever its heads
(`docs/cardinality.md` has the formula); what is left out of /metrics is still folded, and told by
the API in full; a file is used whole or refused with the key and the remedy.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sidecar.errors import ConfigError
from sidecar.fold.series import LayerTotals
from sidecar.fold.source import SourceView
from sidecar.fold.tables import TableTotals
from sidecar.publish.metrics import heads
from sidecar.wire.frame import Arrays, Cells
from sidecar.wire.signals import BY_ID, POPULATIONS, Metric, Phase, Position

MAX_BYTES: Final = 1 << 16
Layers = Literal["all"] | Annotated[tuple[int, ...], Field(max_length=1024)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: Layers = "all"
    phases: tuple[Phase, ...] = tuple(Phase)

    def has_layer(self, label: str) -> bool:
        """Whether the layer of this label is asked for."""
        return self.layers == "all" or label in map(str, self.layers)


class Residual(_Part):
    """Families of the residual stream.

    layers, phases, positions: those whose sums and counts are published.
    window_maxima: one for each "layer", one over all layers of the "model" (`layer="all"`), "none".
    """

    positions: tuple[Position, ...] = (Position.REST,)
    window_maxima: Literal["layer", "model", "none"] = "model"


class Attention(_Part):
    """Families of attention heads: one series for "each", or their "sum" (`head="all"`)."""

    heads: Literal["each", "sum"] = "sum"


class Router(_Part):
    """Families of routers."""


class Selection(BaseModel):
    """What /metrics shows.

    left_out: ids of families that are not published, names without `llm_internals_`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    left_out: tuple[str, ...] = ("router_expert_rows", "router_topk_margin_ratio")
    residual: Residual = Residual()
    attention: Attention = Attention()
    router: Router = Router()

    @field_validator("left_out")
    @classmethod
    def _known(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        for each in ids:
            if each not in BY_ID:
                raise ValueError(f"no family {each!r}; `sidecar metrics` lists them")
        return ids

    @classmethod
    def everything(cls) -> Self:
        """Every series there is: only SIDECAR_SERIES_CAP bounds them."""
        return cls(
            left_out=(),
            residual=Residual(positions=tuple(Position), window_maxima="layer"),
            attention=Attention(heads="each"),
        )

    @classmethod
    def of_file(cls, path: Path | None) -> Self:
        """The selection that a TOML file asks for; the default where there is no file.

        Raises ConfigError with the key when it cannot be used.
        """
        if path is None:
            return cls()
        try:
            text = path.read_bytes()[: MAX_BYTES + 1].decode()
            if len(text) > MAX_BYTES:
                raise ConfigError(f"SIDECAR_METRICS_FILE: {path} is longer than {MAX_BYTES} bytes")
            return cls.model_validate(tomllib.loads(text))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"SIDECAR_METRICS_FILE: {path}: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"SIDECAR_METRICS_FILE: {path}: {key}: {first['msg']}; "
                "examples/metrics.toml spells out every key"
            ) from error

    def wants(self, metric: Metric) -> bool:
        """Whether a family is published at all."""
        return metric.id not in self.left_out

    def apply(self, sources: Sequence[SourceView]) -> list[SourceView]:
        """`sources` with what is not asked for emptied, and heads added up where that is asked."""
        reduced = [
            view._replace(
                totals=None if view.totals is None else self._layers(view.totals),
                tables=tuple(self._table(table) for table in view.tables),
            )
            for view in sources
        ]
        return heads.add_up(reduced) if self.attention.heads == "sum" else reduced

    def _layers(self, totals: LayerTotals) -> LayerTotals:
        chosen = self.residual
        asked = [phase in chosen.phases and at in chosen.positions for phase, at in POPULATIONS]
        kept = [chosen.has_layer(str(layer)) for layer in totals.layers]
        moments = totals.moments
        count = np.where(np.outer(asked, kept), moments.count, np.uint64(0))
        # What counts as non-finite is published always, of every layer.
        masked = Arrays(count, moments.nonfinite, moments.sums, moments.extremes)
        return totals._replace(moments=masked)

    def _table(self, table: TableTotals) -> TableTotals:
        parts: dict[str, _Part] = {"attention": self.attention, "router": self.router}
        part = parts.get(table.group)
        if part is None:
            return table
        places = [
            [i for i, layer in enumerate(table.axes[0]) if part.has_layer(layer)],
            [i for i, phase in enumerate(table.axes[1]) if phase in part.phases],
        ]
        return _cut(table, places)


def _cut(table: TableTotals, places: list[list[int]]) -> TableTotals:
    """The cells at these places of the first two axes."""
    if [len(each) for each in places] == [len(axis) for axis in table.axes[:2]]:
        return table
    at = np.ix_(*places)
    cells = table.cells
    recent = table.recent
    return table._replace(
        axes=(
            *(tuple(a[i] for i in p) for a, p in zip(table.axes, places, strict=False)),
            *table.axes[2:],
        ),
        cells=Cells(cells.count[at], cells.sums[at], cells.extremes[at], cells.last),
        window=None if table.window is None else table.window[at],
        recent=None
        if recent is None
        else recent._replace(rows=recent.rows[at], sums=recent.sums[at]),
    )
