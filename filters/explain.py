"""One row's whole life: page, download, scores, each rule's verdict, selections that hold it, shards that store it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from filters.decide import decisions, fallen_table
from filters.joined import Joined, score_tables
from filters.listed import lists_of
from filters.rules import Rule, SelectRecipe, Unique
from filters.verdicts import PASSED, Judge
from infra.dataset import Dataset
from infra.errors import DatasetError, RecipeError
from infra.reasons import explain as explain_reason
from infra.sample import UID_BYTES
from infra.selection import Selection, selections
from infra.tables import KEYS, connect, read_table, urls

STORED = "success"
SHOWN = ("page_url", "caption_from", "lang_hint", "licence", "warc_path")  # what a crawl knows of a row
MAX_LIVES = 20  # rows that one address may tell of
MAX_TEXT = 300


@dataclass(frozen=True)
class Verdict:
    """What one rule says of one caption, with the values that it looked at."""

    rule: str
    verdict: str  # passed, the reason it falls by, or not asked
    values: Mapping[str, Any]
    because_of: str | None = None  # uid of the row that was kept in its place


@dataclass(frozen=True)
class Life:
    """All that a dataset knows of one row."""

    uid: str
    row: Mapping[str, Any]
    fate: str  # stored, or the reason it is not
    place: str | None  # shard
    page: Mapping[str, Any] | None = None
    scores: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    selected: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    stored_in: Sequence[str] = ()


def explain(dataset: Dataset, what: str) -> list[Life]:
    """The lives of the rows with a uid (32 hex digits), or of an image's or page's address.

    Raises DatasetError where the dataset knows nothing of it.
    """
    lives = [_life(dataset, row) for row in _rows(dataset, what)]
    if not lives:
        raise DatasetError(
            f"{dataset.storage.url}: no row of {what}; give a uid of 32 hex digits, or an image's or page's address as "
            "the tables hold it"
        )
    return lives


def _rows(dataset: Dataset, what: str) -> Iterator[dict[str, Any]]:
    """Rows of the newest table that knows them: shards, then what was asked for, then what a crawl found."""
    uid = _as_uid(what)
    for folder, names in _places(dataset):
        if not names:
            continue
        connection = connect(dataset.storage)
        source = f"read_parquet({_quoted(urls(dataset.storage, names))}, union_by_name = true, filename = true)"
        columns = [name for name, *_ in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
        where = (
            "uid = $what"
            if uid is not None
            else " OR ".join(f"{name} = $what" for name in ("url", "page_url") if name in columns)
        )
        if not where or (uid is not None and "uid" not in columns):
            continue
        found = connection.execute(f"SELECT * FROM {source} WHERE {where} LIMIT {MAX_LIVES}", {"what": uid or what})
        rows = [dict(zip(columns, row, strict=True)) for row in found.fetchall()]
        for row in rows:
            shard = str(row.pop("filename")).rpartition("/")[2].removesuffix(".parquet")
            yield row | {"_shard": shard, "_folder": folder}
        if rows:
            return


def _places(dataset: Dataset) -> Iterator[tuple[str, list[str]]]:
    yield "shards", [dataset.table(shard) for shard in dataset.shards()]
    yield "inputs", dataset.tables("inputs")
    yield "pairs", dataset.tables("pairs")


def _life(dataset: Dataset, row: dict[str, Any]) -> Life:
    shard, folder = row.pop("_shard"), row.pop("_folder")
    uid: bytes = row.pop("uid")
    if folder != "shards":
        fate = "waiting"
    else:
        fate = "stored" if row.get("status") in (STORED, None) else str(row.get("reason") or row["status"])
    page = _page(dataset, row.get("page_url"))
    if fate != "stored" and folder == "shards":
        return Life(uid.hex(), row, fate, shard, page)
    scores, verdicts, selected = {}, {}, {}
    for table in score_tables(dataset):
        if found := _of(dataset, f"scores/{table}/{shard}.parquet", uid):
            scores[table] = found
    for name in selections(dataset):
        selection = Selection(dataset, name)
        if shard in selection.shards:
            selected[name] = _of(dataset, f"selections/{name}/{shard}.parquet", uid)
            verdicts[name] = list(_verdicts(dataset, selection, shard, uid))
    stored = [dataset.storage.file_url(dataset.tar(shard))] if fate == "stored" else []
    return Life(uid.hex(), row, fate, shard, page, scores, verdicts, selected, [*stored, *_resharded(dataset, uid)])


def _verdicts(dataset: Dataset, selection: Selection, shard: str, uid: bytes) -> Iterator[Verdict]:
    """What each rule says of the uid's captions, whatever the rules before it said."""
    told = selection.summary["recipe"]
    recipe = SelectRecipe.parse({"rules": told["rules"], "captions": told["captions"]}, selection.name)
    rules = recipe.parsed()
    home = Dataset(selection.summary["datasets"][0])
    names = [name for rule in rules for name in (*rule.columns, *rule.also_reads)]
    try:
        group = Joined(dataset, names, recipe.captions).read([shard])
        judge = Judge(rules, decisions(home, dataset, selection.name, rules), lists_of(rules))
    except (RecipeError, DatasetError, FileNotFoundError) as error:
        yield Verdict("", f"cannot be judged again: {error}", {})
        return
    codes = judge.judge(group).codes
    at = [row for row, found in enumerate(group.keys["uid"].to_pylist()) if found == uid]
    for number, (rule, verdicts) in enumerate(zip(rules, judge.verdicts(group, np.zeros_like(codes)), strict=True)):
        for row in at:
            values = {
                name: group.columns[name][row].as_py() for name in dict.fromkeys((*rule.columns, *rule.also_reads))
            }
            word = "passed" if verdicts[row] == PASSED else rule.reasons[verdicts[row] - 1]
            lead = _because(dataset, selection.name, number, shard, rule, uid)
            yield Verdict(rule.text, word, values, lead)


