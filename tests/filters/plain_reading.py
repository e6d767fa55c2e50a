"""The rules read aloud: slow, row by row, in plain Python. What selections are checked against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]  # column → value, None where it is missing
Falls = dict[int, str]  # place of a row → the reason it falls by


@dataclass(frozen=True)
class Row:
    """One caption, with the number of its image and every column's value."""

    uid: bytes
    source: str
    n: int
    image: int
    values: Values


@dataclass(frozen=True)
class Condition:
    """A condition as SQL, its columns in their order, and what it says of a row: None is "cannot be told"."""

    sql: str
    columns: tuple[str, ...]
    truth: Callable[[Values], bool | None]


@dataclass(frozen=True)
class Rule:
    """A rule as the recipe writes it, and which of the rows still in fall by it."""

    recipe: Mapping[str, Any]
    falls: Callable[[Sequence[Row], Sequence[int]], Falls]


def fates(rows: Sequence[Row], rules: Sequence[Rule]) -> tuple[list[str | None], list[dict[str, int]]]:
    """Each row's first failing rule as its reason, and how many fell by each rule, by reason."""
    reasons: list[str | None] = [None] * len(rows)
    funnel = []
    for rule in rules:
        still_in = [at for at, reason in enumerate(reasons) if reason is None]
        counts: dict[str, int] = {}
        for at, word in rule.falls(rows, still_in).items():
            reasons[at] = word
            counts[word] = counts.get(word, 0) + 1
        funnel.append(counts)
    return reasons, funnel


def compare(column: str, sign: str, value: float) -> Condition:
    """A column against a number."""
    signs: dict[str, Callable[[Any, Any], bool]] = {
        "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
        "=": lambda a, b: a == b, "<>": lambda a, b: a != b,
    }  # fmt: skip

    def truth(values: Values) -> bool | None:
        return None if values[column] is None else signs[sign](values[column], value)

    return Condition(f"{column} {sign} {value}", (column,), truth)


def coalesced(column: str, instead: float, least: float) -> Condition:
    """A column with a value in place of a missing one."""

    def truth(values: Values) -> bool:
        return bool((instead if values[column] is None else values[column]) >= least)

    return Condition(f"coalesce({column}, {instead}) >= {least}", (column,), truth)


def is_missing(column: str) -> Condition:
    """Has the column no value?"""
    return Condition(f"{column} is null", (column,), lambda values: values[column] is None)


def negated(one: Condition) -> Condition:
    """The opposite; what cannot be told stays so."""

    def truth(values: Values) -> bool | None:
        told = one.truth(values)
        return None if told is None else not told

    return Condition(f"not ({one.sql})", one.columns, truth)


def joined(word: str, one: Condition, other: Condition) -> Condition:
    """Both, or one of them, in SQL's logic of three values."""
    settles = word == "or"

    def truth(values: Values) -> bool | None:
        told = (one.truth(values), other.truth(values))
        if settles in told:
            return settles
        return None if None in told else not settles

    columns = tuple(dict.fromkeys((*one.columns, *other.columns)))
    return Condition(f"({one.sql}) {word} ({other.sql})", columns, truth)


def where(condition: Condition, reason: str) -> Rule:
    """Keep what the condition holds for; a missing value is named where it is why the condition cannot be told."""

    def falls(rows: Sequence[Row], still_in: Sequence[int]) -> Falls:
        found = {}
        for at in still_in:
            told = condition.truth(rows[at].values)
            if told:
                continue
            missing = (column for column in condition.columns if rows[at].values[column] is None)
            found[at] = reason if told is False else next((f"no_{column}" for column in missing), reason)
        return found

    return Rule({"where": condition.sql, "reason": reason}, falls)


