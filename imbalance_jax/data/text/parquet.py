"""Documents in Parquet files, one in every row."""

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text.documents import Document, SourceFile
from imbalance_jax.data.text.files import describe_utf8_error, make_damaged_file_error

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

_ROWS = 64  # that are decoded at once
_BUFFER = 1 << 20  # bytes that are read at once of each column


def read_parquet_documents(
    name: str, source: SourceConfig, file: SourceFile
) -> Iterator[tuple[int, Document]]:
    """Yields (bytes of the file consumed so far, document)."""
    import pyarrow

    path, file_size, row = file.path, os.path.getsize(file.path), 0
    with open_parquet(path) as table:
        columns = find_parquet_columns(name, source, path, table)
        leaves = [".".join(column) for column in columns.values()]
        try:
            for batch in table.iter_batches(_ROWS, columns=leaves, use_threads=False):
                values = {
                    which: _decode_column_values(_select_nested_column(batch, column), path, row)
                    for which, column in columns.items()
                }
                texts = values["field"]
                ids = values.get("id_field", [None] * len(texts))
                for text, document_id in zip(texts, ids, strict=True):
                    row += 1
                    if text is None:
                        raise _make_column_type_error(
                            name, path, row, "field", source.field, "null"
                        )
                    document = file.document(name, text, row)
                    if document_id not in fields_lib.NO_IDS:
                        document = Document(str(document_id), text)
                    yield file_size * row // table.metadata.num_rows, document
        except (pyarrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # not of the data, but of the disk
                raise
            raise make_damaged_file_error(path, f"after row {row}", error) from error


def open_parquet(path: str) -> "parquet.ParquetFile":
    import pyarrow
    from pyarrow import parquet

    try:
        # Buffers, but none for a whole group of rows: that may be the whole file.
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise make_damaged_file_error(path, "at its end", error) from error


def find_parquet_columns(
    name: str, source: SourceConfig, path: str, table: "parquet.ParquetFile"
) -> dict[str, tuple[str, ...]]:
    """Returns where the text is and, if they are there, the ids: names from the outside in."""
    from pyarrow import types

    schema = list_column_types(table.schema_arrow)
    columns = {}
    for which in ("field", "id_field"):
        column = getattr(source, which)
        kind = fields_lib.find_field_value(schema, column)
        if kind is fields_lib.ABSENT:
            if which == "id_field":
                continue
            raise ValueError(
                f"{path}: has no column {column!r}; it has: "
                f"{fields_lib.format_field_names(schema)}. Set "
                f"config.sources.{name}.field."
            )
        columns[which] = fields_lib.find_field_path(schema, column)
        _check_one_of_name(path, table.schema_arrow, columns[which])
        if isinstance(kind, Mapping):
            raise _make_column_type_error(name, path, 1, which, column, "struct")
        if types.is_dictionary(kind):
            kind = kind.value_type
        strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        integers = which == "id_field" and types.is_integer(kind)
        if not (strings or integers or types.is_null(kind)) and table.metadata.num_rows:
            raise _make_column_type_error(name, path, 1, which, column, str(kind))
    return columns


def _check_one_of_name(
    path: str, schema: "pyarrow.Schema | pyarrow.StructType", column: tuple[str, ...]
) -> None:
    """Raises ValueError if a column is not the only one of its names, from the outside in."""
    for name in column:
        named = [field.type for field in schema if field.name == name]
        if len(named) > 1:
            raise ValueError(
                f"{path}: has {len(named)} columns of the name {name!r}. Write the file again, "
                "with another name for all but one of them."
            )
        schema = named[0]


def _make_column_type_error(
    name: str, path: str, row: int, which: str, column: str, kind: str
) -> ValueError:
    return ValueError(
        f"{path}, row {row}: its column {column!r} is a Parquet {kind}, not a string. "
        f"Set config.sources.{name}.{which}."
    )


def _decode_column_values(column: "pyarrow.Array", path: str, before: int) -> list[Any]:
    """Returns the values of some rows, after as many others."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(column, start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                problem = describe_utf8_error(error, "value")
                raise ValueError(
                    f"{path}, row {row}: {problem}. Write the file again, in UTF-8."
                ) from error
        raise


def measure_column_bytes(path: str, column: str) -> int:
    """Returns the bytes of a column's values."""
    with open_parquet(path) as table:
        metadata = table.metadata
        names = fields_lib.find_field_path(list_column_types(table.schema_arrow), column)
        chunks = [
            metadata.row_group(group).column(index)
            for group in range(metadata.num_row_groups)
            for index in range(metadata.num_columns)
        ]
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == ".".join(names))


def list_column_types(schema: "pyarrow.Schema | pyarrow.StructType") -> dict[str, Any]:
    """Returns the types of columns by name, and those of a struct as a group."""
    from pyarrow import types

    return {
        field.name: list_column_types(field.type) if types.is_struct(field.type) else field.type
        for field in schema
    }


def _select_nested_column(batch: "pyarrow.RecordBatch", path: tuple[str, ...]) -> "pyarrow.Array":
    """Returns a column of a batch, or one within a column of structs."""
    from pyarrow import compute

    column = batch.column(path[0])
    return compute.struct_field(column, list(path[1:])) if path[1:] else column
