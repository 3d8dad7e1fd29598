"""Headers: what numbers are of, and which differences forbid to compare them.

Refused is only what cannot be compared number by number: the schema, the layers, the seed of the
projection, the width. Another digest, dtype, quantisation or kernel is a finding, and comparison
goes on, or a tampered model would be refused instead of seen.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import msgspec

from sidecar.errors import UNREADABLE, BaselineError, StateError
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Assembly
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

FORMAT: Final = 1
_WIDTH: Final = ("num_layers", "hidden_size")
_WEIGHTS: Final = ("weights_digest", "tokenizer_digest", "dtype", "kv_cache_dtype", "quantization")
_AND: Final = " + "  # between what several replicas of one fleet say


class Header(NamedTuple):
    """What a baseline is of.

    identity: what the engine executed; "" or 0 where it was not known.
    layout: of the signatures, with the seed of the sketches.
    assembly: how windows were made.
    start_ns, end_ns: Unix time of the first and last request; 0 where there was none.
    release: of this package, that made it.
    format: of the numbers; raised when their meaning changes.
    """

    identity: Identity
    layout: Layout
    assembly: Assembly = Assembly()
    start_ns: int = 0
    end_ns: int = 0
    release: str = ""
    format: int = FORMAT

    @property
    def schema_digest(self) -> str:
        """Of the layout; see `Schema.digest`."""
        return Schema.of(self.layout).digest

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        plain: dict[str, Any] = {
            **self._asdict(),
            "identity": {name: getattr(self.identity, name) for name in Identity.__struct_fields__},
            "layout": {name: getattr(self.layout, name) for name in Layout.__struct_fields__},
            "assembly": self.assembly._asdict(),
        }
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The header in `plain`; StateError when it is none."""
        try:
            identity, layout = dict(plain["identity"]), dict(plain["layout"])
            return cls(
                identity=msgspec.convert(
                    [identity[f] for f in Identity.__struct_fields__], Identity
                ),
                layout=msgspec.convert([layout[f] for f in Layout.__struct_fields__], Layout),
                assembly=Assembly(**{f: int(plain["assembly"][f]) for f in Assembly._fields}),
                start_ns=int(plain["start_ns"]),
                end_ns=int(plain["end_ns"]),
                release=str(plain["release"]),
                format=int(plain["format"]),
            )
        except (*UNREADABLE, msgspec.ValidationError) as error:
            raise StateError(f"no header of a baseline: {error!r}") from error


class Difference(NamedTuple):
    """A field with its value in the reference and in what is compared with it."""

    field: str
    reference: str
    compared: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reference} in the baseline, {self.compared} now"


class Findings(NamedTuple):
    """What differs.

    refusals: numbers cannot be compared at all.
    findings: something else is executed; comparing goes on.
    unknown: fields of the identity that one side does not know, so that nothing can be said.
    """

    refusals: tuple[Difference, ...]
    findings: tuple[Difference, ...]
    unknown: tuple[str, ...]


def compare(header: Header, other: Header) -> Findings:
    """How `other`, what is served, differs from the reference `header`."""
    layouts = _differences(header.layout, other.layout, Layout.__struct_fields__)
    widths = [each for each in _known(header, other) if each.field in _WIDTH]
    formats = _differences(header, other, ("format",))
    findings = tuple(each for each in _known(header, other) if each.field not in _WIDTH)
    unknown = tuple(
        field
        for field in Identity.__struct_fields__
        if bool(getattr(header.identity, field)) != bool(getattr(other.identity, field))
    )
    return Findings((*layouts, *widths, *formats), findings, unknown)


def joined(header: Header, other: Header) -> Header:
    """The header of the requests of both; the same in any order.

    What differs without being another model, such as two kinds of GPU, is named beside each other.
    Raises BaselineError where numbers cannot be compared, windows differ, or the model is another.
    """
    found = compare(header, other)
    fatal = [*found.refusals, *(each for each in found.findings if each.field in _WEIGHTS)]
    fatal += _differences(header.assembly, other.assembly, Assembly._fields)
    if fatal:
        told = "; ".join(f"{each.field}: {each.reference} and {each.compared}" for each in fatal)
        raise BaselineError(f"not of one model and window ({told}); fit a baseline of each")
    starts = [each.start_ns for each in (header, other) if each.end_ns]
    fields = Identity.__struct_fields__
    pairs = {f: (getattr(header.identity, f), getattr(other.identity, f)) for f in fields}
    return header._replace(
        identity=Identity(**{field: _both(*pair) for field, pair in pairs.items()}),
        start_ns=min(starts, default=0),
        end_ns=max(header.end_ns, other.end_ns),
        release=_both(header.release, other.release),
    )


def _both(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, int):
        return max(mine, theirs)  # 0 is unknown; of two ways to split the model, the wider
    said = {*mine.split(_AND), *theirs.split(_AND)} - {""}
    return _AND.join(sorted(said))


def _known(header: Header, other: Header) -> list[Difference]:
    mine, theirs = header.identity, other.identity
    fields = [f for f in Identity.__struct_fields__ if getattr(mine, f) and getattr(theirs, f)]
    return _differences(mine, theirs, tuple(fields))


def _differences(mine: object, theirs: object, fields: tuple[str, ...]) -> list[Difference]:
    pairs = [(field, getattr(mine, field), getattr(theirs, field)) for field in fields]
    return [Difference(field, str(a), str(b)) for field, a, b in pairs if a != b]
