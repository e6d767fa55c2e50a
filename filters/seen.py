"""The rows that a Unique sees, on disk: which of them fall, and because of whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from filters.expression import connect
from filters.joined import Group
from filters.near import greedy_unique
from filters.rules import Unique
from filters.values import as_hashes, nan_as_null
from infra.sample import UID_BYTES

MEMORY = "1GB"
NEAR_MEMORY_BYTES = 1 << 30
BATCH_ROWS = 1 << 22

Places = npt.NDArray[np.int64]
Distances = npt.NDArray[np.int16]
Fallen = tuple[Places, Places, Distances]  # places of rows that fall, of those that they fall for, bits between them


class Seen:
    """Values of the rows that a Unique sees, their order, and the uids of all rows by place."""

    def __init__(self, folder: Path, rule: Unique) -> None:
        self._folder = folder
        self._rule = rule
        self._connection = connect(memory_limit=MEMORY, temp_directory=str(folder))
        kind = "UBIGINT" if rule.distance is not None else "UHUGEINT"
        self._connection.execute(f"CREATE TABLE seen (place BIGINT, value {kind}, rank DOUBLE)")
        self._uids = (folder / "uids").open("wb")
        self._spans = (folder / "spans").open("wb")
        self._num_places = 0
        self.num_rows = 0

    def add(self, group: Group, is_in: npt.NDArray[np.bool_], per_image: bool) -> None:
        """Take in the rows that are still in and have a value; of an image's captions, the first speaks for all."""
        rule = self._rule
        names = {name: f"c{at}" for at, name in enumerate(dict.fromkeys((*rule.columns, *rule.also_reads)))}
        columns = {own: nan_as_null(group.columns[name]) for name, own in names.items()}
        value = names[rule.unique]
        if rule.distance is not None:
            columns[value] = as_hashes(columns[value])
        table = pa.table(columns)
        table = table.append_column("place", pa.array(np.arange(group.num_rows) + self._num_places))
        table = table.append_column("image", pa.array(group.images)).filter(pa.array(is_in))
        key = value if rule.distance is not None else f"md5_number(CAST({value} AS VARCHAR))"
        rank = f"nullif(TRY(CAST({rule.order.sql(names)} AS DOUBLE)), 'nan')" if rule.order is not None else "NULL"
        first = "QUALIFY row_number() OVER (PARTITION BY image ORDER BY place) = 1" if per_image else ""
        self._connection.register("rows", table)
        self._connection.execute(
            f"INSERT INTO seen SELECT place, {key}, {rank} FROM rows WHERE {value} IS NOT NULL {first}"
        )
        self._connection.unregister("rows")
        self._uids.write(group.uids.tobytes())
        self._spans.write(_spans(group.images if per_image else np.arange(group.num_rows), is_in).tobytes())
        self._num_places += group.num_rows
        self.num_rows = self._connection.execute("SELECT count(*) FROM seen").fetchall()[0][0]

    def fallen(self, places: Sequence[tuple[int, str, int]]) -> Iterator[tuple[int, str, pa.Table]]:
        """(dataset, shard, its rows that fall), for shards with any."""
        self._uids.close()
        self._spans.close()
        if not self.num_rows:
            return
        uids: Any = np.memmap(self._folder / "uids", np.uint8, "r").reshape(-1, UID_BYTES)
        rows, because, distances = self._equal() if self._rule.distance is None else self._near(self._rule.distance)
        rows, because, distances = self._with_their_captions(rows, because, distances)
        ends = np.cumsum([number for _, _, number in places])
        for (number, shard, size), end in zip(places, ends, strict=True):
            own = slice(*np.searchsorted(rows, (end - size, end)))
            if own.stop > own.start:
                yield (
                    number,
                    shard,
                    pa.table(
                        {
                            "row": pa.array(rows[own] - (end - size), pa.int64()),
                            "uid": _uid_array(uids[rows[own]]),
                            "because_of": _uid_array(uids[because[own]]),
                            "distance": pa.array(distances[own], pa.int16()),
                        }
                    ),
                )

    def _with_their_captions(self, rows: Places, because: Places, distances: Distances) -> Fallen:
        """An image falls with all its captions that are still in."""
        spans: Any = np.memmap(self._folder / "spans", np.int32, "r")
        number = spans[rows]
        into = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        rows, because, distances = (
            np.repeat(rows, number) + into,
            np.repeat(because, number),
            np.repeat(distances, number),
        )
        still_in = spans[rows] > 0
        return rows[still_in], because[still_in], distances[still_in]

    def _equal(self) -> Fallen:
        found = self._connection.execute("""
            SELECT place, lead FROM seen JOIN (
                SELECT value, arg_min(place,
                    {'without': rank IS NULL, 'rank': coalesce(-rank, 0), 'place': place}) AS lead
                FROM seen GROUP BY value HAVING count(*) > 1
            ) USING (value) WHERE place <> lead ORDER BY place""").fetchnumpy()
        rows, because = np.asarray(found["place"], np.int64), np.asarray(found["lead"], np.int64)
        return rows, because, np.zeros(len(rows), np.int16)

    def _near(self, distance: int) -> Fallen:
        """Hashes in the stated order on disk, judged greedily."""
        with (self._folder / "hashes").open("wb") as hashes, (self._folder / "places").open("wb") as places:
            reader: Any = self._connection.sql(
                "SELECT value, place FROM seen ORDER BY rank DESC NULLS LAST, place"
            ).to_arrow_reader(BATCH_ROWS)
            for batch in reader:
                hashes.write(batch.column(0).to_numpy().tobytes())
                places.write(batch.column(1).to_numpy().tobytes())
        in_order = np.memmap(self._folder / "hashes", np.uint64, "r")
        place = np.memmap(self._folder / "places", np.int64, "r")
        because = greedy_unique(in_order, distance, memory_bytes=NEAR_MEMORY_BYTES)
        ranks = np.flatnonzero(because >= 0)
        order = np.argsort(place[ranks], kind="stable")
        ranks = ranks[order]
        leads = because[ranks]
        return place[ranks], place[leads], np.bitwise_count(in_order[ranks] ^ in_order[leads]).astype(np.int16)


def _spans(images: npt.NDArray[np.int64], is_in: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Rows from each one to the last that it speaks for; 0 for a row that is out."""
    spans = np.searchsorted(images, images, side="right") - np.arange(len(images))
    return np.where(is_in, spans, 0).astype(np.int32)


def _uid_array(uids: npt.NDArray[np.uint8]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(UID_BYTES), len(uids), [None, pa.py_buffer(np.ascontiguousarray(uids).tobytes())]
    )
