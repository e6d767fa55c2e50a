"""What a report reads: a dataset's tables as DuckDB views of fixed columns, and its ledger. Absent columns are NULL.

Views: `rows` (one row per input row of a download), `pages` (one per page of a crawl), `pairs` (what the crawl found).
Every aggregate runs in DuckDB over columns, in bounded memory; images are never read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.ledger import DoneMark
from infra.tables import connect, urls
from pipeline.truth import truth_of

MEMORY = "1GB"

_ROWS = {
    "uid": "BLOB", "key": "VARCHAR", "url": "VARCHAR", "caption": "VARCHAR", "status": "VARCHAR", "reason": "VARCHAR",
    "error_message": "VARCHAR", "http_status": "INTEGER", "width": "BIGINT", "height": "BIGINT",
    "original_width": "BIGINT", "original_height": "BIGINT", "bytes": "BIGINT", "sha256": "VARCHAR",
    "page_url": "VARCHAR", "caption_from": "VARCHAR", "lang_hint": "VARCHAR", "licence": "VARCHAR",
}  # fmt: skip
_PAGES = {
    "url": "VARCHAR", "host": "VARCHAR", "depth": "INTEGER", "status": "INTEGER", "reason": "VARCHAR",
    "num_img": "BIGINT", "num_pairs": "BIGINT", "num_links": "BIGINT",
}  # fmt: skip
_PAIRS = {
    "url": "VARCHAR", "caption": "VARCHAR", "page_url": "VARCHAR", "caption_from": "VARCHAR", "lang_hint": "VARCHAR",
    "licence": "VARCHAR", "warc_path": "VARCHAR", "num_seen": "BIGINT",
}  # fmt: skip

# img2dataset keeps the exception's text instead of a reason word; the first pattern that fits gives ours.
_FOREIGN_MESSAGES = (
    ("%Name or service not known%", "dns"),
    ("%Temporary failure in name resolution%", "dns"),
    ("%No address associated%", "dns"),
    ("%nodename nor servname%", "dns"),
    ("%timed out%", "timeout"),
    ("%CERTIFICATE%", "tls"),
    ("%SSL%", "tls"),
    ("%refused%", "connect"),
    ("%unreachable%", "connect"),
    ("%reset by peer%", "reset"),
    ("%without response%", "reset"),
    ("%infinite loop%", "too_many_redirects"),
    ("%IncompleteRead%", "wrong_length"),
    ("%X-Robots-Tag%", "opt_out"),
    ("%unknown url type%", "bad_url"),
    ("%Image decoding error%", "decode_error"),
    ("%image too small%", "too_small"),
    ("%image area too large%", "too_large_area"),
    ("%aspect ratio too large%", "too_elongated"),
    ("%hash mismatch%", "hash_mismatch"),
)
_FOREIGN_REASON = (
    "CASE WHEN error_message LIKE 'HTTP Error %' THEN 'http_' || regexp_extract(error_message, 'HTTP Error (\\d+)', 1) "
    + " ".join(f"WHEN error_message LIKE '{pattern}' THEN '{word}'" for pattern, word in _FOREIGN_MESSAGES)
    + " ELSE coalesce(status, 'no_status') END"
)
_HOST = r"'^[a-zA-Z][a-zA-Z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]/]*\]|[^/?#:]+)'"


class Source:
    """One dataset, opened for reading. Raises DatasetError where there is no such folder.

    runs: folders of training runs that the page shows, too.
    """

    def __init__(self, url: str, runs: Sequence[str] = ()) -> None:
        self.dataset = Dataset(url)
        self.runs = runs
        self.storage = self.dataset.storage
        if not self.storage.exists():
            raise DatasetError(f"{url}: no such folder; give the --out of a crawl or download")
        self.connection = connect(self.storage, memory=MEMORY)
        self.missing: list[str] = []
        self.shards = self._published([self.dataset.table(shard) for shard in self.dataset.shards()], "")
        self.has_rows = self._view("raw_rows", self.shards, _ROWS)
        self.has_pages = self._view(
            "pages", self._published(self.dataset.tables("ledger/pages"), "ledger/pages"), _PAGES
        )
        self.has_pairs = self._view("pairs", self._published(self.dataset.tables("pairs"), "pairs"), _PAIRS)
        if self.has_rows:
            self._add_fates()

    @property
    def name(self) -> str:
        """The folder's own name: the report's title."""
        return self.storage.url.rstrip("/").rpartition("/")[2] or self.storage.url

    @property
    def shard_names(self) -> list[str]:
        """The shards whose tables `rows` reads, sorted."""
        return [table.removesuffix(".parquet") for table in self.shards]

    @cached_property
    def steps(self) -> Mapping[str, Mapping[str, DoneMark]]:
        """Done-marks by step and job."""
        return {step: self.dataset.ledger.done(step) for step in self.dataset.ledger.steps()}

    @cached_property
    def truth(self) -> pa.Table | None:
        """What the small web knows of its pairs; None where the dataset was not crawled from it."""
        return truth_of(self.dataset)

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a query as mappings. Raises DatasetError where a table is broken."""
        try:
            cursor = self.connection.execute(sql, parameters) if parameters else self.connection.execute(sql)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except duckdb.Error as error:
            what = str(error).partition("\n")[0]
            mend = "`python -m infra verify` names what is broken"
            raise DatasetError(f"{self.storage.url}: a table cannot be read: {what}; {mend}") from None

    def value(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The single value of a query."""
        ((value,),) = (row.values() for row in self.query(sql, parameters))
        return value

    def close(self) -> None:
        """Give DuckDB's memory back."""
        self.connection.close()

    def _published(self, listed: Sequence[str], folder: str) -> list[str]:
        # Readers trust only what a done-mark names; a foreign folder has no marks, and all it holds is taken.
        named = {
            file.name
            for marks in self.steps.values()
            for mark in marks.values()
            for file in mark.files
            if file.name.rpartition("/")[0] == folder and file.name.endswith(".parquet")
        }
        if not named:
            return list(listed)
        self.missing += sorted(named.difference(listed))
        return [name for name in listed if name in named]

    def _view(self, view: str, names: Iterable[str], columns: Mapping[str, str]) -> bool:
        files = urls(self.storage, list(names))
        if not files:
            nothing = ", ".join(f"NULL::{kind} AS {column}" for column, kind in columns.items())
            self.connection.execute(f"CREATE VIEW {view} AS SELECT {nothing}, NULL::VARCHAR AS filename WHERE false")
            return False
        table = f"read_parquet({_literals(files)}, union_by_name = true, filename = true)"
        present = {row["column_name"]: row["column_type"] for row in self.query(f"DESCRIBE SELECT * FROM {table}")}
        chosen = ", ".join(
            f"{_cast(column, present[column], kind)} AS {column}" if column in present else f"NULL::{kind} AS {column}"
            for column, kind in columns.items()
        )
        self.connection.execute(f"CREATE VIEW {view} AS SELECT {chosen}, filename FROM {table}")
        return True

    def _add_fates(self) -> None:
        self.connection.execute(f"""
            CREATE VIEW rows AS SELECT * EXCLUDE (reason, filename),
                status = 'success' AS is_stored,
                CASE WHEN status = 'success' THEN NULL ELSE coalesce(reason, {_FOREIGN_REASON}) END AS reason,
                coalesce(lower(regexp_extract(url, {_HOST}, 1)), '') AS host,
                regexp_extract(filename, '([^/]+)\\.parquet$', 1) AS shard
            FROM raw_rows""")


def _cast(column: str, given: str, wanted: str) -> str:
    # DataComp's uids are hex digits.
    return f'TRY(unhex("{column}"))' if (given, wanted) == ("VARCHAR", "BLOB") else f'TRY_CAST("{column}" AS {wanted})'


def _literals(texts: Iterable[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
