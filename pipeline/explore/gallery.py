"""What lies on either side of a cut: which rows, with their captions and links from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from filters.safety import are_doubtful
from infra.page.words import link, plain
from infra.recipe import Config
from infra.sample import UID_BYTES
from infra.tables import read_table
from pipeline.explore.counts import Condition, Explorer, all_of, codes, fate
from pipeline.explore.rules import MAX_RULES, Asked, Range, Values

PAGE = 24
MAX_CAPTION = 2000  # characters
MAX_HOST = 100

Place = Annotated[int, Field(ge=0, lt=MAX_RULES)]


class View(Config):
    """Rows of one side: those nearest to a rule's cut, or any, in an order that `seed` makes."""

    side: Literal["kept", "dropped"]
    near: Place | None = None  # the rule whose cut it is; all others keep the row
    edge: Literal["low", "high"] = "low"  # which cut of a range
    reason: Place | None = None  # dropped by this rule first
    is_missing: bool = False  # and because it has no value
    seed: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    page: Annotated[int, Field(ge=0, le=1_000)] = 0


@dataclass(frozen=True)
class Gallery:
    """Pages of rows of one loaded dataset."""

    explorer: Explorer

    def page(self, asked: Sequence[Asked], view: View) -> dict[str, Any]:
        """PAGE rows of a view as JSON, and whether more follow."""
        conditions = self.explorer.conditions(asked)
        where, order = self._chosen(asked, conditions, view)
        columns = self.explorer.loaded.columns
        named = "".join(f", {column.sql}" for column in columns)
        found = self.explorer.query(
            f"SELECT rowid, shard, uid, source, n, {fate(conditions)} AS fate{named} FROM rows WHERE {where} "
            f"ORDER BY {order}, mix, rowid LIMIT {PAGE + 1} OFFSET {view.page * PAGE}"
        )
        shown = found[:PAGE]
        texts = self._texts([row[1:5] for row in shown])
        doubts = self._doubts(shown, texts)
        items = [self._item(row, conditions, texts) for row in shown]
        ready = [item | {"is_doubtful": is_so} for item, is_so in zip(items, doubts, strict=True)]
        return {"items": ready, "has_more": len(found) > PAGE}

    def _chosen(self, asked: Sequence[Asked], conditions: Sequence[Condition], view: View) -> tuple[str, str]:
        """Which rows a view shows and in which order, as SQL."""
        order = f"hash(mix, {view.seed})"
        cut = next((condition for condition in conditions if condition.at == view.near), None)
        if cut is None:
            return _by_fate(conditions, view), order
        others = all_of([condition for condition in conditions if condition is not cut])
        wish, name, is_low = asked[cut.at], cut.column.sql, True
        if isinstance(wish, Range):
            # The low cut, where there is one and the page did not ask for the other.
            is_low = wish.high is None or (view.edge == "low" and wish.low is not None)
            (edge,) = self.explorer.conditions([wish.model_copy(update={"high" if is_low else "low": None})])
        else:
            edge = cut
        if not isinstance(wish, Values):
            order = f"{name} {'ASC' if is_low == (view.side == 'kept') else 'DESC'}"
        if view.side == "kept":
            return all_of(conditions), order
        return f"{others} AND {name} IS NOT NULL AND NOT ({edge.sql})", order

    def _texts(self, keys: Sequence[tuple[int, bytes, str, int]]) -> dict[tuple[bytes, str, int], dict[str, Any]]:
        """Captions and links of rows, by uid, source and n: each shard's table is read once."""
        loaded = self.explorer.loaded
        texts: dict[tuple[bytes, str, int], dict[str, Any]] = {}
        for number in sorted({key[0] for key in keys}):
            shard = loaded.shards[number]
            uids = pa.array({uid for place, uid, _, _ in keys if place == number}, pa.binary(UID_BYTES))
            rows = loaded.rows.read(shard, ["page_url"])
            for row in rows.filter(pc.is_in(rows["uid"], value_set=uids)).to_pylist():
                texts[(row["uid"], "web", 0)] = row
            for source in {source for place, _, source, _ in keys if place == number and source != "web"}:
                table = read_table(loaded.rows.dataset.storage, f"captions/{source}/{shard}.parquet")
                for row in table.filter(pc.is_in(table["uid"], value_set=uids)).to_pylist():
                    own = texts.get((row["uid"], "web", 0), {})
                    texts[(row["uid"], source, row["n"])] = own | {"caption": row["text"]}
        return texts

    def _doubts(self, rows: Sequence[tuple[Any, ...]], texts: Mapping[tuple[bytes, str, int], Any]) -> list[bool]:
        """Which pictures are doubtful: asked of the tables, for columns that cannot be cut are not in memory."""
        loaded = self.explorer.loaded
        named = [{"shard": loaded.shards[number], "uid": uid, "key": texts.get((uid, source, n), {}).get("key")}
                 for _, number, uid, source, n, *_ in rows]  # fmt: skip
        return are_doubtful(loaded.rows.dataset, named)

    def _item(
        self, row: tuple[Any, ...], conditions: Sequence[Condition],
        texts: Mapping[tuple[bytes, str, int], Mapping[str, Any]],
    ) -> dict[str, Any]:  # fmt: skip
        number, _, uid, source, n, code, *values = row
        text = texts.get((uid, source, n), {})
        url = link(text.get("url"))
        place, kind = divmod(code - 1, 2)
        return {
            "row": number,
            "uid": uid.hex(),
            "source": source if source == "web" else f"{source} {n}",
            "caption": plain(text.get("caption"), MAX_CAPTION),
            "url": url,
            "host": plain(urlsplit(url or "").hostname, MAX_HOST),  # browsers cannot read all urls (port 99999)
            "page_url": link(text.get("page_url")),
            "rule": conditions[place].at if code else None,  # the first that it fails
            "is_missing": bool(code) and kind == 1,
            "values": [_as_json(value) for value in values],
        }


def _by_fate(conditions: Sequence[Condition], view: View) -> str:
    if view.side == "kept":
        return all_of(conditions)
    place = next((place for place, condition in enumerate(conditions) if condition.at == view.reason), None)
    if place is None:
        return f"{fate(conditions)} <> 0"
    return f"{fate(conditions)} = {codes(place)[view.is_missing]}"


def _as_json(value: Any) -> Any:
    # JSON has no infinity.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
