"""Headers: what cannot be compared is refused, what is executed otherwise is a finding."""

import json

import pytest

from sidecar.errors import BaselineError, StateError
from sidecar.fold.drift.header import Difference, Header, compare, joined
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout
from tests.fold.drift.traffic import HEADER, LAYOUT, SECOND


def layout(**changes: object) -> Layout:
    fields = {name: getattr(LAYOUT, name) for name in Layout.__struct_fields__}
    return Layout(**{**fields, **changes})


def identity(**changes: object) -> Identity:
    fields = {name: getattr(HEADER.identity, name) for name in Identity.__struct_fields__}
    return Identity(**{**fields, **changes})


def test_the_same_is_neither_refused_nor_found() -> None:
    """Span and release are no difference."""
    assert compare(HEADER, HEADER._replace(start_ns=1, end_ns=2, release="2")) == ((), (), ())


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", [0]), ("sketch_seed", 8), ("sketch_size", 4), ("probes", []), ("version", 2)],
)
def test_numbers_of_other_things_are_refused(field: str, value: object) -> None:
    """The schema, the layers and the seed; the field and both values are named."""
    found = compare(HEADER, HEADER._replace(layout=layout(**{field: value})))

    assert found.refusals == (Difference(field, str(getattr(LAYOUT, field)), str(value)),)
    assert found.findings == ()


@pytest.mark.parametrize(("field", "value"), [("num_layers", 3), ("hidden_size", 16)])
def test_another_width_is_refused(field: str, value: int) -> None:
    """Where both sides know it."""
    found = compare(HEADER, HEADER._replace(identity=identity(**{field: value})))

    assert [each.field for each in found.refusals] == [field]
    assert compare(HEADER, HEADER._replace(identity=identity(**{field: 0}))).refusals == ()


@pytest.mark.parametrize("field", ["weights_digest", "dtype", "model_name"])
def test_what_is_executed_otherwise_is_a_finding(field: str) -> None:
    """Refusing it would hide a tampered model instead of showing it."""
    found = compare(HEADER, HEADER._replace(identity=identity(**{field: "x"})))

    assert found.refusals == ()
    assert [str(each) for each in found.findings] == [
        f"{field}: {getattr(HEADER.identity, field)} in the baseline, x now"
    ]


def test_what_one_side_does_not_know_is_no_finding() -> None:
    """A digest that is still being computed differs from nothing, but is told."""
    found = compare(HEADER, HEADER._replace(identity=identity(weights_digest="", kernels="H100")))

    assert found == ((), (), ("weights_digest", "kernels"))


def test_another_format_is_refused() -> None:
    """Numbers of another meaning are not compared."""
    assert [each.field for each in compare(HEADER, HEADER._replace(format=2)).refusals] == [
        "format"
    ]


def test_a_fleet_of_two_kinds_is_named_by_both() -> None:
    """In any order and grouping, spans and releases included."""
    parts = [
        HEADER._replace(
            identity=identity(kernels=kernels), start_ns=start, end_ns=start + 5, release=release
        )
        for kernels, start, release in [("H100", 10, "1"), ("A100", 3, "2"), ("H100", 20, "1")]
    ]
    a, b, c = parts
    both = joined(joined(a, b), c)

    assert both == joined(a, joined(c, b)) == joined(joined(c, a), b)
    assert both.identity.kernels == "A100 + H100"
    assert (both.start_ns, both.end_ns, both.release) == (3, 25, "1 + 2")
    assert joined(HEADER, a)[3:5] == (10, 15)


@pytest.mark.parametrize("field", ["weights_digest", "dtype", "quantization"])
def test_two_models_make_no_baseline(field: str) -> None:
    """A reference of two models is of neither; the field is named."""
    known = {"quantization": "int8", "weights_digest": "w", "dtype": "bfloat16"}
    mine = HEADER._replace(identity=identity(**known))
    theirs = HEADER._replace(identity=identity(**{**known, field: "x"}))

    with pytest.raises(BaselineError, match=field):
        joined(mine, theirs)


def test_windows_of_other_lengths_do_not_add_up() -> None:
    """Cells of five minutes and of one are not of one kind."""
    minutes = HEADER._replace(assembly=HEADER.assembly._replace(length_ns=60 * SECOND))

    with pytest.raises(BaselineError, match="length_ns"):
        joined(HEADER, minutes)


def test_plain_headers_come_back() -> None:
    """Through JSON; foreign ones are refused."""
    plain = json.loads(json.dumps(HEADER.to_plain()))

    assert Header.from_plain(plain) == HEADER
    for change in ({"layout": {}}, {"identity": None}, {"assembly": {}}, {"start_ns": "x"}):
        with pytest.raises(StateError, match="no header"):
            Header.from_plain({**plain, **change})
    with pytest.raises(StateError, match="no header"):
        Header.from_plain({**plain, "layout": {**plain["layout"], "layers": [-1]}})


def test_a_header_knows_its_schema() -> None:
    """By the digest of the layout."""
    assert HEADER.schema_digest != HEADER._replace(layout=layout(sketch_seed=8)).schema_digest
