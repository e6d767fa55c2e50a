"""Judge: what each rule of a selection dropped, held against the small web's truth. Precision and recall by rule.

A rule is held to what it is meant to catch, and its columns say what that is (MEANT_FOR): no recipe needs to. Only the
rows that it saw count, those that no earlier rule had dropped; rows of which the truth says nothing count neither way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from filters.expression import Expression
from infra.dataset import Dataset
from infra.removed import REMOVED
from infra.selection import Selection
from pipeline.truth import UNKNOWN, ToldRow, told_rows

# What a column tells of. Sizes are not here: the truth knows no fault of that kind.
MEANT_FOR = {
    **dict.fromkeys(("boilerplate", "words", "characters", "alphanumeric", "repetition"), "boilerplate"),
    "caption_count": "boilerplate",
    "language": "language",
    "sha256": "file",
    **dict.fromkeys(("phash", "phash_fine"), "copy"),
    **dict.fromkeys(("uniform", "entropy", "sharpness"), "blank"),
    **dict.fromkeys(("clip_score", "itm_score"), "caption"),
}
ALL_RULES = "all rules"
GOOD = ""
Labels = Sequence[str | None]  # of each row: what ails it, GOOD, or None where the truth does not say


@dataclass(frozen=True, slots=True)
class Tally:
    """Of the rows of one kind that a rule saw, those that it dropped."""

    dropped: int = 0
    seen: int = 0

    @property
    def share(self) -> float | None:
        """Dropped of seen; None where none was seen."""
        return self.dropped / self.seen if self.seen else None

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.dropped + other.dropped, self.seen + other.seen)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One rule against the truth; the last of a selection is of all its rules together.

    meant_for: boilerplate | language | caption (it does not say what the picture shows) | file (its bytes came before)
    | copy (its picture did) | blank (a picture of nothing: there is none). bad, good: rows that are and are not ill in
    one of these ways. ills: the bad ones by what ails them. captions, images: all rows by their kind.
    """

    rule: str
    meant_for: tuple[str, ...]
    bad: Tally
    good: Tally
    ills: Mapping[str, Tally]
    captions: Mapping[str, Tally]
    images: Mapping[str, Tally]

    @property
    def rows(self) -> Tally:
        """All rows that it saw."""
        return sum(self.captions.values(), Tally())

    @property
    def precision(self) -> float | None:
        """Share of bad ones among the rows that it dropped; None where the truth says nothing of any."""
        return Tally(self.bad.dropped, self.bad.dropped + self.good.dropped).share

    @property
    def recall(self) -> float | None:
        """Share of dropped ones among the bad rows that it saw; None where there was none."""
        return self.bad.share


def judge(dataset: Dataset, selection: str, truth: pa.Table) -> list[Judgement]:
    """A judgement for each rule of the selection, in order, and one for all of them. Captions of the web alone.

    truth: what `pipeline.truth.truth_of` gives. Raises DatasetError where there is no such selection.
    """
    chosen = Selection(dataset, selection)
    rules = [told for told in chosen.summary["rules"] if told["rule"] != REMOVED]
    rows = list(told_rows(chosen, truth))
    languages = sorted({row.lang for row in rows if row.lang is not None})
    conditions = [values.get("where") for values in chosen.summary["recipe"]["rules"]]
    unwanted = [_unwanted(text, languages) if text else frozenset[str]() for text in conditions]
    judged = []
    for number, told in enumerate(rules):
        seen = [row for row in rows if row.fell_by >= number]
        meant_for = _meant_for(told, unwanted[number])
        judged.append(weigh(told["text"], meant_for, seen, [row.fell_by == number for row in seen], unwanted[number]))
    not_wanted = frozenset[str]().union(*unwanted)
    all_ills = ["caption", "copy", *(["language"] if not_wanted else [])]
    return [*judged, weigh(ALL_RULES, all_ills, rows, [row.fell_by < len(rules) for row in rows], not_wanted)]


def weigh(
    rule: str,
    meant_for: Sequence[str],
    seen: Sequence[ToldRow],
    fell: Sequence[bool],
    unwanted: frozenset[str] = frozenset(),
) -> Judgement:
    """Judge a rule by the rows that it saw and which of them fell. unwanted: languages that it is meant to drop."""
    labels: dict[str, Callable[[], Labels]] = {
        "boilerplate": lambda: [_label(row, row.caption_kind == "boilerplate") for row in seen],
        "caption": lambda: [_label(row, row.caption_kind != "true") for row in seen],
        "blank": lambda: [_label(row, False) for row in seen],
        "file": lambda: _copies(seen, fell, [row.file for row in seen]),
        "copy": lambda: _copies(seen, fell, [row.picture for row in seen]),
        "language": lambda: [None if row.lang is None else row.lang if row.lang in unwanted else GOOD for row in seen],
    }
    ills = _tallies(_first_ills([labels[target]() for target in meant_for], len(seen)), fell)
    good = ills.pop(GOOD, Tally())
    ills.pop(None, None)
    captions = _tallies([row.caption_kind for row in seen], fell)
    images = _tallies([row.image_kind for row in seen], fell)
    return Judgement(rule, tuple(meant_for), sum(ills.values(), Tally()), good, ills, captions, images)


