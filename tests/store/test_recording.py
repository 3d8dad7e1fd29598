"""Recordings: what is written is read back, in bounded memory, and nothing else is believed."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from sidecar.errors import StoreError
from sidecar.fold.drift.observation import Observation
from sidecar.store.recording import (
    GROUP_ROWS,
    OPEN_SUFFIX,
    Recording,
    RecordingWriter,
    find_recordings,
)
from sidecar.wire.signature import Layout, size
from tests.store.recordings import HEADER, LAYOUT, T0, assert_same, observations


def write(path: Path, rows: list[Observation]) -> Path:
    with RecordingWriter(path, HEADER) as writer:
        for row in rows:
            writer.update(row)
    return path


@pytest.mark.parametrize("num", [0, 1, GROUP_ROWS, 2 * GROUP_ROWS + 3])
def test_what_is_written_is_read_back(tmp_path: Path, num: int) -> None:
    """Every field of every request in order, NaN included; the header with the span."""
    rows = list(observations(num))
    recording = Recording.open(write(tmp_path / "a.parquet", rows))

    assert recording.num_requests == num
    span = (T0, rows[-1].t_ns) if rows else (0, 0)
    assert recording.header == HEADER._replace(start_ns=span[0], end_ns=span[1])
    assert_same(list(recording.observations()), rows)


def test_it_names_nobody(tmp_path: Path) -> None:
    """The columns are those that are documented: no id, no canary."""
    file = parquet.ParquetFile(write(tmp_path / "a.parquet", list(observations(3))))

    assert file.schema_arrow.names == [
        *("t_ns", "source", "route", "adapter"),
        *("num_prompt_tokens", "num_generated_tokens", "values"),
    ]
    assert file.schema_arrow.field("values").type == pa.list_(pa.float32(), size(LAYOUT))


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    """Before that there is one under another name, and after a failure none."""
    path = tmp_path / "new" / "a.parquet"
    writer = RecordingWriter(path, HEADER)
    for row in observations(GROUP_ROWS):
        writer.update(row)
    assert [each.name for each in path.parent.iterdir()] == ["a.parquet" + OPEN_SUFFIX]
    writer.finish()
    assert [each.name for each in path.parent.iterdir()] == ["a.parquet"]

    with pytest.raises(KeyboardInterrupt), RecordingWriter(tmp_path / "b.parquet", HEADER):
        raise KeyboardInterrupt
    assert [each.name for each in tmp_path.iterdir()] == ["new"]


def test_it_is_read_one_row_group_at_a_time(tmp_path: Path) -> None:
    """The memory of a reader does not grow with the file."""
    path = write(tmp_path / "a.parquet", list(observations(40 * GROUP_ROWS)))
    file_bytes = 40 * GROUP_ROWS * size(LAYOUT) * 4
    peaks = []
    for num_groups in (2, 40):
        tracemalloc.start()
        arrow_before = pa.total_allocated_bytes()
        arrow_peak = 0
        for i, _ in enumerate(Recording.open(path).observations()):
            arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - arrow_before)
            if i >= num_groups * GROUP_ROWS:
                break
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow_peak)
        tracemalloc.stop()

    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < file_bytes


@given(cut=st.floats(0.0, 1.0, exclude_max=True))
def test_a_torn_file_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, cut: float):
    """Wherever it ends."""
    path = write(tmp_path_factory.mktemp("torn") / "a.parquet", list(observations(5)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])

    with pytest.raises(StoreError, match=str(path)):
        Recording.open(path)


@given(place=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_of_the_numbers_is_never_believed(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    """Pages carry checksums: what is read is what was written, or the file is refused."""
    rows = list(observations(40))
    path = write(tmp_path_factory.mktemp("flip") / "a.parquet", rows)
    whole = bytearray(path.read_bytes())
    whole[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(whole)
    try:
        recording = Recording.open(path)
        read = list(recording.observations())
    except StoreError:
        return
    assert len(read) == recording.num_requests == 40
    for mine, theirs in zip(read, rows, strict=True):
        assert mine.values.tobytes() == theirs.values.tobytes()


def test_a_changed_page_is_refused_while_it_is_read(tmp_path: Path) -> None:
    """The footer of such a file is in order; its first half is not."""
    path = write(tmp_path / "a.parquet", list(observations(200)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 1
    path.write_bytes(whole)

    with pytest.raises(StoreError, match=f"{path}: .*CRC"):
        list(Recording.open(path).observations())


def about(path: Path, **changes: object) -> Path:
    """A recording whose metadata say something else."""
    table = parquet.read_table(write(path, list(observations(3))))
    key = b"llm_internals_recording"
    written = json.loads(parquet.read_metadata(path).metadata[key])
    metadata = {key: json.dumps({**written, **changes})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"format": 2}, "format 2, not 1; read it with the release that made it"),
        ({"num_requests": 4}, "its columns or rows are not what it says"),
        ({"num_requests": "many"}, "its metadata cannot be read"),
        ({"header": {}}, "its metadata cannot be read"),
        ({"header": 7}, "its metadata cannot be read"),
    ],
)
def test_what_it_says_of_itself_is_checked(tmp_path: Path, changes: dict, said: str | None):
    """Format, number of rows and header."""
    path = about(tmp_path / "a.parquet", **changes)
    if said is None:
        assert Recording.open(path).num_requests == 3
        return
    with pytest.raises(StoreError, match=f"{path}: {said}"):
        Recording.open(path)


def test_another_layout_than_that_of_the_columns_is_refused(tmp_path: Path) -> None:
    """The width of a row follows from the layout."""
    header = HEADER._replace(layout=Layout([0, 1, 2])).to_plain()

    with pytest.raises(StoreError, match="its columns or rows"):
        Recording.open(about(tmp_path / "a.parquet", header=header))


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    """With what to give instead."""
    path = tmp_path / "foreign.parquet"
    parquet.write_table(pa.table({"t_ns": np.arange(3)}), path)

    with pytest.raises(
        StoreError, match=r"foreign.parquet: a Parquet file, but no recording; give"
    ):
        Recording.open(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    """A missing one, text, a folder without recordings."""
    text = tmp_path / "notes.txt"
    text.write_text("no parquet here")
    for path in (tmp_path / "missing.parquet", text, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match=str(path)):
            find_recordings([path])
    with pytest.raises(StoreError, match="no recordings in this folder"):
        find_recordings([tmp_path])


def test_a_folder_is_all_its_recordings_by_name(tmp_path: Path) -> None:
    """Each once, however often it is named; what is still open is passed over."""
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.parquet", list(observations(1)))
    (tmp_path / f"d.parquet{OPEN_SUFFIX}").write_bytes(b"half")
    found = find_recordings([tmp_path / "c.parquet", tmp_path])

    assert [each.path.stem for each in found] == ["a", "b", "c"]
