"""Records in columnar files, one in every row: Parquet, and Arrow as `datasets` writes it.

An Arrow file is a stream or a file of Arrow's interprocess format. Only the columns that are asked
for are read, some rows at a time.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text.documents import Record
from imbalance_jax.data.text.fields import WantedField
from imbalance_jax.data.text.files import describe_utf8_error, make_damaged_file_error

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

KINDS = {"parquet": "Parquet", "arrow": "Arrow"}  # by format
_ROWS = 64  # that are decoded at once
_BUFFER = 1 << 20  # bytes that are read at once of each column
_ARROW_FILE = b"ARROW1"  # what a file begins with, and a stream does not


@dataclasses.dataclass(frozen=True)
class Column:
    """Where the values of a wanted field are."""

    path: tuple[str, ...]  # of the column, from the outside in
    within: str = ""  # what is wanted of a column of lists

    def select_values(self, batch: "pyarrow.RecordBatch") -> "pyarrow.Array":
        from pyarrow import compute

        column = batch.column(self.path[0])
        return compute.struct_field(column, list(self.path[1:])) if self.path[1:] else column


def read_column_records(
    path: str,
    file_format: str,
    wanted: Sequence[WantedField],
    on_bad_line: Callable[[ValueError], None],
) -> Iterator[Record]:
    """Yields every row, with the values of the wanted fields that the file has.

    A row with a value that is not UTF-8 is handed to `on_bad_line`, and left out if that returns.

    Raises:
      ValueError: as `find_columns`, or the file is damaged.
    """
    import pyarrow

    columns = find_columns(path, file_format, wanted)
    number = 0
    try:
        for consumed, batch in _read_batches(path, file_format, columns.values()):
            values = [
                _decode_column_values(column, batch, path, number) for column in columns.values()
            ]
            for row in zip(*values, strict=True):
                number += 1
                bad = next((value for value in row if isinstance(value, ValueError)), None)
                if bad:
                    on_bad_line(bad)
                    continue
                yield Record(consumed, number, dict(zip(columns, row, strict=True)))
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # not of the data, but of the disk
            raise
        kind = KINDS[file_format]
        raise make_damaged_file_error(path, kind, f"after row {number}", error) from error


def _read_batches(
    path: str, file_format: str, columns: Iterable[Column]
) -> Iterator[tuple[int, "pyarrow.RecordBatch"]]:
    """Yields (bytes of the file consumed so far, some rows)."""
    import pyarrow

    size = os.path.getsize(path)
    if file_format == "parquet":
        with _open_parquet(path) as table:
            leaves = list(dict.fromkeys(".".join(column.path) for column in columns))
            rows = table.metadata.num_rows
            read = 0
            for batch in table.iter_batches(_ROWS, columns=leaves, use_threads=False):
                read += batch.num_rows
                yield size * read // rows, batch
        return
    with pyarrow.memory_map(path) as file:
        for consumed, whole in _read_arrow_batches(file, size):
            for start in range(0, whole.num_rows, _ROWS):
                yield consumed, whole.slice(start, _ROWS)


def _read_arrow_batches(
    file: "pyarrow.MemoryMappedFile", size: int
) -> Iterator[tuple[int, "pyarrow.RecordBatch"]]:
    from pyarrow import ipc

    if file.read(len(_ARROW_FILE)) == _ARROW_FILE:
        reader = ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield size * (number + 1) // reader.num_record_batches, reader.get_batch(number)
        return
    file.seek(0)
    for batch in ipc.open_stream(file):
        yield file.tell(), batch


# Columns


def list_columns(path: str, file_format: str) -> dict[str, Any]:
    """Returns the types of columns by name, and those of a struct as a group."""
    with _open_schema(path, file_format) as (schema, _):
        return _list_column_types(schema)


def find_columns(path: str, file_format: str, wanted: Sequence[WantedField]) -> dict[str, Column]:
    """Returns where each wanted field is that the file has, by its name.

    Raises:
      ValueError: there is no column of the text, two of one name, or one of another type.
    """
    from pyarrow import types

    columns = {}
    kind = KINDS[file_format]
    with _open_schema(path, file_format) as (schema, empty):
        named = _list_column_types(schema)
        for field in wanted:
            column = _find_column(named, field.name)
            if column is None:
                if field.kind != "text":
                    continue
                raise ValueError(
                    f"{path}: has no column {field.name!r}; it has: "
                    f"{fields_lib.format_field_names(named)}. Set {field.setting}."
                )
            columns[field.name] = column
            type_ = _check_one_of_name(path, schema, column.path)
            if field.kind == "value" or column.within:
                continue
            if types.is_struct(type_):
                raise _make_column_type_error(path, field, f"{kind} struct")
            if types.is_dictionary(type_):
                type_ = type_.value_type
            strings = (types.is_string, types.is_large_string, types.is_string_view)
            allowed = any(is_kind(type_) for is_kind in (*strings, types.is_null))
            allowed = allowed or (field.kind == "id" and types.is_integer(type_))
            if not allowed and not empty:
                raise _make_column_type_error(path, field, f"{kind} {type_}")
    return columns


def _find_column(named: Mapping[str, Any], field: str) -> Column | None:
    from pyarrow import types

    path = fields_lib.find_field_path(named, field)
    if path:
        return Column(path)
    parts = field.split(".")
    for count in range(1, len(parts)):
        outer = ".".join(parts[:count])
        type_ = fields_lib.find_field_value(named, outer)
        is_type = type_ is not fields_lib.ABSENT and not isinstance(type_, Mapping)
        if is_type and (types.is_list(type_) or types.is_large_list(type_)):
            path = fields_lib.find_field_path(named, outer)
            return Column(path, ".".join(parts[count:]))
    return None


def _check_one_of_name(
    path: str, schema: "pyarrow.Schema | pyarrow.StructType", column: Sequence[str]
) -> "pyarrow.DataType":
    """Returns the type of a column. Raises ValueError if it is not the only one of its names."""
    for name in column:
        named = [field.type for field in schema if field.name == name]
        if len(named) > 1:
            raise ValueError(
                f"{path}: has {len(named)} columns of the name {name!r}. Write the file again, "
                "with another name for all but one of them."
            )
        schema = named[0]
    return schema


def _make_column_type_error(path: str, field: WantedField, kind: str) -> ValueError:
    return ValueError(
        f"{path}, row 1: its column {field.name!r} is a {kind}, not a string. Set {field.setting}."
    )


def _decode_column_values(
    column: Column, batch: "pyarrow.RecordBatch", path: str, before: int
) -> list[Any]:
    """Returns the values of some rows, after as many others; an error in place of a bad one."""
    values = column.select_values(batch)
    try:
        decoded = values.to_pylist()
    except UnicodeDecodeError:
        decoded = [_decode_value(value, path, row) for row, value in enumerate(values, before + 1)]
    if column.within:
        within = f"_.{column.within}"
        return [
            value if value is None else fields_lib.find_field_value({"_": value}, within)
            for value in decoded
        ]
    return decoded


def _decode_value(value: "pyarrow.Scalar", path: str, row: int) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        problem = describe_utf8_error(error, "value")
        return ValueError(f"{path}, row {row}: {problem}. Write the file again, in UTF-8.")


def measure_column_bytes(path: str, file_format: str, column: str) -> int:
    """Returns the bytes of a column's values; of an Arrow file, all of its bytes."""
    if file_format != "parquet":
        return os.path.getsize(path)
    with _open_parquet(path) as table:
        metadata = table.metadata
        names = fields_lib.find_field_path(_list_column_types(table.schema_arrow), column)
        chunks = [
            metadata.row_group(group).column(index)
            for group in range(metadata.num_row_groups)
            for index in range(metadata.num_columns)
        ]
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == ".".join(names))


def _list_column_types(schema: "pyarrow.Schema | pyarrow.StructType") -> dict[str, Any]:
    from pyarrow import types

    return {
        field.name: _list_column_types(field.type) if types.is_struct(field.type) else field.type
        for field in schema
    }


# Files


@contextlib.contextmanager
def _open_schema(path: str, file_format: str) -> Iterator[tuple["pyarrow.Schema", bool]]:
    """Yields the schema of a file, and whether it is known to have no rows."""
    import pyarrow
    from pyarrow import ipc

    if file_format == "parquet":
        with _open_parquet(path) as table:
            yield table.schema_arrow, not table.metadata.num_rows
        return
    try:
        with pyarrow.memory_map(path) as file:
            is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
            file.seek(0)
            reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
            schema = reader.schema
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise make_damaged_file_error(path, "Arrow", "at its beginning", error) from error
    yield schema, False


def _open_parquet(path: str) -> "parquet.ParquetFile":
    import pyarrow
    from pyarrow import parquet

    try:
        # Buffers, but none for a whole group of rows: that may be the whole file.
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise make_damaged_file_error(path, "Parquet", "at its end", error) from error