def _because(dataset: Dataset, selection: str, number: int, shard: str, rule: Rule, uid: bytes) -> str | None:
    if not isinstance(rule, Unique):
        return None
    found = _of(dataset, fallen_table(selection, number, shard), uid)
    return found[0]["because_of"].hex() if found else None


def _of(dataset: Dataset, name: str, uid: bytes) -> list[dict[str, Any]]:
    """A table's rows of one uid, without the uid; empty where there is no such table."""
    try:
        table = read_table(dataset.storage, name)
    except FileNotFoundError:
        return []
    rows = table.filter(pa.compute.equal(table["uid"], pa.scalar(uid, KEYS.field("uid").type))).to_pylist()
    return [{key: value for key, value in row.items() if key != "uid"} for row in rows]


def _page(dataset: Dataset, url: Any) -> Mapping[str, Any] | None:
    names = dataset.tables("ledger/pages")
    if not url or not names:
        return None
    found = connect(dataset.storage).execute(
        "SELECT url, status, reason, depth FROM read_parquet($files, union_by_name = true) WHERE url = $url LIMIT 1",
        {"files": urls(dataset.storage, names), "url": url},
    )
    rows = found.fetchall()
    return dict(zip(("url", "status", "reason", "depth"), rows[0], strict=True)) if rows else None


def _resharded(dataset: Dataset, uid: bytes) -> list[str]:
    """Tars of datasets that were made of this one, as far as they are still where they were."""
    found = []
    for name in dataset.storage.list("ledger/resharded", ".json"):
        other = Dataset(json.loads(dataset.storage.read(name))["dataset"])
        files = [other.table(shard) for shard in other.shards()]
        if files:
            rows = connect(other.storage).execute(
                "SELECT DISTINCT parse_filename(filename, true) FROM read_parquet($files, filename = true) "
                "WHERE uid = $uid",
                {"files": urls(other.storage, files), "uid": uid},
            )
            found += [other.storage.file_url(other.tar(shard)) for (shard,) in rows.fetchall()]
    return found


def life_lines(life: Life) -> Iterator[str]:
    """A life for people, a line each."""
    row = life.row
    yield f"uid        {life.uid}"
    yield f"url        {row.get('url')}"
    yield f"caption    {_short(row.get('caption'))}"
    facts = ", ".join(f"{name} {row[name]}" for name in SHOWN if row.get(name))
    if facts:
        yield f"found      {facts}"
    if life.page:
        yield f"page       {life.page['url']}: {life.page['reason']}, {life.page['depth']} links from the seeds"
    if life.fate == "stored":
        size = f"{row['width']} x {row['height']} pixels" if row.get("width") else ""
        came = f", came as {row['original_width']} x {row['original_height']}" if row.get("original_width") else ""
        yield f"download   stored as {row.get('key')} in shard {life.place}: {size}{came}"
    else:
        yield f"download   {life.fate}: {explain_reason(life.fate)}"
    for table, found in life.scores.items():
        for one in found:
            of = f" ({one['source']} {one['n']})" if one["source"] not in (None, "web") else ""
            told = ", ".join(f"{name} {_short(value)}" for name, value in one.items() if name not in KEYS.names)
            yield f"score      {table}{of}: {told}"
    for name, found in life.selected.items():
        for one in found:
            yield f"selection  {name}: " + ("kept" if one["keep"] else f"dropped, {one['reason']}")
        for verdict in life.verdicts[name]:
            values = ", ".join(f"{column} = {_short(value)}" for column, value in verdict.values.items())
            lead = f", {verdict.because_of} was kept" if verdict.because_of else ""
            yield f"           {verdict.rule}: {verdict.verdict}" + (f" ({values}{lead})" if values else "")
    for tar in life.stored_in:
        yield f"stored in  {tar}"


def as_json(life: Life) -> dict[str, Any]:
    """A life as --json gives it: bytes as hex."""
    ready: dict[str, Any] = json.loads(json.dumps(asdict(life), default=lambda value: value.hex()))
    return ready


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value.hex() if isinstance(value, bytes) else str(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _as_uid(what: str) -> bytes | None:
    try:
        uid = bytes.fromhex(what)
    except ValueError:
        return None
    return uid if len(uid) == UID_BYTES else None


def _quoted(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
