"""A dataset through a selection: how many units each shard has, and where the picture and the captions of each lie.

A unit is an image with all of its surviving captions, or one caption with its image. Captions that were kept stand
together for each image, in the order of the shard's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.recipe import Config
from infra.rows import Rows, as_uids
from infra.selection import Selection, runs
from infra.shards import IMAGE_ENDINGS
from infra.tables import read_table
from training.data.tokens import read_codes, read_made

Ints = npt.NDArray[np.int64]
Unit = Literal["image", "caption"]

WEB = "web"
READERS = 8  # threads that ask for footers, when the loader starts
_IMAGE = rf"(?i)\.({'|'.join(IMAGE_ENDINGS)})$"


class DatasetSettings(Config):
    """A dataset to train on."""

    path: str = Field(description="Folder of shards, local or an fsspec url: ours, img2dataset's or DataComp's.")
    selection: str | None = Field(
        None, description="Train on what this selection keeps; otherwise on all that is stored."
    )
    captions: tuple[str, ...] = Field((WEB,), description="Tables of captions to use where there is no selection.")
    weight: float | None = Field(None, gt=0, description="How often a unit is drawn, against other datasets' units.")
    tokens: str | None = Field(
        None,
        description="Table of image tokens, by `python -m training encode`, to read in place of pictures.",
    )
    index: str | None = Field(None, description="Folder of the index, for a dataset of others that may not be written.")


@dataclass(frozen=True, eq=False)
class View:
    """The units of one shard, in its order. U units, C captions.

    uids: (U,) of 16 bytes. offsets, sizes: (U,) where the encoded image lies in the tar; size 0: nowhere.
    first: (U + 1,) where each unit's captions begin. texts: (C,) captions, null where there is none.
    codes: (U,) image tokens of each unit as bytes, null where there are none; None: pictures are read.
    """

    uids: pa.FixedSizeBinaryArray
    offsets: Ints
    sizes: Ints
    first: Ints
    texts: pa.StringArray
    codes: pa.BinaryArray | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        held = (self.uids, self.texts, self.offsets, self.sizes, self.first, self.codes)
        return sum(one.nbytes for one in held if one is not None)


class Source:
    """One dataset, and what of it is trained on. Raises DatasetError where that is nothing."""

    def __init__(self, settings: DatasetSettings, unit: Unit) -> None:
        self.unit = unit
        self.dataset = Dataset(settings.path)
        self.captions, self._tokens = settings.captions, settings.tokens
        index = Dataset(settings.index) if settings.index else None
        self._rows = Rows(self.dataset, index)
        url = self.dataset.storage.url
        if self._rows.kind != "stored":
            raise DatasetError(f"{url}: no images are stored there yet; python -m pipeline download fetches them")
        self.selection = Selection(self.dataset, settings.selection) if settings.selection else None
        self.shards = self.selection.shards if self.selection else self._rows.shards
        if lost := set(self.shards) - set(self._rows.shards):
            raise DatasetError(f"{url}: selection {settings.selection} names shard {min(lost)}, which is not there")
        with ThreadPoolExecutor(READERS) as pool:
            self.sizes: Ints = np.fromiter(pool.map(self._num_units, self.shards), np.int64, len(self.shards))
        if not self.sizes.sum():
            kept = f"selection {settings.selection} keeps nothing" if self.selection else "nothing is stored"
            raise DatasetError(f"{url}: {kept}; there is nothing to train on")

    @cached_property
    def made(self) -> Mapping[str, Any] | None:
        """By what the image tokens of its units were made: `num` of each, `kinds`, …; None: pictures are read."""
        return read_made(self.dataset.storage, self._tokens, self.shards[0]) if self._tokens else None

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready: what of this source the order of training depends on."""
        shards = [[name, int(size)] for name, size in zip(self.shards, self.sizes, strict=True)]
        captions = None if self.selection else list(self.captions)
        told = {"shards": shards, "selection": self.selection and self.selection.summary, "captions": captions}
        return told if self.made is None else {**told, "tokens": self.made}

    def view(self, shard: str) -> View:
        """The units of a shard. Raises DatasetError where its files do not fit each other."""
        rows = self._rows.read(shard, ())
        kept = self._kept(shard, rows)
        starts = runs(kept["uid"])
        firsts = kept["uid"].take(pa.array(starts)).combine_chunks()
        places = self._places(shard, rows["uid"], firsts)
        counts = np.diff(np.append(starts, len(kept)))
        texts = self._texts(shard, rows["caption"], kept, np.repeat(places, counts))
        offsets, sizes = self._images(shard, rows)
        if self.unit == "caption":
            places, firsts, counts = (
                np.repeat(places, counts),
                kept["uid"].combine_chunks(),
                np.ones(len(kept), np.int64),
            )
        first = np.concatenate([[0], np.cumsum(counts)])
        codes = None
        if self._tokens and self.made is not None:
            codes = read_codes(self.dataset.storage, self._tokens, shard, firsts, self.made)
        return View(firsts, offsets[places], sizes[places], first, texts, codes)

    def _num_units(self, shard: str) -> int:
        if self.selection:
            images, captions = self.selection.num_kept(shard)
            return images if self.unit == "image" else captions
        num_rows = self._rows.num_rows(shard)
        if self.unit == "image" and num_rows is not None and WEB in self.captions:
            return num_rows
        kept = self._kept(shard, self._rows.read(shard, ()))
        return len(runs(kept["uid"])) if self.unit == "image" else len(kept)

    def _kept(self, shard: str, rows: pa.Table) -> pa.Table:
        """uid, source, n of the captions to train on, those of an image together, in the order of the rows."""
        if self.selection:
            table = self.selection.read(shard, ["uid", "source", "n", "keep"])
            return table.filter(pc.fill_null(table["keep"], False)).select(["uid", "source", "n"])
        table = pa.concat_tables([self._all_of(shard, name, rows) for name in self.captions])
        return table.take(pc.sort_indices(table, [("place", "ascending"), ("part", "ascending")])).select(
            ["uid", "source", "n"]
        )

    def _all_of(self, shard: str, name: str, rows: pa.Table) -> pa.Table:
        """Every caption of one table, each with the place of its image and a number that orders the tables."""
        if name == WEB:
            uids, numbers = rows["uid"], pa.array(np.zeros(len(rows), np.int32))
        else:
            table = read_table(self.dataset.storage, captions_table(name, shard), ["uid", "n"])
            uids, numbers = as_uids(table["uid"]), table["n"]
        place = pc.index_in(uids, value_set=rows["uid"].combine_chunks())
        part = pa.array(np.full(len(uids), self.captions.index(name)))
        table = pa.table(
            {"uid": uids, "source": pa.array([name] * len(uids)), "n": numbers, "place": place, "part": part}
        )
        return table.filter(pc.is_valid(table["place"]))

    def _places(self, shard: str, rows: pa.ChunkedArray, uids: pa.FixedSizeBinaryArray) -> Ints:
        """The row of each image. Both are in the rows' order, so a uid that stands there twice is two images."""
        found = pc.index_in(uids, value_set=rows.combine_chunks())
        if found.null_count:
            lost = uids.filter(pc.is_null(found))[0].as_py().hex()
            raise DatasetError(
                f"{self.dataset.storage.url}: shard {shard} has no {lost}, which its selection keeps; select anew"
            )
        places = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return places if (np.diff(places) > 0).all() else _in_order(rows.to_pylist(), uids.to_pylist())

    def _texts(self, shard: str, web: pa.ChunkedArray, kept: pa.Table, places: Ints) -> pa.StringArray:
        sources = pc.unique(kept["source"]).to_pylist()
        if sources in ([WEB], []):
            return web.take(pa.array(places)).combine_chunks()
        texts: dict[tuple[str, bytes, int], str | None] = {}
        for name in sources:
            if name != WEB:
                table = read_table(self.dataset.storage, captions_table(name, shard), ["uid", "n", "text"])
                keys = zip(table["uid"].to_pylist(), table["n"].to_pylist(), strict=True)
                texts |= {(name, *key): text for key, text in zip(keys, table["text"].to_pylist(), strict=True)}
        of_web = web.take(pa.array(places)).to_pylist()
        wanted = zip(kept["source"].to_pylist(), kept["uid"].to_pylist(), kept["n"].to_pylist(), strict=True)
        return pa.array([of_web[at] if key[0] == WEB else texts.get(key) for at, key in enumerate(wanted)], pa.string())

    def _images(self, shard: str, rows: pa.Table) -> tuple[Ints, Ints]:
        """Offset and size of each row's image in the tar; size 0 where it has none."""
        home = self._rows.index
        table = read_table(home.storage, home.index(shard), ["uid", "key", "member", "offset", "size"])
        table = table.filter(pc.match_substring_regex(table["member"], _IMAGE))
        offsets, sizes = table["offset"].to_numpy(), table["size"].to_numpy()
        if table["uid"].combine_chunks().equals(rows["uid"].combine_chunks()):
            return offsets, sizes
        keys = zip(table["uid"].to_pylist(), table["key"].to_pylist(), strict=True)
        at: dict[tuple[bytes, str | None], int] = {}
        for number, (uid, key) in enumerate(keys):
            at[uid, key] = number
            at.setdefault((uid, None), number)
        wanted = zip(rows["uid"].to_pylist(), rows["key"].to_pylist(), strict=True)
        where = np.array([at.get(key, -1) for key in wanted], np.int64)
        return np.append(offsets, 0)[where], np.append(sizes, 0)[where]


def captions_of(datasets: Iterable[str], selection: str | None) -> Iterator[str]:
    """Every text that a selection keeps of these datasets, or every caption of the web, shard by shard."""
    for path in datasets:
        source = Source(DatasetSettings.parse({"path": path, "selection": selection}, path), "caption")
        for shard in source.shards:
            yield from (text for text in source.view(shard).texts.to_pylist() if text)


def captions_table(name: str, shard: str) -> str:
    """Name of a shard's table of further captions."""
    return f"captions/{name}/{shard}.parquet"


def _in_order(rows: list[bytes], uids: list[bytes]) -> Ints:
    """Where each of `uids` stands in `rows`, of which it is a subsequence."""
    places, at = [], 0
    for uid in uids:
        at = rows.index(uid, at)
        places.append(at)
        at += 1
    return np.array(places, np.int64)
