"""The small web's truth of a dataset that was crawled from it, and of each caption of a selection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from infra.dataset import Dataset
from infra.miniweb import MiniwebConfig
from infra.removed import REMOVED
from infra.rows import Rows
from infra.selection import Selection

UNKNOWN = "unknown"  # the kind of captions that are not of the small web
EDITS = ("near_recompressed", "near_resized", "near_cropped")  # kinds of image that are changed copies, the least first


@dataclass(frozen=True, slots=True)
class ToldRow:
    """A caption of a selection with its truth. Kinds are those of infra/miniweb/truth.py."""

    fell_by: int  # place of the rule by which it fell; the number of rules where it is kept
    caption_kind: str
    lang: str | None  # None: not told, as of boilerplate
    image_kind: str
    change: int  # 0: an original, 1: a copy of the same bytes, above: an edit
    file: str  # the same for images of the same bytes
    picture: str  # the same for images of the same drawing: the url of the first


def truth_of(dataset: Dataset) -> pa.Table | None:
    """The truth of the small web that a dataset was crawled from; None where it was not. Under 6 s at 7,000 pages."""
    try:
        values = yaml.safe_load(dataset.storage.read("recipe.yaml"))
    except FileNotFoundError:
        return None
    if not (isinstance(values, dict) and values.get("miniweb")):
        return None
    # Heavy, and wanted for datasets of the small web alone.
    from infra.miniweb.plan import plan_site
    from infra.miniweb.truth import truth_table

    config = MiniwebConfig.parse(values["miniweb"], f"{dataset.storage.url}/recipe.yaml")
    return truth_table(plan_site(config.pages, config.seed, config.port or _port_of(dataset)))


def told_rows(chosen: Selection, truth: pa.Table) -> Iterator[ToldRow]:
    """The web's captions of a selection in its order, each with its truth; but for those that were removed since."""
    rules = [told for told in chosen.summary["rules"] if told["rule"] != REMOVED]
    fell_by = {reason: number for number, told in enumerate(rules) for reason in told["dropped"]}
    captions, pictures = _facts(truth)
    held = Rows(chosen.dataset)
    for shard in chosen.shards:
        rows = held.read(shard, []).select(["uid", "url", "caption"]).to_pylist()
        pairs = {row["uid"]: (row["url"], row["caption"]) for row in rows}
        for row in chosen.read(shard, ["uid", "source", "reason"]).to_pylist():
            # A row that was taken down says nothing of a rule, and its pair is gone.
            if row["source"] == "web" and row["reason"] != REMOVED and row["uid"] in pairs:
                url, caption = pairs[row["uid"]]
                place = len(rules) if row["reason"] is None else fell_by[row["reason"]]
                yield _told(place, url, captions.get((url, caption)), pictures.get(url, url))


def _told(place: int, url: str, img: Mapping[str, Any] | None, picture: str) -> ToldRow:
    if img is None:
        return ToldRow(place, UNKNOWN, None, UNKNOWN, 0, url, picture)
    # The truth names the language of boilerplate's page: its own may be another, or none.
    lang = None if img["caption_kind"] == "boilerplate" else img["lang"]
    kind, original = img["image_kind"], img["duplicate_of"]
    if original is None:
        return ToldRow(place, img["caption_kind"], lang, kind, 0, url, picture)
    change = 2 + EDITS.index(kind) if kind in EDITS else 1
    # The same edit of the same picture gives the same bytes, wherever it is shown.
    file = original if change == 1 else f"{original}#{kind}"
    return ToldRow(place, img["caption_kind"], lang, kind, change, file, picture)


def _facts(truth: pa.Table) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, str]]:
    """(url, caption) → the img that the pair comes of; url → the url of the first image of the same drawing."""
    captions: dict[tuple[str, str], dict[str, Any]] = {}
    pictures: dict[str, str] = {}
    wanted = ["url", "alternatives", "caption", "caption_kind", "lang", "image_kind", "duplicate_of"]
    for img in truth.filter(pc.is_valid(truth["url"])).select(wanted).to_pylist():
        for url in (img["url"], *(img["alternatives"] or ())):
            captions.setdefault((url, img["caption"]), img)
            pictures.setdefault(url, img["duplicate_of"] or img["url"])
    return captions, pictures


def _port_of(dataset: Dataset) -> int:
    """The port in the first url of the rows: a recipe that took any free one does not say which."""
    rows = Rows(dataset)
    found = (url for shard in rows.shards for url in rows.read(shard, [])["url"].drop_null().to_pylist())
    return urlsplit(next(found, "")).port or 80
