"""Scans on the wire: their shapes, and which rows of a request they may tell."""

import msgspec
import numpy as np
import pytest

from sidecar.errors import FrameError
from sidecar.wire.frame import MAX_BYTES, Frame, Header, pack, unpack
from sidecar.wire.scan import (
    ANSWER_ROWS,
    CONFIDENCE,
    MAX_ROWS,
    PROMPT_ROWS,
    Rows,
    Scan,
    num_bytes_of_row,
    window,
)
from tests import fakes
from tests.fakes import ENGINE, NOW


def framed(scan: Scan) -> bytes:
    return pack(Frame(Header("boot-one", ENGINE, 1, NOW, 0, 0), scan))


def test_arrays_are_shaped_by_positions_and_layers() -> None:
    """Rows, then layers, then signals in wire order; tokens have their own positions."""
    rows = Rows.unpack(fakes.scan(positions=[7, 9], num_layers=2, nonfinite=4))

    assert rows.positions.tolist() == [7, 9]
    assert rows.values.tolist() == [
        [[7 + layer / 8 + signal / 64 for signal in range(3)] for layer in range(2)],
        [[9 + layer / 8 + signal / 64 for signal in range(3)] for layer in range(2)],
    ]
    assert rows.nonfinite.tolist() == [[4, 4], [4, 4]]
    assert rows.token_positions.tolist() == [7, 9]
    assert rows.confidence.shape == (2, len(CONFIDENCE))


def test_no_nonfinite_elements_take_no_bytes() -> None:
    """And read as zeros of the right shape."""
    assert Rows.unpack(fakes.scan(positions=[1, 2])).nonfinite.tolist() == [[0] * 3] * 2


@pytest.mark.parametrize(
    "field", ["positions", "values", "nonfinite", "token_positions", "confidence"]
)
def test_arrays_of_another_length_are_refused(field: str) -> None:
    """Four bytes less of any of them."""
    scan = fakes.scan(nonfinite=1)
    short = msgspec.structs.replace(scan, **{field: getattr(scan, field)[:-4]})
    with pytest.raises(FrameError, match="needs") as raised:
        unpack(framed(short))

    assert raised.value.cause == "shape"


def test_more_rows_than_a_scan_has_are_refused() -> None:
    """The bound is exact."""
    most = fakes.scan(positions=range(MAX_ROWS), num_layers=1)
    assert unpack(framed(most)).body == most
    with pytest.raises(FrameError, match=f"at most {MAX_ROWS} are read"):
        unpack(framed(fakes.scan(positions=range(MAX_ROWS + 1), num_layers=1)))


def test_the_window_is_the_end_of_the_prompt_and_the_beginning_of_the_answer() -> None:
    """However long the prompt is; it never holds more rows than a scan may."""
    assert window(3) == range(3 + ANSWER_ROWS)
    assert window(PROMPT_ROWS + 5) == range(5, PROMPT_ROWS + 5 + ANSWER_ROWS)
    assert len(window(10**6)) == MAX_ROWS


def test_the_bytes_of_a_row_are_what_it_takes() -> None:
    """With everything in it, so that a frame that was planned by it fits."""
    one, many = (fakes.scan(positions=range(8, 8 + n), nonfinite=1) for n in (1, 101))
    grown = len(framed(many)) - len(framed(one))

    assert grown == pytest.approx(100 * num_bytes_of_row(3), abs=16)
    assert num_bytes_of_row(80) * 256 < MAX_BYTES
    assert np.frombuffer(one.positions, "<u4").tolist() == [8]
