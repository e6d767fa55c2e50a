"""Url tables as people have them (ours, img2dataset's, LAION's, DataComp's; parquet, csv, tsv, jsonl) to plain rows.

A row that cannot be read is still a row: a missing url becomes "", a missing caption null; their fates are told later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from infra.errors import UsageError
from infra.sample import UID_BYTES, pair_uid
from infra.storage import Storage
from pipeline.download.config import DownloadConfig

FORMATS = ("parquet", "csv", "tsv", "jsonl")
URL_NAMES = ("url", "URL", "image_url")
CAPTION_NAMES = ("caption", "TEXT", "text")
FOOTER_BYTES = 1 << 16
IDENTITY = b"pairmill.identity"  # in a table's footer: what it was known by before rows were removed from it
BATCH_ROWS = 20_000
BLOCK_BYTES = 16 << 20
RESERVED = {  # columns that a shard's table makes itself, and those that DuckDB adds to it
    "key", "status", "reason", "error_message", "http_status", "width", "height", "original_width", "original_height",
    "exif", "sha256", "md5", "sha512", "bytes", "filename", "file_row_number",
}  # fmt: skip


def expand_tables(patterns: Sequence[str]) -> list[str]:
    """Files named by paths, folders, globs and fsspec urls; sorted within each. Raises UsageError for an empty one."""
    found: list[str] = []
    for pattern in patterns:
        filesystem, path = fsspec.url_to_fs(pattern)
        if filesystem.isfile(path):  # a name with brackets in it may be meant as it is
            paths = [path]
        elif filesystem.isdir(path):
            paths = [name for name in filesystem.ls(path, detail=False) if table_format(name)]
        else:
            paths = [name for name in filesystem.glob(path) if table_format(name)]
        if not paths:
            raise UsageError(
                f"{pattern}: no table there; give a .parquet, .csv, .tsv or .jsonl file (.gz too), or a folder"
            )
        if len(paths) == 1 and not table_format(paths[0]):
            raise UsageError(f"{pattern}: not a table; its name must end in .parquet, .csv, .tsv or .jsonl (.gz too)")
        remote = "://" in pattern and not pattern.startswith("file://")
        found += [filesystem.unstrip_protocol(name) if remote else name for name in sorted(paths)]
    return found


def table_format(path: str) -> str | None:
    """One of FORMATS by the file's name, or None."""
    base = path.rsplit("/", 1)[-1].lower().removesuffix(".gz")
    ending = base.rpartition(".")[2]
    ending = {"ndjson": "jsonl", "json": "jsonl", "txt": "tsv"}.get(ending, ending)
    return ending if ending in FORMATS and not base.startswith((".", "_")) else None


def identify(path: str) -> tuple[str, int]:
    """(digest, readable rows) of a table. A parquet file is named by its footer: it tells every column's place."""
    with _open(path) as file:
        if table_format(path) == "parquet":
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            digest = hashlib.blake2b(f"{size}".encode() + file.read(), digest_size=16)
            file.seek(0)
            footer = pq.ParquetFile(file).metadata
            known = (footer.metadata or {}).get(IDENTITY)
            return known.decode() if known else digest.hexdigest(), footer.num_rows
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest(), sum(batch.num_rows for batch in _batches(path) if not isinstance(batch, int))


def read_rows(path: str, config: DownloadConfig) -> Iterator[pa.Table | int]:
    """The table in batches: uid (16 bytes), url, caption, then the table's further columns as they are.

    A number among them counts rows that could not be read (a line with too many fields, broken JSON).
    Raises UsageError where a named column is missing or a uid is not 128 bits.
    """
    for batch in _batches(path):
        yield batch if isinstance(batch, int) else _normalise(pa.Table.from_batches([batch]), path, config)


def _normalise(table: pa.Table, path: str, config: DownloadConfig) -> pa.Table:
    url_name = _find(table, config.url_col, URL_NAMES, path, "--url-col")
    caption_name = _find(table, config.caption_col, CAPTION_NAMES, path, "--caption-col", needed=False)
    _require_columns(table, {"--hash-col": config.hash_col, "--bbox-col": config.bbox_col}, path)
    table = _mended(table)
    urls = pc.fill_null(pc.cast(table[url_name], pa.string()), "")
    if caption_name is None:
        captions = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    else:
        captions = pc.cast(table[caption_name], pa.string())
    uids = _kept_uids(table["uid"], path) if "uid" in table.column_names else _made_uids(urls, captions)
    columns: dict[str, Any] = {"uid": uids, "url": urls, "caption": captions}
    for name in table.column_names:
        if name not in {"uid", url_name, caption_name}:
            # A column of ours by the same name says something of another download: keep it, but apart.
            is_free = name.lower() not in RESERVED or name in {config.hash_col, config.bbox_col}
            kept = name if is_free else f"input_{name}"
            columns[kept if kept not in columns else f"input_{kept}"] = table[name]
    return pa.table(columns)


def only_allowed_archives(table: pa.Table, allowed: Sequence[str]) -> pa.Table:
    """A stranger's table must not make us open files: its warc_path is kept below an allowed prefix, else emptied.

    A row whose warc_path was emptied is fetched by its url, as any other.
    """
    if "warc_path" not in table.column_names:
        return table
    prefixes = tuple(Storage(prefix).url.rstrip("/") + "/" for prefix in allowed)
    paths = [path if _is_below(path, prefixes) else None for path in table["warc_path"].to_pylist()]
    return table.set_column(table.column_names.index("warc_path"), "warc_path", pa.array(paths, pa.string()))


