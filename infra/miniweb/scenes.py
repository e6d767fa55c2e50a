"""Scenes: what a drawn picture shows, as plain facts. One or two kinds of thing, a relation, a background.

A caption of a scene is true exactly if its facts are facts of the scene; `infra.miniweb.paint` draws nothing else that
a caption could name. `variant` seeds what no caption tells: exact places, tilt, hue, clouds.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

SHAPES = (
    *("apple", "ball", "balloon", "bell", "bird", "boat", "box", "butterfly", "car", "cat", "cup", "fish"),
    *("flower", "hat", "heart", "house", "kite", "leaf", "moon", "mushroom", "rocket", "star", "tree", "umbrella"),
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
TEXTURES = ("plain", "striped", "spotted", "checkered")
SIZES = ("small", "medium", "large")  # medium is never told
BACKGROUNDS = ("meadow", "beach", "night", "snow", "desert", "room", "sunset", "paper")
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MAX_COUNT = 5

# A thing must stand out from what lies behind it.
CLASHES = {"snow": {"white"}, "night": {"black"}, "meadow": {"green"}, "desert": {"brown"}, "sunset": {"orange"}}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Thing:
    """`count` equal objects: three small red striped fish."""

    shape: str
    colour: str
    texture: str = "plain"
    size: str = "medium"
    count: int = 1


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of thing, or two with a relation: `things[0]` is `relation` `things[1]`."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    variant: int

    def facts(self) -> dict[str, Any]:
        """The scene as JSON-ready facts, without the variant that no caption tells."""
        values = dataclasses.asdict(self)
        del values["variant"]
        return values


@dataclass(frozen=True, slots=True)
class Place:
    """Where one object lies: its square's centre and side in pixels, tilt in degrees, mirrored or not."""

    thing: Thing
    x: float
    y: float
    side: float
    tilt: float
    mirrored: bool


def random_scene(rng: random.Random) -> Scene:
    """A scene by chance: about half hold two kinds of thing, so that binding and relations can be learnt."""
    background = rng.choice(BACKGROUNDS)
    first = _random_thing(rng, background, most=MAX_COUNT)
    if rng.random() < 0.5:
        return Scene((first,), None, background, rng.getrandbits(32))
    first = dataclasses.replace(first, count=min(first.count, 3))
    second = _random_thing(rng, background, most=3)
    while second.shape == first.shape:
        second = _random_thing(rng, background, most=3)
    return Scene((first, second), rng.choice(RELATIONS), background, rng.getrandbits(32))


def with_one_change(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    """A scene that differs in exactly one attribute, and the attribute's name.

    Attributes: shape, colour, texture, size, count, background, relation, and binding (the things' colours swapped).
    """
    changes = ["shape", "colour", "count", "background"]
    n = rng.randrange(len(scene.things))
    thing = scene.things[n]
    changes += ["size"] if thing.size != "medium" else []
    changes += ["texture"] if thing.texture != "plain" else []
    if scene.relation:
        changes += ["relation", "relation"]
        changes += ["binding", "binding"] if scene.things[0].colour != scene.things[1].colour else []
    attribute = rng.choice(changes)
    if attribute == "background":
        return dataclasses.replace(scene, background=_other(rng, BACKGROUNDS, scene.background)), attribute
    if attribute == "relation":
        assert scene.relation is not None
        return dataclasses.replace(scene, relation=INVERSE[scene.relation]), attribute
    if attribute == "binding":
        first, second = scene.things
        swapped = (
            dataclasses.replace(first, colour=second.colour),
            dataclasses.replace(second, colour=first.colour),
        )
        return dataclasses.replace(scene, things=swapped), attribute
    taken = [other.shape for other in scene.things] if attribute == "shape" else [getattr(thing, attribute)]
    changed = dataclasses.replace(thing, **{attribute: _other(rng, _values(attribute, scene), *taken)})
    things = tuple(changed if index == n else other for index, other in enumerate(scene.things))
    return dataclasses.replace(scene, things=things), attribute


def places(scene: Scene, width: int, height: int) -> list[Place]:
    """Where every object of the scene lies on a picture of that size; squares of different things never overlap."""
    rng = random.Random(scene.variant)
    margin = 0.04 * min(width, height)
    frame = (margin, margin, width - margin, height - margin)
    regions = [frame] if len(scene.things) == 1 else _halves(frame, scene.relation)
    found = []
    for thing, region in zip(scene.things, regions, strict=True):
        found += _fill(thing, region, rng)
    return found


def _random_thing(rng: random.Random, background: str, most: int) -> Thing:
    colour = rng.choice([colour for colour in COLOURS if colour not in CLASHES.get(background, ())])
    count = rng.choice([1] * 6 + list(range(2, most + 1)))
    texture = rng.choice(["plain"] * 4 + ["striped", "spotted", "checkered"])
    # Of many, none can be large: their sizes would tell the count, not a size.
    size = rng.choice(SIZES) if count == 1 else "medium"
    return Thing(rng.choice(SHAPES), colour, texture, size, count)


def _values(attribute: str, scene: Scene) -> Sequence[Any]:
    """What an attribute may be changed to. Texture and size stay ones that a caption tells."""
    most = MAX_COUNT if len(scene.things) == 1 else 3
    return {
        "shape": SHAPES,
        "colour": COLOURS,
        "count": range(1, most + 1),
        "size": ("small", "large"),
        "texture": TEXTURES[1:],
    }[attribute]


def _other(rng: random.Random, values: Sequence[_T], *taken: _T) -> _T:
    return rng.choice([value for value in values if value not in taken])


def _halves(frame: tuple[float, float, float, float], relation: str | None) -> list[tuple[float, float, float, float]]:
    x0, y0, x1, y1 = frame
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    if relation in ("left of", "right of"):
        first, second = (x0, y0, middle_x, y1), (middle_x, y0, x1, y1)
    else:
        first, second = (x0, y0, x1, middle_y), (x0, middle_y, x1, y1)
    return [first, second] if relation in ("left of", "above") else [second, first]


def _fill(thing: Thing, region: tuple[float, float, float, float], rng: random.Random) -> list[Place]:
    """Put a thing's objects into the cells of a region, as few rows as keep them large."""
    x0, y0, x1, y1 = region
    width, height = x1 - x0, y1 - y0
    columns = max(range(1, thing.count + 1), key=lambda n: min(width / n, height / -(-thing.count // n)))
    rows = -(-thing.count // columns)
    cell_w, cell_h = width / columns, height / rows
    share = {"small": 0.4, "medium": 0.66, "large": 0.95}[thing.size] if thing.count == 1 else 0.84
    side = share * min(cell_w, cell_h)
    mirrored = rng.random() < 0.5
    found = []
    for index in range(thing.count):
        row, column = divmod(index, columns)
        in_row = min(columns, thing.count - row * columns)
        indent = (columns - in_row) * cell_w / 2
        slack_x, slack_y = min(cell_w - side, 0.5 * side), min(cell_h - side, 0.5 * side)
        x = x0 + indent + (column + 0.5) * cell_w + rng.uniform(-0.5, 0.5) * slack_x
        y = y0 + (row + 0.5) * cell_h + rng.uniform(-0.5, 0.5) * slack_y
        found.append(Place(thing, x, y, side, rng.uniform(-8, 8), mirrored))
    return found
