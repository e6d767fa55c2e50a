"""One row's whole life: page, download, scores, each rule's verdict, selections that hold it, shards that store it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.decide import decisions, fallen_table
from filters.joined import Joined, score_tables
from filters.listed import lists_of
from filters.lookup import STORED, WAITING, Found, find_rows
from filters.rules import BestCaption, Rule, SelectRecipe, Unique
from filters.seen import Places
from filters.verdicts import PASSED, Decided, Judge
from infra.dataset import Dataset
from infra.errors import DatasetError, PairmillError
from infra.reasons import explain as explain_reason
from infra.removed import RemovedRows
from infra.selection import Selection, selection_table, selections
from infra.tables import KEYS, connect, read_table, urls

SHOWN = ("page_url", "caption_from", "lang_hint", "licence", "warc_path")  # what a crawl knows of a row
MAX_TEXT = 300


@dataclass(frozen=True)
class Verdict:
    """What one rule says of one caption, with the values that it looked at."""

    rule: str
    verdict: str  # passed, the reason it falls by, or "not asked": it had fallen before
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
    captions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # further ones, by table
    scores: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    selected: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    stored_in: Sequence[str] = ()


def explain(dataset: Dataset, what: str) -> list[Life]:
    """The lives of the rows with a uid (32 hex digits), or of an image's or page's address.

    Raises DatasetError where there is no dataset, or where it knows nothing of it.
    """
    lives = [_life(dataset, found) for found in find_rows(dataset, what)]
    if not lives:
        raise DatasetError(
            f"{dataset.storage.url}: no row of {what}; give a uid of 32 hex digits, or an image's or page's address as "
            "the tables hold it"
        )
    return lives


def _life(dataset: Dataset, found: Found) -> Life:
    uid, shard = found.uid, found.shard
    life = Life(uid.hex(), found.row, found.fate, shard, _page(dataset, found.row.get("page_url")))
    if shard is None or found.fate not in (STORED, WAITING):
        return life
    captions = {table: _of(dataset, f"captions/{table}/{shard}.parquet", uid) for table in _caption_tables(dataset)}
    scores = {table: _of(dataset, f"scores/{table}/{shard}.parquet", uid) for table in score_tables(dataset)}
    selected = {name: _of(dataset, selection_table(name, shard), uid) for name in selections(dataset)}
    selected = {name: told for name, told in selected.items() if told}
    return replace(
        life,
        captions={table: told for table, told in captions.items() if told},
        scores={table: told for table, told in scores.items() if told},
        selected=selected,
        verdicts={name: list(_verdicts(Selection(dataset, name), shard, uid)) for name in selected},
        stored_in=[*([dataset.storage.file_url(dataset.tar(shard))] if found.fate == STORED else []),
                   *_resharded(dataset, uid)],
    )  # fmt: skip


def _caption_tables(dataset: Dataset) -> list[str]:
    steps = dataset.ledger.steps()
    return sorted(step.removeprefix("captions_") for step in steps if step.startswith("captions_"))


def _verdicts(selection: Selection, shard: str, uid: bytes) -> Iterator[Verdict]:
    """What each rule says of the uid's captions; a rule that chooses among rows asks only those that are still in."""
    dataset, told = selection.dataset, selection.summary["recipe"]
    try:
        recipe = SelectRecipe.parse({"rules": told["rules"], "captions": told["captions"]}, selection.name)
        rules = recipe.parsed()
        names = [name for rule in rules for name in (*rule.columns, *rule.also_reads)]
        # A table that came since may have a column of the same name. Behind the rules stands what was removed since.
        meant = {name: full for rule, one in zip(rules, selection.summary["rules"], strict=False)
                 for name, full in zip(rule.columns, one["columns"], strict=True)}  # fmt: skip
        joined = Joined(dataset, [meant.get(name, name) for name in names], recipe.captions)
        if shard not in joined.rows.shards:
            raise DatasetError(f"shard {shard} is no longer there; select again")
        group = joined.read([shard])
        group = replace(group, columns={name: group.columns[meant.get(name, name)] for name in names})
        judge = Judge(rules, _decided(selection, shard, rules, group.keys["uid"]), lists_of(rules))
        codes = np.zeros(group.num_rows, np.uint16)
        at = [row for row, found in enumerate(group.keys["uid"].to_pylist()) if found == uid]
        for number, (rule, verdicts) in enumerate(zip(rules, judge.verdicts(group, codes), strict=True)):
            for row in at:
                values = {
                    name: group.columns[name][row].as_py() for name in dict.fromkeys((*rule.columns, *rule.also_reads))
                }
                word = "passed" if verdicts[row] == PASSED else rule.reasons[verdicts[row] - 1]
                if word == "passed" and codes[row] and isinstance(rule, Unique | BestCaption):
                    word = "not asked"
                yield Verdict(rule.text, word, values, _because(dataset, selection.name, number, shard, rule, uid))
            codes[verdicts != PASSED] = 1
    except (PairmillError, OSError, duckdb.Error, pa.ArrowException) as error:
        yield Verdict("", f"cannot be judged again: {error}", {})


