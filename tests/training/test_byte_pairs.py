"""Byte pairs: any text comes back, merges hang on the captions alone, dropout is the library's and can be repeated."""

from __future__ import annotations

import pickle
import random
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UsageError
from training.byte_pairs import NUM_BYTES, BytePairs, _clean, _parts, _words, learn_merges, read_merges

CAPTIONS = [
    f"{a} {colour} {shape} {where}" for a in ("a", "two") for colour in ("red", "Reddish", "blue")
    for shape in ("boat", "coat", "goat") for where in ("left of a tree", "under trees", "早い")
]  # fmt: skip
MERGES = learn_merges(CAPTIONS, 300)
WORDS = BytePairs(MERGES)


@settings(max_examples=100)
@given(st.text(max_size=40))
def test_any_text_comes_back_lower_cased_with_and_without_dropout(text):
    import unicodedata

    clean = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    wanted = WORDS.text(WORDS.pieces([text])[0])
    assert wanted == clean.lower() or wanted == "".join(
        each.lower() for each in clean
    )  # Σ at a word's end is one of two
    assert WORDS.text(WORDS.drawn(text, 0.5, np.random.default_rng(0))) == wanted
    assert WORDS.drawn(text, 0.0, np.random.default_rng(0)) == WORDS.pieces([text])[0]


@settings(max_examples=100)
@given(st.text("abeortd 早", max_size=30), st.floats(0, 1), st.integers(0, 9))
def test_dropout_draws_as_if_each_merge_had_been_drawn_for_in_each_round(text, dropout, seed):
    """The paper's algorithm, word by word: of all merges, those left out this round aside, the first is made."""

    class Told:
        """Draws as they were made, so that both ways see the same ones."""

        def __init__(self):
            self.given, self._chance = [], np.random.default_rng(seed)

        def random(self):
            self.given.append(self._chance.random())
            return self.given[-1]

    (whole,) = WORDS.pieces([text])
    told = Told()
    found = WORDS.drawn(text, dropout, told)
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(MERGES)}
    draws, wanted = iter(told.given), []
    for word in _words(_parts(), _clean(text)):
        signs = list(word)
        while True:
            there = sorted((ranks[pair], at) for at, pair in enumerate(pairwise(signs)) if pair in ranks)
            made = next((at for _, at in there if next(draws) >= dropout), None)  # the later ones' draws change nothing
            if made is None:
                break
            signs[made : made + 2] = [signs[made] + signs[made + 1]]
        wanted += [WORDS._ids[sign] for sign in signs]
    assert found == wanted
    assert next(draws, None) is None
    assert len(found) >= len(whole)


def test_a_word_without_end_takes_time_in_proportion():
    took = []
    for num in (2_000, 20_000):
        word = "早い" * (num // 2)
        began = time.process_time()
        WORDS.drawn(word, 0.1, np.random.default_rng(0))
        took.append(time.process_time() - began)
    assert took[1] < 60 * took[0]  # in proportion to its square it would be a hundred


def test_the_order_of_captions_does_not_matter_and_common_pairs_come_first():
    mixed = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert learn_merges(mixed, 300) == MERGES
    assert NUM_BYTES < len(WORDS) == NUM_BYTES + len(MERGES) <= 300
    assert MERGES[0] in ("Ġ t", "o a", "a t", "r e")
    assert len(WORDS.pieces(["a red boat"])[0]) < 6


def test_all_merges_left_out_are_bytes_and_a_half_lies_between():
    text = "a red boat under trees"
    assert len(WORDS.drawn(text, 1.0, np.random.default_rng(0))) == len(text)
    lengths = Counter(len(WORDS.drawn(text, 0.5, np.random.default_rng(seed))) for seed in range(50))
    assert len(lengths) > 3
    assert len(WORDS.pieces([text])[0]) <= min(lengths) < max(lengths) <= len(text)
    assert WORDS.drawn(text, 0.5, np.random.default_rng(7)) == WORDS.drawn(text, 0.5, np.random.default_rng(7))


def test_a_file_comes_back_and_what_is_no_merge_is_told_with_its_line(tmp_path):
    file = tmp_path / "words.bpe"
    file.write_text("".join(f"{merge}\n" for merge in MERGES))
    assert read_merges(str(file)) == MERGES
    assert pickle.loads(pickle.dumps(WORDS)).merges == MERGES
    for wrong, said in (("a b\nabc d\n", ":2: 'abc d' is no merge"), ("a b\na b\n", "the same token"), ("a\n", ":1:")):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=said):
            read_merges(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a vocabulary"):
        read_merges(str(file))
    with pytest.raises(UsageError, match="python -m training tokenizer DATASET --out"):
        read_merges(str(tmp_path / "none.bpe"))
    with pytest.raises(UsageError, match="256 are the bytes"):
        learn_merges(CAPTIONS, NUM_BYTES)
