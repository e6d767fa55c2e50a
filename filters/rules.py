"""Rules: a few words of YAML over the columns of score tables. They judge, load no model and download nothing.

A rule says which columns it reads and by which reason a row falls; filters/verdicts.py judges rows by it. In a recipe
its first key names it:

    rules:
      - where: language = 'en' and words > 2
      - top: clip_score
        fraction: 0.3
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from filters import RULES
from filters.expression import Cut, Expression
from infra.errors import RecipeError
from infra.recipe import Config, apply_settings, load_yaml

WORD = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = ("kept", "removed")  # fates that no rule gives
MAX_DISTANCE = 16  # bits; at more than that, most pictures are near most others


class Rule(Config):
    """Base of the rules. `columns` are named as in the recipe: `words`, or `text.words` where two tables have it."""

    model_config = ConfigDict(populate_by_name=True)

    key: ClassVar[str]  # the word that names the rule in a recipe; also the field that holds its subject
    sees_all: ClassVar[bool] = False  # cannot judge before all rows have been seen

    reason: str | None = Field(
        None, description="The word that is counted for rows that fall; unset: made of the rule."
    )

    @field_validator("reason")
    @classmethod
    def _is_word(cls, reason: str | None) -> str | None:
        if reason is not None and not WORD.fullmatch(reason):
            raise ValueError(f"write a word of small letters, digits and _, not {reason!r}")
        if reason in RESERVED:
            raise ValueError(f"{reason} is a fate that no rule gives; write another word")
        return reason

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns whose absence is a reason of its own, as the recipe names them."""
        raise NotImplementedError

    @property
    def also_reads(self) -> tuple[str, ...]:
        """Columns that may be absent in a row without its falling."""
        return ()

    @property
    def default_reason(self) -> str:
        """The reason where the recipe gives none."""
        raise NotImplementedError

    @property
    def word(self) -> str:
        """The reason of the rows that fall by this rule."""
        return self.reason or self.default_reason

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every reason that the rule may give: its own, then one for each column that may be missing."""
        return (self.word, *(f"no_{_plain(column)}" for column in self.columns))

    @property
    def text(self) -> str:
        """The rule in one line, for people."""
        values = self.model_dump(mode="json", by_alias=True, exclude={"reason"}, exclude_defaults=True)
        subject = values.pop(self.key)
        more = ", ".join(f"{name}: {value}" for name, value in values.items())
        head = " ".join(str(subject).split()) if self.key == "where" else f"{self.key} {subject}"
        return f"{head} ({more})" if more else head

    @property
    def cuts(self) -> list[Cut]:
        """Where the rule cuts a column, as far as it says so itself."""
        return []


class Where(Rule):
    """Keep rows for which an SQL condition holds."""

    key = "where"
    where: str = Field(description="An SQL condition on one row, over columns of score tables and of the row itself.")

    @field_validator("where")
    @classmethod
    def _is_condition(cls, text: str) -> str:
        if not _parsed(text).columns:
            raise ValueError("the condition reads no column, so it would keep all rows or none")
        return text

    @property
    def columns(self) -> tuple[str, ...]:
        return self.expression.columns

    @property
    def expression(self) -> Expression:
        """The condition, parsed."""
        return _parsed(self.where)

    @property
    def default_reason(self) -> str:
        return "fails_" + "_".join(dict.fromkeys(_plain(column) for column in self.columns))

    @property
    def cuts(self) -> list[Cut]:
        return self.expression.cuts


class Top(Rule):
    """Keep the highest values. Ties are kept.

    fraction: with N rows that have a value, the threshold is the value at place int(N * fraction), counted from 0 down
    from the highest, and rows at or above it stay: one row more than the fraction, as DataComp defines it
    (arXiv 2304.14108, baselines/apply_filter.py). count: the threshold is the count-th highest value.
    """

    key = "top"
    sees_all = True
    top: str = Field(min_length=1, description="The column; for the lowest values, score the negative.")
    fraction: float | None = Field(None, gt=0, le=1, description="Share of the rows, in (0, 1].")
    count: int | None = Field(None, ge=1, description="Number of rows, in place of a fraction.")
    of: Literal["all", "survivors"] = Field("survivors", description="Share of all rows, or of those still in.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Top:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give fraction (0.3 for 30 %) or count, one of them")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.top,)

    @property
    def default_reason(self) -> str:
        return f"below_top_{_plain(self.top)}"

    def place(self, num_rows: int) -> int:
        """Place of the threshold among `num_rows` values in descending order, from 0; at num_rows or more all stay."""
        return self.count - 1 if self.count is not None else int(num_rows * (self.fraction or 0))


class Unique(Rule):
    """Of equal or near rows keep one: greedily, in a stated order. A row falls if one kept before it is that near."""

    key = "unique"
    sees_all = True
    unique: str = Field(min_length=1, description="The column: 64-bit hashes with a distance, any type without.")
    distance: int | None = Field(None, ge=0, le=MAX_DISTANCE, description="Bits that may differ; unset: equal values.")
    keep: str = Field("first", description="largest (picture first), first (in the dataset's order), or an SQL "
                      "expression whose highest value comes first, such as clip_score.")  # fmt: skip

    @field_validator("keep")
    @classmethod
    def _is_order(cls, text: str) -> str:
        _parsed(text)
        return text

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.unique,)

    @property
    def order(self) -> Expression | None:
        """What comes first, highest first; None: the dataset's order. It settles ties, too."""
        if self.keep == "first":
            return None
        return _parsed("width * height" if self.keep == "largest" else self.keep)

    @property
    def also_reads(self) -> tuple[str, ...]:
        return self.order.columns if self.order is not None else ()

    @property
    def default_reason(self) -> str:
        return f"{'duplicate' if self.distance is None else 'near_duplicate'}_{_plain(self.unique)}"


