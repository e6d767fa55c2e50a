"""What is drawn is what the scene says, and differs wherever a scene differs."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from infra.miniweb.backdrops import paint_backdrop
from infra.miniweb.paint import draw
from infra.miniweb.pictures import ENCODERS, Picture, encode
from infra.miniweb.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    places,
    random_scene,
    with_one_change,
)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(draw(scene, 128, 96)).astype(int)


def test_the_same_scene_gives_the_same_pixels():
    for scene in scenes(8):
        assert np.array_equal(pixels(scene), pixels(scene))


@pytest.mark.parametrize(
    ("attribute", "values"),
    [("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("size", SIZES), ("count", (1, 2, 3, 4, 5))],
)
def test_drawings_differ_visibly_where_one_attribute_of_a_thing_differs(attribute, values):
    for background in ("paper", "beach"):
        first = Thing("house", "red", "striped", "large")
        drawn = [pixels(Scene((replace(first, **{attribute: value}),), None, background, 5)) for value in values]
        for n, one in enumerate(drawn):
            for other in drawn[:n]:
                changed = np.abs(one - other).max(axis=2) > 16
                assert changed.mean() > 0.01, (attribute, n)


def test_drawings_differ_where_only_relation_or_background_differs():
    things = (Thing("cup", "blue"), Thing("tree", "green"))
    for varied in (
        [Scene(things, relation, "paper", 9) for relation in RELATIONS],
        [Scene(things, "above", background, 9) for background in BACKGROUNDS],
    ):
        drawn = [pixels(scene) for scene in varied]
        for n, one in enumerate(drawn):
            assert all((np.abs(one - other).max(axis=2) > 16).mean() > 0.01 for other in drawn[:n])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_things_colour_covers_most_of_it(shape):
    blue = pixels(Scene((Thing(shape, "blue", size="large"),), None, "paper", 3))
    red = pixels(Scene((Thing(shape, "red", size="large"),), None, "paper", 3))
    coloured = np.abs(blue - red).max(axis=2) > 60
    # The rest are stems, windows, outlines: what stays when the colour changes.
    nothing = np.asarray(paint_backdrop("paper", 128, 96, random.Random(3))).astype(int)
    drawn = np.abs(blue - nothing).max(axis=2) > 16
    assert coloured.sum() > 0.45 * drawn.sum()


def test_objects_lie_within_the_picture_and_never_overlap():
    for scene in scenes(300):
        for width, height in ((320, 240), (192, 256)):
            found = places(scene, width, height)
            assert len(found) == sum(thing.count for thing in scene.things)
            for n, one in enumerate(found):
                half = one.side / 2
                assert half <= one.x <= width - half
                assert half <= one.y <= height - half
                for other in found[:n]:
                    assert max(abs(one.x - other.x), abs(one.y - other.y)) >= (one.side + other.side) / 2 - 1e-6


def test_relations_hold_between_all_objects_of_the_two_things():
    for scene in scenes(300):
        if scene.relation is None:
            continue
        found = places(scene, 320, 240)
        first = [p for p in found if p.thing == scene.things[0]]
        second = [p for p in found if p.thing == scene.things[1]]
        for a in first:
            for b in second:
                gap = {
                    "left of": b.x - a.x,
                    "right of": a.x - b.x,
                    "above": b.y - a.y,
                    "below": a.y - b.y,
                }[scene.relation]
                assert gap >= (a.side + b.side) / 2 - 1e-6


def test_one_change_changes_one_attribute():
    rng = random.Random(3)
    seen = set()
    for scene in scenes(400):
        changed, attribute = with_one_change(scene, rng)
        seen.add(attribute)
        assert changed != scene
        before, after = scene.facts(), changed.facts()
        flat = [
            (n, key)
            for n, (a, b) in enumerate(zip(before["things"], after["things"], strict=True))
            for key in a
            if a[key] != b[key]
        ]
        others = [key for key in ("relation", "background") if before[key] != after[key]]
        if attribute == "binding":
            assert flat == [(0, "colour"), (1, "colour")]
            assert not others
        elif attribute in ("relation", "background"):
            assert others == [attribute]
            assert not flat
        else:
            assert [key for _, key in flat] == [attribute]
            assert not others
    assert seen == {"shape", "colour", "texture", "size", "count", "relation", "background", "binding"}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_format_gives_the_same_bytes_twice_and_the_promised_size(name):
    import io

    from PIL import Image, ImageOps

    picture = Picture(scenes(1)[0], 160, 120, name, orientation=6 if name == "exif_jpeg" else 1)
    data = encode(picture)
    assert data == encode(picture)
    with Image.open(io.BytesIO(data)) as image:
        assert ImageOps.exif_transpose(image).size == picture.shown_size()


@pytest.mark.parametrize("edit", ["resized", "recompressed", "cropped"])
def test_near_duplicates_look_alike_and_are_other_bytes(edit):
    import io

    from PIL import Image

    picture = Picture(scenes(1, seed=4)[0], 200, 150)
    near = replace(picture, edit=edit)
    assert encode(near) != encode(picture)
    with Image.open(io.BytesIO(encode(near))) as b, Image.open(io.BytesIO(encode(picture))) as a:
        assert b.size == near.shown_size()
        small = [np.asarray(image.convert("L").resize((12, 9))).astype(int) for image in (a, b)]
    assert np.abs(small[0] - small[1]).mean() < 16  # of 255; other scenes differ by about 50
