"""Figures of a dataset: counts by reason, host, status and size. Aggregates in DuckDB; small results in plain types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.source import Source

MAX_HOSTS = 25
MAX_VALUES = 12

ASPECT_PER_OCTAVE = 4
SIZE_PER_OCTAVE = 4
BYTES_PER_OCTAVE = 2
TEXT_PER_OCTAVE = 2


@dataclass(frozen=True, slots=True)
class Downloaded:
    """Sums over the shards' tables. bytes_stored and medians are None where the tables lack the columns."""

    num_rows: int
    num_stored: int
    num_shards: int
    num_hosts: int
    num_images: int | None  # distinct by sha256, over stored rows
    bytes_stored: int | None
    median_bytes: int | None
    median_width: int | None
    median_height: int | None

    @property
    def share_stored(self) -> float:
        """Stored rows of all rows, in [0, 1]."""
        return self.num_stored / self.num_rows if self.num_rows else 0.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by bin. Bin b holds values from 2**(b / per_octave) up to the next bin's, or is centred on that value."""

    per_octave: int
    is_centred: bool
    bins: Mapping[int, int]

    @property
    def total(self) -> int:
        """Values counted."""
        return sum(self.bins.values())


@dataclass(frozen=True, slots=True)
class Host:
    """One host: its rows, how many were stored, and what most of the others failed by."""

    name: str
    num_rows: int
    num_stored: int
    main_reason: str | None
    num_main_reason: int

    @property
    def share_stored(self) -> float:
        """Stored rows of its rows, in [0, 1]."""
        return self.num_stored / self.num_rows if self.num_rows else 0.0


@dataclass(frozen=True, slots=True)
class Pages:
    """Sums over the pages of a crawl."""

    num_pages: int
    num_read: int
    num_hosts: int
    num_img: int
    num_pairs: int


def downloaded(source: Source) -> Downloaded:
    """Sums over all shards."""
    row = source.query("""
        SELECT count(*) AS num_rows, count(*) FILTER (is_stored) AS num_stored,
            count(DISTINCT shard) AS num_shards, approx_count_distinct(host) AS num_hosts,
            sum(bytes) FILTER (is_stored)::BIGINT AS bytes_stored,
            approx_quantile(bytes, 0.5) FILTER (is_stored)::BIGINT AS median_bytes,
            approx_quantile(width, 0.5) FILTER (is_stored)::BIGINT AS median_width,
            approx_quantile(height, 0.5) FILTER (is_stored)::BIGINT AS median_height
        FROM rows""")[0]
    # 64 of its 256 bits name an image well enough to count, and a quarter of the memory.
    num_images = source.value("""
        SELECT count(*) FROM (SELECT DISTINCT left(sha256, 16) FROM rows WHERE is_stored AND sha256 IS NOT NULL)""")
    return Downloaded(**row, num_images=num_images or None)


def reasons(source: Source) -> dict[str, dict[str, int]]:
    """Failed rows of the download: status → reason → rows."""
    found: dict[str, dict[str, int]] = {}
    for row in source.query("""
        SELECT coalesce(status, 'no_status') AS status, reason, count(*) AS n FROM rows WHERE reason IS NOT NULL
        GROUP BY ALL ORDER BY n DESC, reason"""):
        found.setdefault(row["status"], {})[row["reason"]] = row["n"]
    return found


def hosts(source: Source, limit: int = MAX_HOSTS) -> list[Host]:
    """The hosts with most rows. The main reason is asked for these alone: hosts may be millions."""
    rows = source.query(
        """
        WITH top AS (SELECT host, count(*) AS n, count(*) FILTER (is_stored) AS stored FROM rows
                     GROUP BY host ORDER BY n DESC, host LIMIT $limit),
        failed AS (SELECT host, reason, count(*) AS n FROM rows
                   WHERE host IN (SELECT host FROM top) AND reason IS NOT NULL GROUP BY ALL),
        main AS (SELECT host, arg_min(reason, (-n, reason)) AS reason, max(n) AS num_reason FROM failed GROUP BY host)
        SELECT top.*, main.reason, coalesce(main.num_reason, 0) AS num_reason FROM top LEFT JOIN main USING (host)
        ORDER BY n DESC, host""",
        {"limit": limit},
    )
    return [Host(row["host"] or "(no host)", row["n"], row["stored"], row["reason"], row["num_reason"]) for row in rows]


def statuses(source: Source, table: str, column: str) -> dict[int, int]:
    """HTTP status → rows, ascending; rows that no server answered are left out."""
    rows = source.query(f"""
        SELECT {column} AS status, count(*) AS n FROM {table} WHERE {column} IS NOT NULL
        GROUP BY ALL ORDER BY status""")
    return {row["status"]: row["n"] for row in rows}


