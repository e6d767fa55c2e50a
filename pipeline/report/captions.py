"""Web and synthetic captions of the same images: what a selection keeps of each, counted over all rows and sampled.

Counts and the draw read keys and verdicts alone, in DuckDB's bounded memory; texts and scores are read of drawn images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from filters.joined import score_tables
from infra.page.words import plain
from infra.removed import REMOVED
from infra.selection import Selection
from infra.tables import CAPTIONS_DIGEST, KEYS
from pipeline.report.chosen import files_of
from pipeline.report.gallery import Picture
from pipeline.report.keyed import WEB, Key, key_of, pictures_by_uid, texts_of, values_of
from pipeline.report.source import Source

NUM_PER_FATE = 6  # images
MAX_PER_IMAGE = 6  # captions; the others are counted
MAX_COLUMNS = 3  # scores beside a caption
MAX_TEXT = 240  # characters of a caption
FATES = ((True, True), (False, True), (True, False), (False, False))  # is a web's caption kept, is a synthetic one?

# What was taken down on request is no verdict on a text.
_ROWS = f"(SELECT * FROM read_parquet($files) WHERE reason IS DISTINCT FROM '{REMOVED}')"


@dataclass(frozen=True, slots=True)
class Texts:
    """Captions of one source, and how many of them are kept."""

    source: str
    num_texts: int
    num_kept: int

    @property
    def noise(self) -> float:
        """Share of the texts that is dropped, in [0, 1]: the noise ratio of CapFilt (BLIP, arXiv 2201.12086)."""
        return 1 - self.num_kept / self.num_texts if self.num_texts else 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """One caption with its verdict and its scores, None where they are missing; num_characters of one that is cut."""

    source: str
    text: str | None
    num_characters: int | None
    is_kept: bool
    reason: str | None
    scores: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Card:
    """One image with its captions, the web's first; of those that are too many to be shown, how many are kept."""

    picture: Picture
    captions: Sequence[Told]
    num_more: int
    num_more_kept: int


@dataclass(frozen=True, slots=True)
class Fate:
    """Images of which the same kinds of caption are kept. num_alone: those without any caption of one of both kinds."""

    web: bool
    synthetic: bool
    num_images: int
    num_alone: int
    cards: Sequence[Card]

    @property
    def words(self) -> str:
        """What is kept, in words."""
        if self.web and self.synthetic:
            return "web and synthetic"
        return "only web" if self.web else "only synthetic" if self.synthetic else "neither"


@dataclass(frozen=True, slots=True)
class Contest:
    """What one selection makes of the web's captions and of synthetic ones. columns: `table.column` of their scores."""

    selection: Selection
    texts: Sequence[Texts]
    fates: Sequence[Fate]
    columns: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """The columns as the page names them: without their tables, where that tells them apart."""
        names = [name.rpartition(".")[2] for name in self.columns]
        return [name if names.count(name) == 1 else full for name, full in zip(names, self.columns, strict=True)]

    @property
    def num_images(self) -> int:
        """Images that have a caption of either kind, by uid."""
        return sum(fate.num_images for fate in self.fates)

    @property
    def web(self) -> Texts:
        """The web's captions."""
        return _sum(WEB, [one for one in self.texts if one.source == WEB])

    @property
    def synthetic(self) -> Texts:
        """The captions of all other tables."""
        return _sum("synthetic", [one for one in self.texts if one.source != WEB])

    @property
    def all(self) -> Texts:
        """Every caption."""
        return _sum("all", self.texts)


def contest(source: Source, selection: Selection, seed: int) -> Contest | None:
    """The figures and the gallery of a selection; None where it judges the web's captions alone."""
    files = {"files": files_of(source, selection)}
    if not files["files"]:
        return None
    texts = source.query(
        f"""SELECT source, count(*) AS num_texts, count(*) FILTER (keep) AS num_kept FROM {_ROWS}
        GROUP BY source ORDER BY source <> '{WEB}', source""", files,
    )  # fmt: skip
    if all(row["source"] == WEB for row in texts):
        return None
    found = {(row["web"], row["synthetic"]): row for row in _fates(source, files, seed)}
    drawn = [one["uid"] for row in found.values() for one in row["drawn"] or ()]
    columns = _columns(source, selection)
    cards = _cards(source, files, drawn, columns)
    fates = []
    for fate in FATES:
        told = found.get(fate, {"num_images": 0, "num_alone": 0, "drawn": None})
        shown = [cards[one["uid"]] for one in told["drawn"] or () if one["uid"] in cards]
        fates.append(Fate(*fate, told["num_images"], told["num_alone"], shown))
    return Contest(selection, [Texts(**row) for row in texts], fates, columns)