def _is_below(path: Any, prefixes: tuple[str, ...]) -> bool:
    # "::" chains protocols in fsspec; ".." climbs out.
    return isinstance(path, str) and path.startswith(prefixes) and "::" not in path and ".." not in path.split("/")


def check_columns(path: str, config: DownloadConfig) -> None:
    """Raise UsageError where the table lacks a column that the settings name, before anything is made from it."""
    for batch in read_rows(path, config):
        if not isinstance(batch, int):
            return


def _require_columns(table: pa.Table, named: Mapping[str, str | None], path: str) -> None:
    for flag, name in named.items():
        if name is not None and name not in table.column_names:
            raise UsageError(f"{path}: no column {name}; it has {', '.join(table.column_names)}; see {flag}")


def _mended(table: pa.Table) -> pa.Table:
    """Parquet lets bytes that are no UTF-8 pass for text; they would stop whoever reads the row."""
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            try:
                table[field.name].validate(full=True)
            except pa.ArrowInvalid:
                chunks = [_text(pc.cast(chunk, pa.binary())) for chunk in table.column(at).chunks]
                table = table.set_column(at, field.name, pa.chunked_array(chunks, pa.string()))
    return table


def _find(
    table: pa.Table, name: str | None, usual: Sequence[str], path: str, flag: str, needed: bool = True
) -> str | None:
    if name is not None:
        _require_columns(table, {flag: name}, path)
        return name
    for candidate in usual:
        if candidate in table.column_names:
            return candidate
    if needed:
        raise UsageError(f"{path}: which column holds it? It has {', '.join(table.column_names)}; say {flag} NAME")
    return None


def _made_uids(urls: pa.ChunkedArray, captions: pa.ChunkedArray) -> pa.Array:
    pairs = zip(urls.to_pylist(), captions.to_pylist(), strict=True)
    return pa.array([pair_uid(url, caption) for url, caption in pairs], pa.binary(UID_BYTES))


def _kept_uids(column: pa.ChunkedArray, path: str) -> pa.Array:
    if column.type == pa.binary(UID_BYTES) and not column.null_count:
        return column.combine_chunks()
    try:
        uids = [value if isinstance(value, bytes) else bytes.fromhex(value) for value in column.to_pylist()]
        if all(len(uid) == UID_BYTES for uid in uids):
            return pa.array(uids, pa.binary(UID_BYTES))
    except (TypeError, ValueError):
        pass
    raise UsageError(
        f"{path}: its uid column is not 16 bytes or 32 hex digits a row; rename the column to make new uids"
    )


def _batches(path: str) -> Iterator[pa.RecordBatch | int]:
    """Record batches, and the number of unreadable rows wherever some were passed over."""
    kind = table_format(path)
    with _open(path) as file:
        try:
            if kind == "parquet":
                yield from pq.ParquetFile(file).iter_batches(BATCH_ROWS)
            elif kind == "jsonl":
                yield from _read_jsonl(file)
            else:
                yield from _read_csv(file, "\t" if kind == "tsv" else ",")
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            raise UsageError(f"{path}: not readable as {kind}: {error}") from None


def _read_csv(file: IO[bytes], delimiter: str) -> Iterator[pa.RecordBatch | int]:
    num_bad = 0

    def pass_over(row: pcsv.InvalidRow) -> str:
        nonlocal num_bad
        num_bad += 1
        return "skip"

    layout = pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=pass_over)
    blocks = pcsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    names = pcsv.open_csv(file, read_options=blocks, parse_options=layout).schema.names
    file.seek(0)
    num_bad = 0
    # Everything is text, read as bytes: a caption of "007" or "null" comes out as it went in, bad UTF-8 is mended.
    kinds = pcsv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False)
    for batch in pcsv.open_csv(file, read_options=blocks, parse_options=layout, convert_options=kinds):
        yield pa.RecordBatch.from_arrays([_text(column) for column in batch.columns], names=names)
    if num_bad:
        yield num_bad


def _text(column: pa.Array) -> pa.Array:
    try:
        return pc.cast(column, pa.string())
    except pa.ArrowInvalid:
        texts = (None if value is None else value.decode("utf-8", "replace") for value in column.to_pylist())
        return pa.array(list(texts), pa.string())


def _read_jsonl(file: IO[bytes]) -> Iterator[pa.RecordBatch | int]:
    schema: pa.Schema | None = None
    while lines := list(islice(file, BATCH_ROWS)):
        rows = [row for line in lines if (row := _json_object(line)) is not None]
        num_bad = sum(1 for line in lines if line.strip()) - len(rows)
        if schema is None and rows:
            schema = pa.Table.from_pylist(rows).schema
        if rows:
            assert schema is not None
            fitting = [row for row in rows if _fits(row, schema)]
            num_bad += len(rows) - len(fitting)
            yield from pa.Table.from_pylist(fitting, schema=schema).combine_chunks().to_batches()
        if num_bad:
            yield num_bad


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _fits(row: dict[str, Any], schema: pa.Schema) -> bool:
    # The first batch fixes the columns' types; a later row of other types is unreadable, not a reason to stop.
    try:
        pa.Table.from_pylist([row], schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _open(path: str) -> Any:
    return fsspec.open(path, "rb", compression="gzip" if path.lower().endswith(".gz") else None).open()