def sizes(source: Source, prefix: str) -> Histogram:
    """Longer side in pixels of stored images; prefix "" as stored, "original_" as they came."""
    return _histogram(source, f"greatest({prefix}width, {prefix}height)", SIZE_PER_OCTAVE)


def aspects(source: Source, prefix: str) -> Histogram:
    """Width over height of stored images, in bins centred on 1; all beyond 16 is counted at 16."""
    ratio = f"CASE WHEN {prefix}height > 0 THEN least(16, greatest(1 / 16, {prefix}width / {prefix}height)) END"
    return _histogram(source, ratio, ASPECT_PER_OCTAVE, is_centred=True)


def weights(source: Source) -> Histogram:
    """Bytes of stored images."""
    return _histogram(source, "bytes", BYTES_PER_OCTAVE)


def caption_lengths(source: Source) -> Histogram:
    """Characters of stored captions, white space at the ends aside; those without any are left out."""
    return _histogram(source, "length(trim(caption))", TEXT_PER_OCTAVE)


def pages(source: Source) -> Pages:
    """Sums over all pages."""
    row = source.query("""
        SELECT count(*) AS num_pages, count(*) FILTER (reason = 'ok') AS num_read, count(DISTINCT host) AS num_hosts,
            coalesce(sum(num_img), 0)::BIGINT AS num_img, coalesce(sum(num_pairs), 0)::BIGINT AS num_pairs
        FROM pages""")[0]
    return Pages(**row)


def page_hosts(source: Source, limit: int = MAX_HOSTS) -> list[dict[str, Any]]:
    """The hosts with most pages: host, num_pages, num_read, num_pairs."""
    return source.query(
        """
        SELECT coalesce(host, '(no host)') AS host, count(*) AS num_pages, count(*) FILTER (reason = 'ok') AS num_read,
            coalesce(sum(num_pairs), 0)::BIGINT AS num_pairs
        FROM pages GROUP BY host ORDER BY num_pages DESC, host LIMIT $limit""",
        {"limit": limit},
    )


def tally(source: Source, table: str, column: str, limit: int = MAX_VALUES) -> dict[str, int]:
    """Value → rows of a column, most frequent first; a missing value is "", and the rest beyond `limit` "…"."""
    rows = source.query(
        f"""
        SELECT coalesce({column}::VARCHAR, '') AS value, count(*) AS n FROM {table}
        GROUP BY ALL ORDER BY n DESC, value LIMIT $limit""",
        {"limit": limit},
    )
    found = {row["value"]: row["n"] for row in rows}
    rest = source.value(f"SELECT count(*) FROM {table}") - sum(found.values())
    return found | ({"…": rest} if rest else {})


def depths(source: Source) -> dict[int, int]:
    """Distance from the seeds → pages, ascending."""
    rows = source.query("SELECT depth, count(*) AS n FROM pages WHERE depth IS NOT NULL GROUP BY ALL ORDER BY depth")
    return {row["depth"]: row["n"] for row in rows}


def stored_samples(source: Source, seed: int, limit: int, shards: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A random sample of stored rows that hangs on `seed` and the rows' identities alone, not on their order."""
    return source.query(
        f"""
        SELECT uid, key, shard, url, left(caption, 600) AS caption, width, height, bytes, host, page_url FROM rows
        WHERE is_stored {"" if shards is None else "AND list_contains($shards, shard)"}
        ORDER BY md5($seed || coalesce(hex(uid), key, url)) LIMIT $limit""",
        {"seed": str(seed), "limit": limit} | ({} if shards is None else {"shards": list(shards)}),
    )


def failed_samples(source: Source, seed: int, per_reason: int) -> dict[str, list[dict[str, Any]]]:
    """Reason → some of the rows that failed by it, most frequent reason first."""
    rows = source.query(
        """
        SELECT reason, count(*) AS n, min_by(
            {'url': left(url, 2000), 'caption': left(caption, 1000), 'http_status': http_status,
             'detail': left(error_message, 1000)},
            md5($seed || coalesce(hex(uid), key, url, '')), $per_reason) AS samples
        FROM rows WHERE reason IS NOT NULL GROUP BY reason ORDER BY n DESC, reason LIMIT 40""",
        {"seed": str(seed), "per_reason": per_reason},
    )
    return {row["reason"]: row["samples"] for row in rows}


def _histogram(source: Source, value: str, per_octave: int, is_centred: bool = False) -> Histogram:
    scaled = f"log2(value) * {per_octave}"
    bin_of = f"round({scaled})" if is_centred else f"floor({scaled})"
    rows = source.query(f"""
        SELECT ({bin_of})::INTEGER AS bin, count(*) AS n FROM (SELECT {value} AS value FROM rows WHERE is_stored)
        WHERE value > 0 GROUP BY ALL ORDER BY bin""")
    return Histogram(per_octave, is_centred, {row["bin"]: row["n"] for row in rows})
