"""Captions are true by construction: what an English one says, parsed, are facts of its scene."""

from __future__ import annotations

import random
import re

import pytest

from infra.miniweb.captions import describe, true_of_another, wrong_in_one
from infra.miniweb.scenes import COLOURS, INVERSE, SHAPES, SIZES, TEXTURES, Scene, random_scene
from infra.miniweb.words import BACKGROUND_WORDS, COLOUR_WORDS, LANGUAGES, NOUNS, NUMBERS

NOUN = {form: shape for shape, forms in NOUNS["en"].items() for form in forms}
COUNT = {"a": 1, "an": 1} | {word: n + 2 for n, word in enumerate(NUMBERS["en"])}
THING = re.compile(
    rf"\b({'|'.join(COUNT)}) (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) (?:({'|'.join(TEXTURES)}) )?"
    rf"({'|'.join(sorted(NOUN, key=len, reverse=True))})\b"
)
BETWEEN = {
    "left of": "left of", "right of": "right of", "above": "above", "over": "above", "below": "below", "under": "below",
    "to the left of": "left of", "to the right of": "right of",
}  # fmt: skip
FRONTED = {"on the left": "left of", "on the right": "right of", "at the top": "above", "at the bottom": "below"}


def parse(caption: str) -> tuple[list[dict[str, object]], str | None, str | None]:
    """Things, relation of the first to the second, background: as far as an English caption tells them."""
    text = caption.lower()
    matches = list(THING.finditer(text))
    things = []
    for match in matches:
        count, size, colour, texture, noun = match.groups()
        told = {"count": COUNT[count], "size": size, "colour": colour, "texture": texture, "shape": NOUN[noun]}
        things.append({key: value for key, value in told.items() if value is not None})
    assert things, caption
    relation = None
    if len(things) == 2:
        between = text[matches[0].end() : matches[1].start()].strip(" ,")
        before = text[: matches[0].start()].strip(" ,")
        relation = FRONTED[before] if before else BETWEEN[between]
    rest = text[matches[-1].end() :].strip(" .,")
    told = [name for name, words in BACKGROUND_WORDS["en"].items() if rest in words]
    assert bool(told) == bool(rest), caption
    return things, relation, told[0] if told else None


def is_true(caption: str, scene: Scene) -> bool:
    """Does every thing that the caption tells lie in the scene, with the relation and background that it tells?"""
    told, relation, background = parse(caption)
    facts = scene.facts()
    if background is not None and background != facts["background"]:
        return False
    found = []
    for thing in told:
        fits = [n for n, fact in enumerate(facts["things"]) if thing.items() <= fact.items()]
        if not fits:
            return False
        found.append(fits[0])
    if relation is None:
        return True
    return (relation if found == [0, 1] else INVERSE[relation]) == facts["relation"]


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def test_english_captions_say_nothing_but_facts():
    rng = random.Random(1)
    for scene in scenes(1500):
        caption = describe(scene, "en", rng)
        assert is_true(caption, scene), (caption, scene)


def test_wrong_captions_are_false_of_their_scene():
    rng = random.Random(2)
    for scene in scenes(1500):
        for wrong in (wrong_in_one(scene, "en", rng), true_of_another(scene, "en", rng)):
            assert not is_true(wrong.text, scene), (wrong, scene)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_language_names_a_thing_of_the_scene_with_its_colour(lang):
    rng = random.Random(3)
    for scene in scenes(300):
        caption = describe(scene, lang, rng).lower()
        named = False
        for thing in scene.things:
            nouns = [form.lower() for form in NOUNS[lang][thing.shape] if len(form) > 1 or lang in ("ja", "zh")]
            colours = [form.lower() for form in COLOUR_WORDS[lang][thing.colour]]
            named |= any(noun in caption for noun in nouns) and any(colour in caption for colour in colours)
        assert named, (caption, scene)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_one_scene_has_many_paraphrases(lang):
    rng = random.Random(4)
    scene = next(scene for scene in scenes(50) if scene.relation and all(t.size != "medium" for t in scene.things))
    assert len({describe(scene, lang, rng) for _ in range(60)}) >= 12


@pytest.mark.parametrize("lang", LANGUAGES)
def test_what_must_be_told_is_told(lang):
    rng = random.Random(5)
    for scene in scenes(200):
        caption = describe(scene, lang, rng, {"background"}).lower()
        assert any(words.lower() in caption for words in BACKGROUND_WORDS[lang][scene.background]), caption


def test_languages_know_every_word():
    for lang in LANGUAGES:
        assert set(NOUNS[lang]) == set(SHAPES)
        assert set(COLOUR_WORDS[lang]) == set(COLOURS)