class BestCaption(Rule):
    """Of an image's captions that are still in, keep the one with the highest score; the first of equals."""

    key = "best_caption"
    best_caption: str = Field(min_length=1, description="The column, of a table of caption scores.")
    at_least: float | None = Field(None, description="A caption below it falls, even as the only one.")

    @field_validator("at_least")
    @classmethod
    def _is_number(cls, at_least: float | None) -> float | None:
        if at_least is not None and isnan(at_least):
            raise ValueError("write a number; no caption is above or below not-a-number")
        return at_least

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.best_caption,)

    @property
    def default_reason(self) -> str:
        return "not_best_caption"

    @property
    def cuts(self) -> list[Cut]:
        return [] if self.at_least is None else [Cut(self.best_caption, ">=", self.at_least)]


class NotIn(Rule):
    """Drop rows that a list names, or whose picture is near one of another dataset: test-set decontamination."""

    key = "not_in"
    wants: ClassVar[bool] = False  # is a row that the list holds kept?
    listed: str = Field(alias="not_in", description="A list (.npy of DataComp's uids, .txt a value a line, .parquet "
                        "with the column), or a scored dataset's folder.")  # fmt: skip
    by: str = Field("uid", description="The column that is compared.")
    distance: int | None = Field(None, ge=0, le=MAX_DISTANCE, description="Bits that may differ; unset: equal values.")

    @model_validator(mode="after")
    def _has_hashes(self) -> NotIn:
        if self.distance is not None and self.by == "uid":
            raise ValueError("a distance is between hashes; say by which column, such as by: phash")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.by == "uid" else (self.by,)

    @property
    def default_reason(self) -> str:
        if self.distance is None:
            return "listed"
        return f"near_{_plain(Path(self.listed).name.partition('.')[0])}"


class In(NotIn):
    """Keep only rows that a list names, such as a published subset."""

    key = "in"
    wants = True
    listed: str = Field(alias="in", description="A list or dataset, as for not_in.")

    @property
    def default_reason(self) -> str:
        return "not_listed"


class SelectRecipe(Config):
    """`rules` in their order, over the web's captions and those of further caption tables."""

    captions: tuple[str, ...] = Field((), description="Caption tables whose texts are selected beside the web's.")
    rules: tuple[dict[str, Any], ...] = Field(description="A list; the first key of each names it.")

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, values: Any) -> Any:
        """A path in a recipe's place is that of a file of rules."""
        return load_yaml(values) if isinstance(values, str) else values

    @field_validator("captions")
    @classmethod
    def _are_distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a caption table is named twice")
        return names

    def parsed(self, where: str = "rules") -> tuple[Rule, ...]:
        """The rules. Raises RecipeError for an unknown rule or option, and for a reason that two of them give."""
        rules = tuple(parse_rule(values, f"{where}, rule {at}") for at, values in enumerate(self.rules, 1))
        for word, number in Counter(rule.word for rule in rules).items():
            if number > 1:
                raise RecipeError(f"{where}: {number} rules give the reason {word}; name one of them by reason:")
        return rules


def load_rules(path: str, settings: Sequence[str] = ()) -> SelectRecipe:
    """Read a recipe of rules. Raises RecipeError."""
    values = load_yaml(path)
    if "select" in values and "rules" not in values:
        raise RecipeError(
            f"{path}: a pipeline's recipe; run it by python -m pipeline run, or give one selection's rules in a file"
        )
    recipe = SelectRecipe.parse(apply_settings(values, tuple(settings)), path)
    recipe.parsed(path)
    return recipe


def parse_rule(values: Mapping[str, Any], where: str) -> Rule:
    """One rule from its mapping. Raises RecipeError."""
    if not isinstance(values, Mapping) or not values:
        raise RecipeError(f"{where}: write it as `- where: words > 2`; known: {', '.join(RULES)}")
    key = next((name for name in values if name in RULES), None)
    if key is None:  # nothing from outside: a recipe is data, and names no code
        first = str(next(iter(values)))
        close = difflib.get_close_matches(first, RULES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise RecipeError(f"{where}: no rule named {first}; {hint}known: {', '.join(RULES)}")
    kind: type[Rule] = RULES[key]
    return kind.parse(dict(values), where)


def _parsed(text: str) -> Expression:
    """An expression. Raises ValueError, to which a recipe adds where it stands."""
    try:
        return Expression(text, "")
    except RecipeError as error:
        raise ValueError(str(error).removeprefix(": ")) from None


def _plain(column: str) -> str:
    """A column's own name as a word of a reason."""
    return re.sub(r"[^a-z0-9]+", "_", column.rpartition(".")[2].lower()).strip("_") or "value"
