"""Tables that others made (parquet, csv, tsv, jsonl; .gz too), read by DuckDB as one: files and rows in their order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fsspec

from infra.errors import UsageError
from infra.storage import Storage

FORMATS = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "txt": "tsv", "jsonl": "jsonl", "ndjson": "jsonl"}
FOOTER_BYTES = 1 << 16
FILE_COLUMN = "pairmill_file"


@dataclass(frozen=True)
class Foreign:
    """Files of one format. Columns that one of them lacks are null there."""

    files: tuple[str, ...]
    kind: str

    def digests(self) -> list[str]:
        """A word for each file's content. A parquet file is known by its size and footer, which place every column."""
        return [_digest(path, self.kind) for path in self.files]

    def columns(self, connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
        """Name and DuckDB type of each column. Raises UsageError where a file cannot be read."""
        sources = [self._parquet(self.files)] if self.kind == "parquet" else map(self._text, self.files)
        found: dict[str, str] = {}
        for source in sources:
            rows = _readable(lambda source=source: connection.sql(f"DESCRIBE {source}").fetchall(), self.files)
            found = {name: kind for name, kind, *_ in rows if name not in (FILE_COLUMN, "file_row_number")} | found
        if self.kind == "jsonl" and list(found.values()) == ["JSON"]:
            raise UsageError(f"{self.files[0]}: a line is no JSON object; write one object a line")
        return found

    def open(self, connection: duckdb.DuckDBPyConnection, folder: Path, as_text: Iterable[str]) -> int:
        """Make the view `foreign_rows`: the columns, and `_at`, which counts through them. Returns unreadable rows.

        as_text: columns of csv files that are no numbers, whatever they look like. Text files are copied as parquet to
        `folder` first: rows of those have no numbers.
        """
        num_unreadable = 0
        files: Sequence[str] = self.files
        if self.kind != "parquet":
            files = [str(folder / f"{number:06d}.parquet") for number in range(len(self.files))]
            for path, copy in zip(self.files, files, strict=True):
                num_unreadable += self._copy(connection, path, copy, as_text)
        connection.execute(f"CREATE TEMP TABLE numbered ({FILE_COLUMN} VARCHAR, number BIGINT)")
        connection.executemany("INSERT INTO numbered VALUES (?, ?)", [[path, at] for at, path in enumerate(files)])
        connection.execute(f"""
            CREATE TEMP VIEW foreign_rows AS
            SELECT f.* EXCLUDE ({FILE_COLUMN}, file_row_number), (number << 40) + file_row_number AS _at
            FROM ({self._parquet(files)}) f JOIN numbered USING ({FILE_COLUMN})""")
        return num_unreadable

    def _copy(self, connection: duckdb.DuckDBPyConnection, path: str, copy: str, as_text: Iterable[str]) -> int:
        names = [row[0] for row in connection.sql(f"DESCRIBE {self._text(path)}").fetchall()]
        source = self._text(path, [name for name in as_text if name in names])
        connection.execute(f"COPY ({source}) TO {_quoted(copy)} (FORMAT parquet)")
        if self.kind == "jsonl":
            return 0  # such a line is a row of nulls
        ((number,),) = connection.execute("SELECT count(DISTINCT line) FROM reject_errors").fetchall()
        connection.execute("DROP TABLE reject_errors; DROP TABLE reject_scans")
        return int(number)

    def _text(self, path: str, as_text: Sequence[str] = ()) -> str:
        if self.kind == "jsonl":
            return (
                f"SELECT * FROM read_json({_quoted(path)}, format = 'newline_delimited', ignore_errors = true, "
                "sample_size = -1)"
            )
        delimiter = "\\t" if self.kind == "tsv" else ","
        types = ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in as_text)
        return (
            f"SELECT * FROM read_csv({_quoted(path)}, header = true, delim = '{delimiter}', quote = '\"', "
            "escape = '\"', comment = '', strict_mode = false, store_rejects = true, sample_size = -1, "
            f"types = {{{types}}})"
        )

    def _parquet(self, files: Sequence[str]) -> str:
        listed = ", ".join(map(_quoted, files))
        return (
            f"SELECT * FROM read_parquet([{listed}], union_by_name = true, filename = '{FILE_COLUMN}', "
            "file_row_number = true)"
        )


def find_foreign(patterns: Sequence[str]) -> Foreign:
    """Tables named by paths, folders, globs and fsspec urls, sorted within each. Raises UsageError for none."""
    files: list[str] = []
    for pattern in patterns:
        filesystem, path = fsspec.url_to_fs(pattern)
        if filesystem.isfile(path):
            found = [path]
        else:
            inside = filesystem.ls(path, detail=False) if filesystem.isdir(path) else filesystem.glob(path)
            found = sorted(name for name in inside if _format(name))
        if not found or not all(map(_format, found)):
            raise UsageError(f"{pattern}: no table there; give .parquet, .csv, .tsv or .jsonl files, or their folder")
        remote = "://" in pattern and not pattern.startswith("file://")
        files += [filesystem.unstrip_protocol(name) if remote else Storage(name).url for name in found]
    kinds = {_format(path) for path in files}
    if len(kinds) != 1:
        raise UsageError(f"{', '.join(patterns)}: tables of several formats; import one format at a time")
    return Foreign(tuple(dict.fromkeys(files)), kinds.pop() or "")


def let_read(connection: duckdb.DuckDBPyConnection, urls: Iterable[str]) -> None:
    """Let DuckDB read files that lie behind fsspec urls."""
    for url in {url.partition("://")[0]: url for url in urls if "://" in url}.values():
        connection.register_filesystem(fsspec.url_to_fs(url)[0])


def clean_names(names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Each column's name as rules can say it: small letters, digits and _; `_2` behind one that is taken.

    "CLIP score (B/32)" becomes clip_score_b_32, "2nd" becomes c_2nd.
    """
    used = set(taken)
    cleaned = {}
    for name in names:
        word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        word = word if word[:1].isalpha() else f"c_{word}".rstrip("_")
        number = 2
        while (free := word if number == 2 and word not in used else f"{word}_{number}") in used:
            number += 1
        used.add(free)
        cleaned[name] = free
    return cleaned


def quoted_name(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _format(path: str) -> str | None:
    base = path.rsplit("/", 1)[-1].lower().removesuffix(".gz")
    return None if base.startswith((".", "_")) else FORMATS.get(base.rpartition(".")[2])


def _digest(path: str, kind: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with fsspec.open(path, "rb") as file:
        if kind == "parquet":
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            digest.update(f"{size}".encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _readable(read: Any, files: Sequence[str]) -> Any:
    try:
        return read()
    except duckdb.Error as error:
        raise UsageError(f"{files[0]}: not readable: {str(error).partition(chr(10))[0]}") from None