def _decided(selection: Selection, shard: str, rules: Sequence[Rule], uids: pa.ChunkedArray) -> dict[int, Decided]:
    """The decisions for a shard, of whose captions `uids` are. Raises DatasetError where they were others then."""
    dataset, datasets = selection.dataset, selection.summary["datasets"]
    # Alone it is its own home, wherever it was copied or moved to.
    home = dataset if len(datasets) == 1 else Dataset(datasets[0])
    then = selection.read(shard, ["uid"])["uid"]
    stays = ~RemovedRows.of(dataset.storage).hold(then, None)
    if not then.filter(pa.array(stays)).equals(uids):
        raise DatasetError(f"the rows of shard {shard} have changed since; select again")

    def now(fallen: Callable[[str], Places]) -> Callable[[str], Places]:
        # Places were counted with the rows that a removal has taken out since.
        return lambda shard: (np.cumsum(stays) - 1)[[place for place in fallen(shard) if stays[place]]]

    decided = decisions(home, dataset, selection.name, rules)
    return {number: replace(one, fallen=now(one.fallen)) if one.fallen else one for number, one in decided.items()}


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
    rows = table.filter(pc.equal(table["uid"], pa.scalar(uid, KEYS.field("uid").type))).to_pylist()
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
    if life.fate == STORED:
        size = f"{row['width']} x {row['height']} pixels" if row.get("width") else ""
        came = f", came as {row['original_width']} x {row['original_height']}" if row.get("original_width") else ""
        yield f"download   stored as {row.get('key')} in shard {life.place}: {size}{came}"
    else:
        yield f"download   {life.fate}: {explain_reason(life.fate)}"
    for table, found in life.captions.items():
        for one in found:
            yield f"written    {table} {one['n']}: {_short(one['text'])}"
    for table, found in life.scores.items():
        for one in found:
            of = _of_caption(one)
            told = ", ".join(f"{name} {_short(value)}" for name, value in one.items() if name not in KEYS.names)
            yield f"score      {table}{of}: {told}"
    for name, found in life.selected.items():
        for one in found:
            yield f"selection  {name}{_of_caption(one)}: " + ("kept" if one["keep"] else f"dropped, {one['reason']}")
        for verdict in life.verdicts[name]:
            values = ", ".join(f"{column} = {_short(value)}" for column, value in verdict.values.items())
            lead = f", {verdict.because_of} was kept" if verdict.because_of else ""
            yield f"           {verdict.rule}: {verdict.verdict}" + (f" ({values}{lead})" if values else "")
    for tar in life.stored_in:
        yield f"stored in  {tar}"


def _of_caption(one: Mapping[str, Any]) -> str:
    """Which caption a row is of, where it is not the web's."""
    return f" ({one['source']} {one['n']})" if one["source"] not in (None, "web") else ""


def as_json(life: Life) -> dict[str, Any]:
    """A life as --json gives it: bytes as hex, null for what is not finite, text for what JSON has no word for."""
    ready: dict[str, Any] = _ready(asdict(life))
    return ready


def _ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _ready(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_ready(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value.hex() if isinstance(value, bytes) else str(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