def top(column: str, reason: str, *, fraction: float | None, count: int | None, of: str) -> Rule:
    """Keep what is at or above the value at a place of the sorted ones."""

    def falls(rows: Sequence[Row], still_in: Sequence[int]) -> Falls:
        seen = range(len(rows)) if of == "all" else still_in
        values = sorted((rows[at].values[column] for at in seen if rows[at].values[column] is not None), reverse=True)
        place = int(len(values) * fraction) if fraction is not None else (count or 0) - 1
        found = _lacking(column, rows, still_in)
        if place < len(values):
            found |= {at: reason for at in still_in if at not in found and rows[at].values[column] < values[place]}
        return found

    share = {"count": count} if fraction is None else {"fraction": fraction}
    return Rule({"top": column, "reason": reason, "of": of, **share}, falls)


def unique(
    column: str, reason: str, *, per_image: bool, distance: int | None, keep: str, order: Callable[[Values], Any]
) -> Rule:
    """Take rows in their order; whoever is equal or near to one kept before falls. An image falls with all captions."""

    def falls(rows: Sequence[Row], still_in: Sequence[int]) -> Falls:
        found = _lacking(column, rows, still_in)
        asked: dict[int, list[int]] = {}  # whoever speaks → those that it speaks for
        for at in still_in:
            if at not in found:
                asked.setdefault(rows[at].image if per_image else at, []).append(at)
        ranks = [(order(rows[those[0]].values), those) for those in asked.values()]
        in_order = sorted(ranks, key=lambda rank: (rank[0] is None, -(rank[0] or 0), rank[1][0]))
        kept: list[Any] = []
        for _, those in in_order:
            value = rows[those[0]].values[column]
            if any(_is_near(value, other, distance) for other in kept):
                found |= dict.fromkeys(those, reason)
            else:
                kept.append(value)
        return found

    more = {} if distance is None else {"distance": distance}
    return Rule({"unique": column, "reason": reason, "keep": keep, **more}, falls)


def best_caption(column: str, reason: str, at_least: float | None) -> Rule:
    """Of an image's captions the one with the highest score, the first of equals, if it is high enough."""

    def falls(rows: Sequence[Row], still_in: Sequence[int]) -> Falls:
        found = _lacking(column, rows, still_in)
        best: dict[int, int] = {}
        for at in still_in:
            if at in found or (at_least is not None and rows[at].values[column] < at_least):
                continue
            lead = best.get(rows[at].image)
            if lead is None or rows[at].values[column] > rows[lead].values[column]:
                best[rows[at].image] = at
        kept = set(best.values())
        return found | {at: reason for at in still_in if at not in kept and at not in found}

    more = {} if at_least is None else {"at_least": at_least}
    return Rule({"best_caption": column, "reason": reason, **more}, falls)


def listed(
    key: str, path: str, reason: str, *, by: str, listed: Collection[Any], distance: int | None = None
) -> Rule:  # fmt: skip
    """Keep what a list holds (key "in"), or what it does not ("not_in")."""

    def falls(rows: Sequence[Row], still_in: Sequence[int]) -> Falls:
        found = {} if by == "uid" else _lacking(by, rows, still_in)
        for at in still_in:
            value = rows[at].uid if by == "uid" else rows[at].values[by]
            if at not in found and any(_is_near(value, other, distance) for other in listed) != (key == "in"):
                found[at] = reason
        return found

    more = {} if distance is None else {"distance": distance}
    return Rule({key: path, "reason": reason, "by": by, **more}, falls)


def _lacking(column: str, rows: Sequence[Row], still_in: Sequence[int]) -> Falls:
    return {at: f"no_{column}" for at in still_in if rows[at].values[column] is None}


def _is_near(one: Any, other: Any, distance: int | None) -> bool:
    return bool(one == other) if distance is None else (one ^ other).bit_count() <= distance


def candidates(
    shards: Sequence[Sequence[bytes]], values: Callable[[bytes, int, str, int], Values],
    captions: Mapping[tuple[bytes, int], Sequence[tuple[str, int]]], first_image: int = 0,
) -> Iterator[Row]:  # fmt: skip
    """Every caption of every image in order: the web's first, then those of caption tables."""
    image = first_image
    for shard, uids in enumerate(shards):
        for uid in uids:
            for source, n in [("web", 0), *captions.get((uid, shard), ())]:
                yield Row(uid, source, n, image, values(uid, shard, source, n))
            image += 1