def _fates(source: Source, files: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Images by what is kept of them; of those with captions of both kinds the first few by a hash of their uid."""
    return source.query(
        f"""
        SELECT web, synthetic, count(*) AS num_images, count(*) FILTER (NOT is_both) AS num_alone,
            min({{'chance': hash(uid, $seed), 'uid': uid}}, {NUM_PER_FATE}) FILTER (is_both AND NOT is_denied) AS drawn
        FROM (
            SELECT uid, bool_or(keep AND source = '{WEB}') AS web, bool_or(keep AND source <> '{WEB}') AS synthetic,
                bool_or(source = '{WEB}') AND bool_or(source <> '{WEB}') AS is_both,
                coalesce(bool_or(starts_with(reason, 'denied')), false) AS is_denied
            FROM {_ROWS} GROUP BY uid)
        GROUP BY ALL""",
        {**files, "seed": seed},
    )


def _columns(source: Source, selection: Selection) -> list[str]:
    """Numbers of single captions, ITM's first: those that rules read, and those that synthetic captions have, too."""
    read = {name for rule in selection.summary["rules"] for name in rule["columns"]}
    found = []
    for table, schema in score_tables(source.dataset).items():
        scored = (schema.metadata or {}).get(CAPTIONS_DIGEST)
        for field in schema if scored != b"image" else ():
            name = f"{table}.{field.name}"
            is_read = name in read and pa.types.is_integer(field.type)
            is_score = pa.types.is_floating(field.type) and (name in read or scored != b"web")
            if field.name not in KEYS.names and (is_read or is_score):
                found.append(name)
    return sorted(found, key=lambda name: (not name.endswith(".itm"), name not in read, name))[:MAX_COLUMNS]


def _cards(
    source: Source, files: Mapping[str, Any], uids: Sequence[bytes], columns: Sequence[str]
) -> dict[bytes, Card]:
    """Cards of drawn images, by uid; none of an image whose row is gone."""
    rows = source.query(
        f"""SELECT uid, source, n, keep, reason FROM {_ROWS} WHERE list_contains($uids, uid)
        ORDER BY source <> '{WEB}', source, n""", {**files, "uids": list(uids)},
    ) if uids else []  # fmt: skip
    pictures = pictures_by_uid(source, rows)
    texts = texts_of(source, rows, pictures)
    values = values_of(source, rows, columns)
    cards = {}
    for uid, picture in pictures.items():
        own = [row for row in rows if row["uid"] == uid]
        captions = [_told(row, texts, [values[name] for name in columns]) for row in own[:MAX_PER_IMAGE]]
        rest = own[MAX_PER_IMAGE:]
        cards[uid] = Card(picture, captions, len(rest), sum(row["keep"] for row in rest))
    return cards


def _sum(name: str, texts: Sequence[Texts]) -> Texts:
    return Texts(name, sum(one.num_texts for one in texts), sum(one.num_kept for one in texts))


def _told(row: Mapping[str, Any], texts: Mapping[Key, str], columns: Sequence[Mapping[Key, Any]]) -> Told:
    key = key_of(row)
    text = texts.get(key)
    values = (column.get(key) for column in columns)
    # Not-a-number is a missing value here, as it is to rules.
    scores = [None if value is None or value != value else float(value) for value in values]
    is_cut = text is not None and len(plain(text, 4 * MAX_TEXT)) > MAX_TEXT
    shown = None if text is None else plain(text, MAX_TEXT)
    return Told(row["source"], shown, len(text or "") if is_cut else None, row["keep"], row["reason"], scores)
