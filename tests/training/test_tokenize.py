"""WordPiece: BERT's ids for any text, cut and padded; bounded on what is hostile; learnt alike every time."""

from __future__ import annotations

import pickle
import random
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.errors import UsageError
from infra.miniweb.captions import SINGLE, describe
from infra.miniweb.scenes import random_scene
from infra.torchvision_here import make_importable
from training.models.blip_settings import TINY_WORDS
from training.tokenize import (
    END,
    MASK,
    MAX_CHARACTERS,
    PAD,
    SPECIAL,
    START,
    UNKNOWN,
    WordPiece,
    learn_words,
    read_words,
)

make_importable()

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")
WORDS = (
    *SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "cat", "##s", "##ing", "red", "東", "京", "##京",
    "ñ", "é", "ß", "ж", "##ж", "[", "]", "cls", "unk", "ا", "한", "😀",
)  # fmt: skip
BITS = "a É é e\u0301 ñ ß İ Ж 東京 한글 😀 \u200d \u00a0 \u3000 \t \n \0 \ufffd \u202e # - [SEP] [CLS] cats the"
WILD = st.text(max_size=60) | st.text(st.sampled_from(BITS), max_size=60)
few = settings(max_examples=300, deadline=None)


def unique(words):
    return tuple(dict.fromkeys(words))


OURS = WordPiece(unique(WORDS))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' tokeniser of the same words."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: number for number, word in enumerate(OURS.words)}, do_lower_case=True)


def captions(lang, num, seed=0):
    rng = random.Random(seed)
    return [describe(random_scene(rng), lang, rng) for _ in range(num)]


def no_surrogates(text):
    return text.encode("utf-8", "replace").decode()


@few
@given(text=WILD)
@example("The CATS are sitting; 東京 (cafe\u0301) it's 3.5!")
@example("a" * 120)
@example("")
def test_ids_are_transformers_on_any_text(theirs, text):
    clean = no_surrogates(text)
    if any(word in clean for word in SPECIAL):  # theirs reads them as the tokens; no caption may say so
        return
    assert OURS.pieces([text]) == [theirs(clean, add_special_tokens=False)["input_ids"]]


def test_a_batch_is_transformers_cut_and_padded(theirs):
    texts = ["the red cat", "", "cats " * 30, "東京 is red."]
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    found = OURS(texts, 12)
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted)


def test_a_caption_cannot_say_a_special_token():
    for word in SPECIAL:
        assert OURS.id(word) not in OURS.pieces([f"a {word} cat"])[0] or word == UNKNOWN


@few
@given(texts=st.lists(WILD, max_size=4), length=st.integers(3, 20))
def test_every_row_begins_ends_and_is_padded_behind_its_end(texts, length):
    rows = OURS(texts, length)
    assert rows.shape == (len(texts), length)
    for row, ids in zip(rows.tolist(), OURS.pieces(texts), strict=True):
        filled = [OURS.id(START), *ids[: length - 2], OURS.id(END)]
        assert row == filled + [OURS.id(PAD)] * (length - len(filled))


def test_it_travels_as_its_words_alone():
    OURS(["warm"], 8)
    sent = pickle.dumps(OURS)
    again = pickle.loads(sent)
    assert len(sent) < 20 * len(OURS)
    assert again.words == OURS.words
    assert torch.equal(again(["The red cats", "東京"], 9), OURS(["The red cats", "東京"], 9))


@pytest.mark.parametrize(
    "text",
    ["cat " * 2_500_000, "a" * 10_000_000, "\0" * 1_000_000, "\ud800\udfff cat \udc80", "e" + "\u0301" * 1_000_000,
     "\u202e" * 100_000, "東" * 1_000_000],
    ids=["10 MB", "10 MB, one word", "NUL", "lone surrogates", "accents", "right to left", "no blanks"],
)  # fmt: skip
def test_hostile_texts_are_ids_in_bounded_time(text):
    began = time.monotonic()
    rows = OURS([text, "a cat"], 16)
    assert time.monotonic() - began < 2  # 10,000 characters take milliseconds; a machine may be busy
    assert rows[0, 0] == OURS.id(START)
    assert END in [OURS.words[number] for number in rows[0].tolist()]
    assert torch.equal(rows[1], OURS(["a cat"], 16)[0])
    assert len(OURS.pieces([text])[0]) <= 2 * MAX_CHARACTERS


def test_more_words_join_at_the_end_where_they_are_lacking():
    more = WordPiece(OURS.words, ("[DEC]", "[MASK]"))
    assert more.words == (*OURS.words, "[DEC]")
    assert more.id(MASK) == OURS.id(MASK)
    with pytest.raises(KeyError):
        OURS.id("[DEC]")


def test_words_without_their_special_ones_are_refused():
    with pytest.raises(UsageError, match=r"lacks \[PAD\], \[SEP\]; give one in BERT's form"):
        WordPiece(("[UNK]", "[CLS]", "cat"))


def test_what_is_learnt_reads_all_that_it_was_learnt_from():
    told = [text for lang in SINGLE for text in captions(lang, 100)]
    words = learn_words(iter(told), 1200)
    assert words[: len(SPECIAL)] == SPECIAL
    assert len(set(words)) == len(words) <= 1200
    assert UNKNOWN not in {words[one] for ids in WordPiece(words).pieces(told) for one in ids}
    hostile = ["\ud800", "\0\0", "a" * 1_000_000]
    assert len(learn_words(iter([*told, *hostile]), 400)) <= 400


@pytest.mark.parametrize("size", [30, 400])
def test_what_is_learnt_is_the_same_every_time_and_no_more_than_was_asked_for(size):
    told = [text for lang in SINGLE for text in captions(lang, 100)]
    found = {learn_words(iter(told), size) for _ in range(4)}
    assert len(found) == 1
    assert len(found.pop()) <= size


@pytest.mark.parametrize("lang", SINGLE)
def test_the_shipped_words_read_the_small_webs_captions_whole(lang):
    words = WordPiece(read_words(str(TINY_WORDS)))
    assert len(words) == 1200
    for ids, text in zip(words.pieces(told := captions(lang, 300, seed=7)), told, strict=True):
        assert words.id(UNKNOWN) not in ids, text
        assert len(ids) <= 46, text  # half a page of pieces at most, so that contexts of tens of tokens hold most


def test_english_comes_back_as_it_was_said():
    words = WordPiece(read_words(str(TINY_WORDS)), more=("[DEC]",))
    for text in captions("en", 200, seed=3):
        ids = words([text], 60)[0].tolist()
        assert words.text([words.id("[DEC]"), *ids]) == text.lower()


def test_a_vocabulary_comes_from_a_file_or_says_where_from(tmp_path, monkeypatch):
    file = tmp_path / "words.txt"
    file.write_bytes("\r\n".join(OURS.words).encode() + b"\r\n")
    assert read_words(str(file)) == OURS.words
    with pytest.raises(UsageError, match=r"no such vocabulary; python -m training tokenizer"):
        read_words(str(tmp_path / "none.txt"))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a vocabulary"):
        read_words(str(file))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"Fetch its vocab\.txt once where there is a network"):
        read_words(f"{tmp_path.name}/no-such-model")
