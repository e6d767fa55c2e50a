"""What is known of single captions: the picture, the text and the scores of each, by (uid, source, n)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from filters.joined import score_tables
from infra.tables import KEYS, urls
from pipeline.report.gallery import Picture, pictures_of
from pipeline.report.source import Source

WEB = "web"
Key = tuple[bytes, str | None, int | None]


def key_of(row: Mapping[str, Any]) -> Key:
    """The caption that a row is about."""
    return (row["uid"], row["source"], row["n"])


def pictures_by_uid(source: Source, rows: Sequence[Mapping[str, Any]]) -> dict[bytes, Picture]:
    """Pictures of stored rows, by uid."""
    uids = list(dict.fromkeys(row["uid"] for row in rows))
    found = source.query(
        "SELECT * FROM rows WHERE is_stored AND list_contains($uids, uid)", {"uids": uids}
    ) if uids else []  # fmt: skip
    return {picture.row["uid"]: picture for picture in pictures_of(source, found)}


def texts_of(source: Source, rows: Sequence[Mapping[str, Any]], pictures: Mapping[bytes, Picture]) -> dict[Key, str]:
    """Texts of captions; absent where there is none. The web's lie in the pictures' rows, the others in tables."""
    uids = list(dict.fromkeys(row["uid"] for row in rows))
    found: dict[Key, str | None] = {(uid, WEB, 0): picture.row["caption"] for uid, picture in pictures.items()}
    for name in sorted({row["source"] for row in rows} - {WEB}):
        tables = source.dataset.ledger.tables(f"captions_{name}", f"captions/{name}").values()
        if not tables:
            continue
        known = source.query(
            "SELECT uid, n, text FROM read_parquet($files) WHERE list_contains($uids, uid)",
            {"files": urls(source.storage, [table.name for table in tables]), "uids": uids},
        )
        found |= {(row["uid"], name, row["n"]): row["text"] for row in known}
    return {key: text for key, text in found.items() if text is not None}


def values_of(source: Source, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, dict[Key, Any]]:
    """By column: (uid, source, n) → value. An image's score is that of all its captions."""
    uids = [row["uid"] for row in rows]
    result: dict[str, dict[Key, Any]] = {}
    tables = score_tables(source.dataset)
    for column in columns:
        table, _, name = column.partition(".")
        if table not in tables:  # a column of the row itself
            own = "SELECT uid, NULL AS source, NULL AS n, * FROM rows WHERE list_contains($uids, uid)"
            known = source.query(own, {"uids": uids}) if uids else []
            found = {row["uid"]: row.get(name) for row in known}
            result[column] = {key_of(row): found.get(row["uid"]) for row in rows}
            continue
        scores = {key_of(row): row["value"] for row in _scores(source, table, name, uids)}
        result[column] = {key_of(row): scores.get(key_of(row), scores.get((row["uid"], None, None))) for row in rows}
    return result


def _scores(source: Source, table: str, name: str, uids: Sequence[bytes]) -> list[dict[str, Any]]:
    names = [file.name for file in source.dataset.ledger.tables(f"score_{table}", f"scores/{table}").values()]
    if not names or not uids:
        return []
    quoted = '"' + name.replace('"', '""') + '"'
    return source.query(
        f"SELECT {', '.join(KEYS.names)}, {quoted} AS value FROM read_parquet($files) WHERE list_contains($uids, uid)",
        {"files": urls(source.storage, names), "uids": list(uids)},
    )
