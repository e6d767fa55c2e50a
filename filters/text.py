"""Measures of a caption's text: length, letters, repetition, and whether it is boilerplate. No model is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from filters.base import Batch, Scorer, column
from filters.boilerplate import STOCK_DIGEST, is_boilerplate, runs_of


class Text(Scorer):
    """Words and characters as DataComp counts them, and shares of what says little. An absent caption is empty."""

    name = "text"
    per = "caption"
    columns = pa.schema(
        [
            column("words", pa.int32(), "words: runs of anything but white space"),
            column("characters", pa.int32(), "characters: Unicode code points, white space included"),
            column("alphanumeric", pa.float32(), "share of characters that are letters or digits, 0 to 1"),
            column("repetition", pa.float32(), "share of words in pairs of neighbours that recur, 0 to 1"),
            column("boilerplate", pa.bool_(), "nothing but a file name, price, address, credit or stock phrase?"),
        ]
    )

    def identity(self) -> Mapping[str, Any]:
        """The digest of the stock phrases."""
        return {"stock_phrases": STOCK_DIGEST}

    def score(self, batch: Batch) -> pa.Table:
        """One row for each caption; nothing is null."""
        texts = batch.texts
        # Folding case neither makes nor takes white space, so one split serves both counts.
        words = [text.casefold().split() for text in texts]
        runs = [runs_of(text) for text in texts]
        values = (
            [len(of_text) for of_text in words],
            [len(text) for text in texts],
            [sum(map(len, of_text)) / max(1, len(text)) for text, of_text in zip(texts, runs, strict=True)],
            [repetition(of_text) for of_text in words],
            [is_boilerplate(text, of_text) for text, of_text in zip(texts, runs, strict=True)],
        )
        return pa.table(
            [pa.array(found, field.type) for found, field in zip(values, self.columns, strict=True)],
            schema=self.columns,
        )


def repetition(words: Sequence[str]) -> float:
    """Share of the words that lie in a pair of neighbours which occurs more than once; in [0, 1].

    Source: the duplicate n-gram fraction of Gopher (arXiv 2112.11446, table A1), overlaps counted once. There n is 5
    to 10 and characters are counted, for documents; a caption has ten words, so n is 2 and words are counted. Text
    that is written without spaces is one word, and never repeats.
    """
    if len(set(words)) == len(words):
        return 0.0
    pairs = list(pairwise(words))
    repeated = {pair for pair, number in Counter(pairs).items() if number > 1}
    if not repeated:
        return 0.0
    starts = {at for at, pair in enumerate(pairs) if pair in repeated}
    return len(starts | {at + 1 for at in starts}) / len(words)
