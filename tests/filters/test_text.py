"""Measures of text: the laws of the counts on wild text, and what is boilerplate and what is not."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from filters.base import Batch
from filters.boilerplate import is_boilerplate, runs_of
from filters.text import Text
from infra.miniweb.captions import describe
from infra.miniweb.plan import BOILERPLATE
from infra.miniweb.scenes import random_scene
from infra.sample import Caption, Pair

LANGUAGES = ("en", "de", "fr", "es", "it", "ja", "zh")
# Any code point at all, lone surrogates and NUL among them; often of few letters, so that words repeat.
WILD = st.one_of(
    st.text(st.characters(codec=None, exclude_categories=())),
    st.lists(st.sampled_from(["a", "A", "ß", "ss", "cat", "dog", "画像", "!", "12"]), max_size=12).map(" ".join),
    st.text(st.sampled_from(" \t\n\x0b\x1c\x85\u2028\u3000aB7_ªéの🍕\0\ud800"), max_size=30),
)


def scores_of(*texts: str) -> list[dict[str, object]]:
    batch = Batch([Pair(bytes(16), "", "", (Caption(text),)) for text in texts])
    table = Text().score(batch)
    assert table.schema == Text.columns
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def boilerplate(text: str) -> bool:
    return is_boilerplate(text, runs_of(text))


def repeated_share(text: str) -> float:
    """Directly from the definition: for each word, does it lie in a pair of neighbours that occurs elsewhere, too?"""
    words = text.casefold().split()
    pairs = [tuple(words[at : at + 2]) for at in range(len(words) - 1)]
    times = Counter(pairs)
    inside = [any(times[pairs[p]] > 1 for p in (at - 1, at) if 0 <= p < len(pairs)) for at in range(len(words))]
    return sum(inside) / len(words) if words else 0.0


@given(WILD)
@example("")
@example("the cat the cat the")
@example("\ufb03 ﬃ")  # a ligature: folding its case makes three letters
def test_every_measure_is_what_its_definition_says(text: str) -> None:
    (found,) = scores_of(text)
    assert found["words"] == len(text.split())  # DataComp's count
    assert found["characters"] == len(text)
    share = sum(letter.isalnum() for letter in text) / len(text) if text else 0.0
    assert found["alphanumeric"] == pytest.approx(share, abs=1e-6)  # float32
    assert found["repetition"] == pytest.approx(repeated_share(text), abs=1e-6)
    assert isinstance(found["boilerplate"], bool)


@given(st.lists(WILD, max_size=8))
def test_a_caption_is_scored_the_same_whatever_else_is_in_its_batch(texts: list[str]) -> None:
    assert scores_of(*texts) == [row for text in texts for row in scores_of(text)]


def test_an_empty_caption_is_a_text_of_no_words() -> None:
    nothing = {"words": 0, "characters": 0, "alphanumeric": 0.0, "repetition": 0.0, "boilerplate": False}
    assert scores_of("") == [nothing]


def test_keyword_stuffing_repeats_and_sentences_do_not() -> None:
    stuffed, sentence = scores_of("red shoes cheap red shoes sale red shoes", "a dog and a cat on a mat in the garden")
    assert stuffed["repetition"] == pytest.approx(6 / 8)
    assert sentence["repetition"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "IMG_1234.jpg", "IMG_1234", "DSC00042.JPG", "dscn0012", "P1010012.JPG", "IMG-20200101-WA0001",
        "_DSC1234 copy", "Screenshot 2021-03-04 at 10.22.33", "WhatsApp Image 2021-03-04 at 10.22.33.jpeg",
        "photo.png (1)", "Scan0001", "2019-red-rose.jpg", "my_cat.webp", "64834657ee604b8797bf99eac6a194c1",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "https://example.org/a/b.jpg", "www.example.org", "example.co.uk",
        "image", "Image 3", "[image 3]", "photo 1 of 5", "PHOTO", "logo", "Untitled", "thumbnail", "Click to enlarge",
        "click here to view a larger image", "(Enlarge image)", "zum Vergrößern hier klicken", "Bild vergrößern",
        "cliquez sur l'image pour l'agrandir", "haga clic para ampliar", "clicca per ingrandire",
        "Clique aqui para ampliar", "klik om te vergroten", "kliknij, aby powiększyć", "нажмите, чтобы увеличить",
        "クリックで拡大", "画像", "点击放大", "이미지", "صورة", "No image available", "$19.99", "19,99 €",
        "USD 20.00", "1000円", "from £5", "...", "12 / 34", "- -", "Photo by Ann Lee", "© 2019 Ann Lee",
        "Photo © Müller & Söhne", "Photo credit: Ann Lee", "Image courtesy of NASA", "null", "Lorem ipsum",
        "Read more…",
    ],
)  # fmt: skip
def test_what_says_nothing_of_the_picture_is_boilerplate(text: str) -> None:
    assert boilerplate(text)
    assert boilerplate(f"  {text.upper() if text.isascii() and 'by' not in text else text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "a red circle", "click beetle on a leaf", "photo by the sea", "a photo of a dog", "🍕", "Mr. Smith",
        "Image of a heron at dawn", "the logo of a bakery painted on a wall", "a heron, IMG_1234.jpg", "Boeing 747",
        "Apollo 11", "Peugeot 208 GTI", "Nikon D850", "R2-D2", "7 dwarfs", "cat", "Foto von einem Hund",
        "ein roter Kreis", "Ansicht von Köln um 1900", "une image de deux chats", "上に赤い丸", "图中：有一个圆",
        "Copyright law explained to children by a judge in an old court room", "$5 note of 1902, front",
        "a click away from the larger view of the old harbour with its boats", "figure skating",
        "sale of horses at the fair", "view of Delft", "facade", "decade", "deadbeef",
    ],
)  # fmt: skip
def test_what_says_something_is_not(text: str) -> None:
    assert not boilerplate(text)


def test_of_the_small_webs_captions_just_the_boilerplate_is_found() -> None:
    rng = random.Random(7)
    true = [describe(random_scene(rng), lang, rng) for lang in LANGUAGES for _ in range(200)]
    assert [text for text in BOILERPLATE if not boilerplate(text)] == []
    assert [text for text in true if boilerplate(text)] == []


@given(WILD)
def test_more_words_than_any_stock_phrase_has_are_not_boilerplate(text: str) -> None:
    assert not boilerplate(
        f"{text} a man and a woman walk two brown dogs along the river on a sunny day in early spring"
    )


def test_hostile_length_costs_no_time() -> None:
    # Backtracking over a megabyte would not end within the test's timeout.
    for text in (
        "a" * 1_000_000,
        "IMG_" * 250_000,
        "a.b." * 250_000,
        "click " * 200_000,
        "1,2." * 250_000,
        "(" * 1_000_000,
    ):
        (found,) = scores_of(text)
        assert found["characters"] == len(text)
        assert not found["boilerplate"]
    for text in ("1-" * 59, "a.a-" * 29, "img_1" + "_" * 114, "a" * 119 + "!", "p" + "1 " * 59):
        scores_of(text)
