"""Says in words what a scene shows: paraphrases in seven languages, true by construction, and captions that are wrong.

A caption may leave out sizes, textures, the background or the second thing; it never says what the scene does not hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from dataclasses import dataclass, replace

from infra.miniweb.scenes import INVERSE, Scene, Thing, random_scene, with_one_change
from infra.miniweb.words import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    NOUNS,
    NUMBERS,
    SIZE_WORDS,
    TEXTURE_WORDS,
)

# How often a caption tells what it could also leave out.
CHANCES = {"size": 0.8, "texture": 0.85, "background": 0.6, "relation": 0.92}

# {a} and {b} are things, {c} is {b} in the case that follows a preposition, {where} a place or nothing.
SINGLE: dict[str, tuple[str, ...]] = {
    "en": (
        *("{a}{where}", "a picture of {a}{where}", "{a}{where}"),
        *("an illustration showing {a}{where}", "a drawing of {a}{where}"),
    ),
    "de": ("{a}{where}", "Zeichnung: {a}{where}", "zu sehen: {a}{where}", "Bild mit {c}{where}"),
    "fr": ("{a}{where}", "une image de {a}{where}", "dessin : {a}{where}", "on voit {a}{where}"),
    "es": ("{a}{where}", "una imagen de {a}{where}", "dibujo: {a}{where}", "aquí se ve: {a}{where}"),
    "it": ("{a}{where}", "un'immagine di {a}{where}", "disegno: {a}{where}", "si vede: {a}{where}"),
    "ja": ("{where}{a}", "{where}{a}の絵", "{where}{a}のイラスト"),
    "zh": ("{where}有{a}", "图中：{where}有{a}", "插画：{where}有{a}"),
}
BESIDE: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "left of": ("{a} to the left of {b}", "{a} left of {b}", "on the left {a}, on the right {b}"),
        "right of": ("{a} to the right of {b}", "{a} right of {b}", "on the right {a}, on the left {b}"),
        "above": ("{a} above {b}", "{a} over {b}", "at the top {a}, at the bottom {b}"),
        "below": ("{a} below {b}", "{a} under {b}", "at the bottom {a}, at the top {b}"),
    },
    "de": {
        "left of": ("{a} links von {c}", "links {a}, rechts {b}"),
        "right of": ("{a} rechts von {c}", "rechts {a}, links {b}"),
        "above": ("{a} über {c}", "oben {a}, unten {b}"),
        "below": ("{a} unter {c}", "unten {a}, oben {b}"),
    },
    "fr": {
        "left of": ("{a} à gauche de {b}", "à gauche {a}, à droite {b}"),
        "right of": ("{a} à droite de {b}", "à droite {a}, à gauche {b}"),
        "above": ("{a} au-dessus de {b}", "en haut {a}, en bas {b}"),
        "below": ("{a} au-dessous de {b}", "en bas {a}, en haut {b}"),
    },
    "es": {
        "left of": ("{a} a la izquierda de {b}", "a la izquierda {a}, a la derecha {b}"),
        "right of": ("{a} a la derecha de {b}", "a la derecha {a}, a la izquierda {b}"),
        "above": ("{a} encima de {b}", "arriba {a}, abajo {b}"),
        "below": ("{a} debajo de {b}", "abajo {a}, arriba {b}"),
    },
    "it": {
        "left of": ("{a} a sinistra di {b}", "a sinistra {a}, a destra {b}"),
        "right of": ("{a} a destra di {b}", "a destra {a}, a sinistra {b}"),
        "above": ("{a} sopra {b}", "in alto {a}, in basso {b}"),
        "below": ("{a} sotto {b}", "in basso {a}, in alto {b}"),
    },
    "ja": {
        "left of": ("{b}の左に{a}", "左に{a}、右に{b}"),
        "right of": ("{b}の右に{a}", "右に{a}、左に{b}"),
        "above": ("{b}の上に{a}", "上に{a}、下に{b}"),
        "below": ("{b}の下に{a}", "下に{a}、上に{b}"),
    },
    "zh": {
        "left of": ("{a}在{b}的左边", "左边是{a}，右边是{b}"),
        "right of": ("{a}在{b}的右边", "右边是{a}，左边是{b}"),
        "above": ("{a}在{b}的上方", "上面是{a}，下面是{b}"),
        "below": ("{a}在{b}的下方", "下面是{a}，上面是{b}"),
    },
}


@dataclass(frozen=True, slots=True)
class WrongCaption:
    """A caption that is false of its scene; `attribute` is the one that differs, None if everything does."""

    text: str
    attribute: str | None


def describe(scene: Scene, lang: str, rng: random.Random, tell: Set[str] = frozenset()) -> str:
    """A caption that is true of the scene. `tell`: what must not be left out (size, texture, background, relation)."""
    told = {name for name, chance in CHANCES.items() if rng.random() < chance} | tell
    things = [_shorten(thing, told) for thing in scene.things]
    words = BACKGROUND_WORDS[lang][scene.background]
    place = rng.choice(words) if "background" in told else ""
    where = place if lang in ("ja", "zh") or not place else " " + place
    if len(things) == 1 or "relation" not in told:
        thing = things[0] if len(things) == 1 or rng.random() < 0.5 else things[-1]
        text = rng.choice(SINGLE[lang]).format(a=_say(thing, lang), c=_say(thing, lang, dative=True), where=where)
        text = text.replace("un'immagine di un", "un'immagine con un").replace("une image de un", "une image d'un")
    else:
        text = _beside(things, scene.relation or "", lang, where, rng)
    return _finish(text, lang, rng)


def true_of_another(scene: Scene, lang: str, rng: random.Random) -> WrongCaption:
    """A caption of some other scene that shares no shape with this one: the easy kind of wrong."""
    shapes = {thing.shape for thing in scene.things}
    other = random_scene(rng)
    while shapes & {thing.shape for thing in other.things}:
        other = random_scene(rng)
    return WrongCaption(describe(other, lang, rng), None)


def wrong_in_one(scene: Scene, lang: str, rng: random.Random) -> WrongCaption:
    """A caption that differs from a true one in a single attribute, which it tells: the hard kind of wrong."""
    changed, attribute = with_one_change(scene, rng)
    if attribute in ("relation", "binding"):
        tell = {"relation"}
    elif len(scene.things) == 2 and attribute != "background":
        # Told alone or beside the other, the changed thing must be the one that is told.
        tell = {"relation", attribute}
    else:
        tell = {attribute}
    return WrongCaption(describe(changed, lang, rng, tell & set(CHANCES)), attribute)


def _shorten(thing: Thing, told: Set[str]) -> Thing:
    return replace(
        thing,
        size=thing.size if "size" in told else "medium",
        texture=thing.texture if "texture" in told else "plain",
    )


def _beside(things: list[Thing], relation: str, lang: str, where: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        things, relation = things[::-1], INVERSE[relation]
    template = rng.choice(BESIDE[lang][relation])
    a, b = things
    text = template.format(a=_say(a, lang), b=_say(b, lang), c=_say(b, lang, dative=True))
    for one in ("un ", "une "):
        text = text.replace(f" de {one}", f" d'{one}") if lang == "fr" else text
    if lang == "zh":
        return f"{where}，{text}" if where else text
    if lang == "ja" and where:
        return f"{where}{text}" if text.startswith(_say(b, lang)) else f"{where}絵、{text}"
    if ", " in text and where:
        return f"{text},{where}"
    return text + where


def _finish(text: str, lang: str, rng: random.Random) -> str:
    """As people write: sometimes a capital letter, sometimes a full stop."""
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text += "。" if lang in ("ja", "zh") else "."
    return text


def _say(thing: Thing, lang: str, dative: bool = False) -> str:
    return _PHRASES[lang](thing, dative)


def _english(thing: Thing, dative: bool) -> str:
    one, many = NOUNS["en"][thing.shape]
    words = _listed("en", thing, ("size", "colour", "texture"))
    if thing.count > 1:
        return " ".join([NUMBERS["en"][thing.count - 2], *words, many])
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words, one])


def _german(thing: Thing, dative: bool) -> str:
    gender, one, many = NOUNS["de"][thing.shape]
    words = _listed("de", thing, ("size", "colour", "texture"))
    if thing.count > 1:
        noun = many + "n" if dative and many[-1] not in "ns" else many
        return " ".join([NUMBERS["de"][thing.count - 2], *(w + ("en" if dative else "e") for w in words), noun])
    if dative:
        noun = "Herzen" if one == "Herz" else one
        return " ".join(["einer" if gender == "f" else "einem", *(word + "en" for word in words), noun])
    ending = {"m": "er", "f": "e", "n": "es"}[gender]
    return " ".join(["eine" if gender == "f" else "ein", *(word + ending for word in words), one])


def _romance(lang: str, order: str) -> Callable[[Thing, bool], str]:
    """French puts the size before the noun, Spanish and Italian behind; colour and texture always follow."""

    def say(thing: Thing, dative: bool) -> str:
        gender, one, many = NOUNS[lang][thing.shape]
        form = (2 if thing.count > 1 else 0) + (gender == "f")
        size, colour, texture = (_listed(lang, thing, (name,), form) for name in ("size", "colour", "texture"))
        article = {"m": "un", "f": "une" if lang == "fr" else "una"}[gender]
        head = NUMBERS[lang][thing.count - 2] if thing.count > 1 else article
        noun = many if thing.count > 1 else one
        words = [*size, noun, *colour, *texture] if order == "size first" else [noun, *colour, *size, *texture]
        return " ".join([head, *words])

    return say


def _japanese(thing: Thing, dative: bool) -> str:
    noun, counter = NOUNS["ja"][thing.shape]
    count = f"{NUMBERS['ja'][thing.count - 2]}{counter}の" if thing.count > 1 else ""
    return "".join([count, *_listed("ja", thing, ("size", "colour", "texture")), noun])


def _chinese(thing: Thing, dative: bool) -> str:
    noun, measure = NOUNS["zh"][thing.shape]
    number = NUMBERS["zh"][thing.count - 2] if thing.count > 1 else "一"
    size = "".join(word + "的" for word in _listed("zh", thing, ("size",)))
    return f"{number}{measure}{size}{''.join(_listed('zh', thing, ('colour', 'texture')))}{noun}"


def _listed(lang: str, thing: Thing, names: tuple[str, ...], form: int = 0) -> list[str]:
    """The adjectives that apply, in the given form where a word has several."""
    tables = {"size": SIZE_WORDS, "colour": COLOUR_WORDS, "texture": TEXTURE_WORDS}
    found = []
    for name in names:
        forms = tables[name][lang].get(getattr(thing, name))  # medium and plain have no word: they are not told
        if forms:
            found.append(forms[form if len(forms) > 1 else 0])
    return found


_PHRASES: dict[str, Callable[[Thing, bool], str]] = {
    "en": _english,
    "de": _german,
    "fr": _romance("fr", "size first"),
    "es": _romance("es", "size last"),
    "it": _romance("it", "size last"),
    "ja": _japanese,
    "zh": _chinese,
}