def unguarded(judgements: Sequence[Judgement]) -> dict[str, Tally]:
    """The kinds of wrong caption that no rule of the selection is meant to catch: what fell of them, fell by chance."""
    *rules, whole = judgements
    meant_for = {target for rule in rules for target in rule.meant_for}
    guarded = {"true", UNKNOWN, *meant_for}
    return {} if "caption" in meant_for else {kind: n for kind, n in whole.captions.items() if kind not in guarded}


def judgement_rows(judgements: Sequence[Judgement]) -> list[list[str]]:
    """A table of text, its heads first: a line for each rule, with the numbers behind precision and recall."""
    lines = [["rule", "meant for", "saw", "dropped", "precision", "recall", "of which"]]
    for each in judgements:
        told_dropped = Tally(each.bad.dropped, each.bad.dropped + each.good.dropped)
        ills = [f"{ill} {_numbers(tally)}" for ill, tally in each.ills.items()]
        lines.append(
            [each.rule, ", ".join(each.meant_for) or "–", f"{each.rows.seen:,}", f"{each.rows.dropped:,}",
             _share(told_dropped), _share(each.bad), ", ".join(ills) if len(ills) > 1 else ""]
        )  # fmt: skip
    return lines


def kind_rows(judgements: Sequence[Judgement], kinds: Sequence[str], of: str = "captions") -> list[list[str]]:
    """The same of every kind of `captions` or `images`: dropped of seen, a column each."""
    lines = [["rule", *kinds]]
    for each in judgements:
        tallies: Mapping[str, Tally] = getattr(each, of)
        lines.append([each.rule, *(_numbers(tallies.get(kind, Tally())) for kind in kinds)])
    return lines


def _label(row: ToldRow, is_ill: bool) -> str | None:
    return None if row.caption_kind == UNKNOWN else row.caption_kind if is_ill else GOOD


def _copies(seen: Sequence[ToldRow], fell: Sequence[bool], shown: Sequence[str]) -> Labels:
    """Of all rows that show the same one may stay: the least changed of those that do. The others are ill.

    They are named by how the copy was made, be it the one that stays. Where no row of them stays, none was a copy of
    anything: to drop them was wrong.
    """
    stays: dict[str, ToldRow] = {}
    for row, is_gone, what in zip(seen, fell, shown, strict=True):
        if not is_gone and (what not in stays or row.change < stays[what].change):
            stays[what] = row
    labels: list[str | None] = []
    for row, what in zip(seen, shown, strict=True):
        other = stays.get(what, row)
        made = row if row.change else other
        ill = GOOD if other is row else made.image_kind if made.change else "another_format"
        labels.append(None if row.caption_kind == UNKNOWN else ill)
    return labels


def _first_ills(found: Sequence[Labels], num_rows: int) -> Labels:
    """Of each row the first ill that was found; good where all say so; None where nothing is looked for."""
    if not found:
        return [None] * num_rows
    first = []
    for of_row in zip(*found, strict=True):
        ills = [label for label in of_row if label]
        first.append(ills[0] if ills else None if None in of_row else GOOD)
    return first


def _tallies(labels: Sequence[Any], fell: Sequence[bool]) -> dict[Any, Tally]:
    seen = Counter(labels)
    dropped = Counter(label for label, is_gone in zip(labels, fell, strict=True) if is_gone)
    return {label: Tally(dropped[label], seen[label]) for label in sorted(seen, key=str)}


def _meant_for(told: Mapping[str, Any], unwanted: frozenset[str]) -> list[str]:
    """What a rule is meant to catch, by the columns that it reads."""
    if told["rule"] in ("in", "not_in"):  # what lies in another dataset is no fault here
        return []
    columns = [name.rpartition(".")[2] for name in told["columns"]]
    targets = dict.fromkeys(MEANT_FOR[column] for column in columns if column in MEANT_FOR)
    if told["rule"] != "unique":  # a condition on one row's hash looks for no copy: it parts the rows by chance
        targets = {target: None for target in targets if target not in ("file", "copy")}
    return [target for target in targets if target != "language" or unwanted]


def _unwanted(condition: str, languages: Sequence[str]) -> frozenset[str]:
    """Languages for which a condition fails, whatever the other columns are; none where it fails for all."""
    expression = Expression(condition, "where")
    names = {name: f"c{at}" for at, name in enumerate(expression.columns)}
    asked = [new for name, new in names.items() if name.rpartition(".")[2] == "language"]
    if not asked:
        return frozenset()
    given = ", ".join(f"{'lang' if new in asked else 'NULL'} AS {new}" for new in names.values())
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        found = connection.execute(
            f"SELECT lang FROM (SELECT lang, {given} FROM (SELECT unnest(?) AS lang)) "
            f"WHERE ({expression.sql(names)}) IS FALSE", [list(languages)]
        ).fetchall()  # fmt: skip
    return frozenset(lang for (lang,) in found) if len(found) < len(languages) else frozenset()


def _numbers(tally: Tally) -> str:
    return f"{tally.dropped:,} of {tally.seen:,}" if tally.seen else "–"


def _share(tally: Tally) -> str:
    return "–" if tally.share is None else f"{tally.share:.3f} ({_numbers(tally)})"
