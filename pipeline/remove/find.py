"""Which rows go: those that a list names, then all that share an image or an address with them, until no more do.

In the removal's own folder, which goes when the removal has ended:
found/ROUND/TABLE.parquet     uid, why, url (its digest), sha256: rows of a table that go
matched_ROUND.parquet         the same of all tables, each once
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.phash import perceptual_hash_of_bytes
from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.removed import UID, RemovedRows, is_in, url_digests
from infra.shards import IMAGE_ENDINGS
from infra.tables import read_table, write_table
from pipeline.download.deny import DenyList, Match
from pipeline.remove.rows import read_rows, row_files, shard_of
from pipeline.reshard.members import members_of, read_samples

FOUND = pa.schema([("uid", UID), ("why", pa.string()), ("url", UID), ("sha256", pa.string())])
KEYS = ("uid", "url", "sha256")
LINE = "line_"  # tallies of rows by the list's lines that they match: line_12


class Find(Step):
    """One round; a job a table. Round 0 asks list and tombstones, later ones what the round before has found."""

    def __init__(self, source: Dataset, work: Dataset, listed: DenyList, number: int) -> None:
        self.source = source
        self.dataset = work
        self.listed = listed
        self.number = number
        self.name = f"find_{number}"

    def settings(self) -> Mapping[str, Any]:
        """The list's content."""
        return {"list": self.listed.digest}

    def inputs(self, job: Job) -> Any:
        """The table's name: no table changes while rows are looked for."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """A job for each file that tells of pairs."""
        return [Job(name.replace("/", "~"), {"file": name}) for name in row_files(self.source)]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows of the table that are not blank; those that go are dropped by what they match first."""
        rows = read_rows(self.source, job.payload["file"])
        # A server may answer many addresses with one page of excuses: only stored bytes say that images are the same.
        images = pc.if_else(rows["stored"], rows["sha256"], pa.scalar(None, pa.string()))
        tallies: Counter[str] = Counter()
        if self.number == 0:
            known = RemovedRows.of(self.source.storage)
            matches = [_listed_as(self.listed, row) for row in rows.to_pylist()]
            tallies["unreadable"] = self._ask_about_images(job.payload["file"], rows, matches)
            tallies.update(f"{LINE}{line}" for own in matches for line in {line for _, line in own})
            why = [own[0][0] if own else None for own in matches]
        else:
            known = RemovedRows(read_table(self.dataset.storage, matched_table(self.number - 1)))
            same = is_in(images, known.table["sha256"].drop_null())
            why = ["same_image" if is_same else None for is_same in same]
        same = known.hold(None, rows["url"])
        why = [word or ("same_url" if is_same else None) for word, is_same in zip(why, same, strict=True)]
        told = known.table["why"].take(pc.index_in(rows["uid"], value_set=known.table["uid"].combine_chunks()))
        why = [earlier or word for earlier, word in zip(told.to_pylist(), why, strict=True)]

        columns = [rows["uid"], pa.array(why, pa.string()), url_digests(rows["url"]), images]
        goes = np.array([word is not None for word in why], bool)
        found = pa.Table.from_arrays(columns, schema=FOUND).filter(pa.array(goes))
        name = f"found/{self.number}/{job.id}.parquet"
        files = (write_table(self.dataset.storage, name, found),) if found.num_rows else ()
        tallies["stored"] = pc.sum(rows["stored"].filter(pa.array(goes))).as_py() or 0
        counts = Counts(rows.num_rows, rows.num_rows - found.num_rows, Counter(found["why"].to_pylist()), +tallies)
        return Outcome(counts, files)

    def _ask_about_images(self, file: str, rows: pa.Table, matches: Sequence[list[Match]]) -> int:
        """Add to `matches` what the list says of stored images. Returns how many of them could not be decoded.

        Bytes are read for perceptual hashes, and for SHA-256 where the table has none of the bytes as they came.
        """
        shard = shard_of(self.source, file)
        lacks_hash = [sha256 is None for sha256 in rows["sha256"].to_pylist()]
        if shard is None or not (self.listed.phashes or (self.listed.sha256s and any(lacks_hash))):
            return 0
        places = {uid: at for at, uid in enumerate(rows["uid"].to_pylist())}
        samples = {uid: parts for uid, parts in members_of(self.source, shard).items() if uid in places}
        read = read_samples(self.source.storage, self.source.tar(shard), list(samples.values()))
        num_unreadable = 0
        for uid, parts in zip(samples, read, strict=True):
            at = places[uid]
            for data in (data for ending, data in parts.items() if ending in IMAGE_ENDINGS):
                if lacks_hash[at]:
                    matches[at].extend(self.listed.of_bytes(hashlib.sha256(data).hexdigest()))
                try:
                    if self.listed.phashes:
                        matches[at].extend(self.listed.of_pixels(perceptual_hash_of_bytes(data)))
                except (OSError, ValueError, SyntaxError):  # what Pillow raises for broken files
                    num_unreadable += 1
        return num_unreadable


def lines_matched(counts: Counts) -> list[int]:
    """Numbers of the list's lines that some row matches."""
    return sorted(int(word.removeprefix(LINE)) for word in counts.extra if word.startswith(LINE))


def matched_table(number: int) -> str:
    """Name of what a round has found in all tables."""
    return f"matched_{number}.parquet"


def gather(work: Dataset, number: int) -> pa.Table:
    """What a round has found in all tables, each once; published for the next round."""
    marks = work.ledger.done(f"find_{number}").values()
    parts = [read_table(work.storage, file.name) for mark in marks for file in mark.files]
    found = pa.concat_tables([FOUND.empty_table(), *parts]).group_by(list(KEYS)).aggregate([("why", "min")])
    table = pa.table({"uid": found["uid"], "why": found["why_min"], "url": found["url"], "sha256": found["sha256"]})
    table = table.sort_by([(key, "ascending") for key in KEYS])
    write_table(work.storage, matched_table(number), table)
    return table


def _listed_as(listed: DenyList, row: Mapping[str, Any]) -> list[Match]:
    """What of the list a row matches: uid, url, domain, page_domain, or sha256 of the bytes as they came."""
    found = [("uid", listed.uids[row["uid"]])] if row["uid"] in listed.uids else []
    found += listed.of_url(row["url"] or "")
    found += [(f"page_{kind}", line) for kind, line in listed.of_url(row["page_url"] or "") if kind == "domain"]
    return [*found, *listed.of_bytes(row["sha256"] or "")]
