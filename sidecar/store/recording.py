"""Recordings: the signatures of finished requests as a Parquet file, one row each.

A file is of one layout and one identity; both stand in its metadata, as JSON, with the span. Rows
hold no id and no canary. Guarantees: a file has its name only once it is whole and on the disk; a
reader holds one row group, of at most `MAX_GROUP_ROWS` rows; what is torn, foreign, changed (pages
carry checksums) or of another format is refused with the name of the file.

    t_ns                  int64, Unix time of the end of the request
    source                string, which engine worker measured it
    route, adapter        string
    num_prompt_tokens, num_generated_tokens    int64
    values                float32 [size(layout)], NaN where nothing was measured
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from sidecar.errors import UNREADABLE, StateError, StoreError
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.wire.signature import Layout, size

FORMAT: Final = 1
SUFFIX: Final = ".parquet"
OPEN_SUFFIX: Final = ".open"  # after the name, until the file is whole
GROUP_ROWS: Final = 512
MAX_GROUP_ROWS: Final = 1 << 14
_METADATA: Final = b"llm_internals_recording"
_NAMES: Final = ("source", "route", "adapter")
_REMEDY: Final = "give recordings made by SIDECAR_RECORD or `sidecar baseline record`"


class RecordingWriter:
    """Writes one file; `finish` gives it its name.

    header: layout and identity of what is written; its span is filled in.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.num_requests = 0
        self.num_bytes = 0  # of values, before compression
        self._header = header
        self._schema = _schema(header.layout)
        self._open_path = path.with_name(path.name + OPEN_SUFFIX)
        self._rows: list[Observation] = []
        self._span: tuple[int, int] | None = None
        with _mapped(path):
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(
                self._open_path,
                self._schema,
                compression="zstd",
                use_dictionary=list(_NAMES),
                use_byte_stream_split=["values.list.element"],  # floats: 13 % smaller than without
                write_statistics=["t_ns"],
                write_page_checksum=True,
            )

    def update(self, observation: Observation) -> None:
        """Take one request, of this file's layout. StoreError when the disk does not."""
        start_ns, end_ns = self._span or (observation.t_ns, observation.t_ns)
        self._span = min(start_ns, observation.t_ns), max(end_ns, observation.t_ns)
        self._rows.append(observation)
        self.num_requests += 1
        self.num_bytes += observation.values.nbytes
        if len(self._rows) >= GROUP_ROWS:
            with _mapped(self.path):
                self._write_group()

    def finish(self) -> None:
        """Make the file whole. StoreError, and no file, when that fails."""
        start_ns, end_ns = self._span or (0, 0)
        header = self._header._replace(start_ns=start_ns, end_ns=end_ns)
        about = {"format": FORMAT, "num_requests": self.num_requests, "header": header.to_plain()}
        try:
            with _mapped(self.path):
                self._write_group()
                self._writer.add_key_value_metadata({_METADATA: msgspec.json.encode(about)})
                self._writer.close()
                _sync(self._open_path)
                self._open_path.replace(self.path)
                _sync(self.path.parent)
        except StoreError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError):
            self._open_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()

    def _write_group(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        columns = [pa.array([getattr(row, name) for row in rows]) for name in _SCALARS]
        flat = pa.array(np.concatenate([row.values for row in rows]), pa.float32())
        values = pa.FixedSizeListArray.from_arrays(flat, size(self._header.layout))
        self._writer.write_table(pa.table([*columns, values], schema=self._schema))


class Recording(NamedTuple):
    """A whole file that can be read.

    header: of what was served, with the span of the requests in it.
    """

    path: Path
    header: Header
    num_requests: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what `path` says of itself; StoreError when it is no recording."""
        with _mapped(path), _opened(path) as file:
            return cls(path, *_about(path, file))

    def observations(self) -> Iterator[Observation]:
        """The requests in the order written. StoreError when the file was changed since."""
        with _mapped(self.path), _opened(self.path) as file:
            for i in range(file.num_row_groups):
                yield from _observations(file.read_row_group(i))


def find_recordings(paths: list[Path]) -> list[Recording]:
    """The recordings in files and folders, by name; StoreError where there is none.

    A file named by the caller must be one; in a folder, what is not whole yet is passed over.
    """
    found: dict[Path, Recording] = {}
    for path in paths:
        files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not files:
            raise StoreError(f"{path}: no recordings in this folder; {_REMEDY}")
        found.update((file.resolve(), Recording.open(file)) for file in files)
    return sorted(found.values())


_SCALARS: Final = ("t_ns", *_NAMES, "num_prompt_tokens", "num_generated_tokens")


def _schema(layout: Layout) -> Any:
    kinds = {name: pa.string() if name in _NAMES else pa.int64() for name in _SCALARS}
    return pa.schema([*kinds.items(), ("values", pa.list_(pa.float32(), size(layout)))])


def _about(path: Path, file: Any) -> tuple[Header, int]:
    written = (file.metadata.metadata or {}).get(_METADATA)
    if written is None:
        raise StoreError(f"{path}: a Parquet file, but no recording; {_REMEDY}")
    try:
        about = msgspec.json.decode(written)
        if about["format"] != FORMAT:
            raise StoreError(
                f"{path}: format {about['format']}, not {FORMAT}; read it with the release that "
                "made it, or record again"
            )
        header, num_requests = Header.from_plain(about["header"]), int(about["num_requests"])
    except (*UNREADABLE, StateError, msgspec.DecodeError) as error:
        raise StoreError(f"{path}: its metadata cannot be read ({error}); {_REMEDY}") from error
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    is_ours = file.schema_arrow.equals(_schema(header.layout), check_metadata=False)
    if not is_ours or sum(groups) != num_requests or max(groups, default=0) > MAX_GROUP_ROWS:
        raise StoreError(f"{path}: its columns or rows are not what it says; {_REMEDY}")
    return header, num_requests


def _observations(table: Any) -> Iterator[Observation]:
    columns = [table[name].to_pylist() for name in _SCALARS]
    width = table.schema.field("values").type.list_size
    flat = table["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values = flat.reshape(-1, width)
    for row, (t_ns, source, route, adapter, prompt, generated) in enumerate(
        zip(*columns, strict=True)
    ):
        yield Observation(t_ns, source, route, adapter, prompt, generated, "", values[row])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with path.open("rb") as source:
        yield parquet.ParquetFile(source, page_checksum_verification=True)


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """The border to pyarrow and the disk."""
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:  # Unicode: names of columns
        raise StoreError(f"{path}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
