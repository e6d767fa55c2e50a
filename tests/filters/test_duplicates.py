"""Duplicates: the bytes' own hash, and two of the picture that copies share and other pictures do not."""

from __future__ import annotations

import hashlib
import io
import random

import numpy as np
import pytest
from PIL import Image

from filters.base import Batch, description
from filters.duplicates import Duplicates
from filters.phash import hamming, perceptual_hash
from infra.miniweb.paint import draw
from infra.miniweb.scenes import random_scene
from infra.sample import Pair


def stored(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scores(*images: bytes | None) -> list[dict[str, object]]:
    pairs = [Pair(number.to_bytes(16, "big"), "", "", (), image) for number, image in enumerate(images)]
    table = Duplicates().score(Batch(pairs))
    assert table.schema.equals(Duplicates.columns)
    return table.to_pylist()


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    rng = random.Random(5)
    return [draw(random_scene(rng), 256, 192) for _ in range(60)]


def test_sha256_is_that_of_the_stored_bytes(drawn):
    images = [stored(drawn[0]), b"no image at all", b""]
    assert [row["sha256"] for row in scores(*images)] == [hashlib.sha256(image).digest() for image in images]


def test_phash_is_the_hash_that_lists_of_others_hold(drawn):
    images = [stored(drawn[0], kind) for kind in ("JPEG", "PNG", "WEBP")]
    decoded = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
    assert [row["phash"] for row in scores(*images)] == [perceptual_hash(pixels) for pixels in decoded]


def test_the_same_bytes_give_the_same_row_in_any_company(drawn):
    images = [stored(image) for image in drawn]
    together = scores(*images, *reversed(images))
    assert together[: len(images)] == together[: len(images) - 1 : -1]
    assert together[: len(images)] == [scores(image)[0] for image in images]


def test_what_cannot_be_decoded_has_no_hash_of_its_picture(drawn):
    none, broken, whole = scores(None, stored(drawn[1])[:200], stored(drawn[1]))
    assert none == {"sha256": None, "phash": None, "phash_fine": None}
    assert broken["sha256"] is not None
    assert (broken["phash"], broken["phash_fine"]) == (None, None)
    assert None not in whole.values()


def test_copies_lie_within_four_bits_and_other_pictures_do_not(drawn):
    fine = np.array([row["phash_fine"] for row in scores(*map(stored, drawn))], np.uint64)
    for change in (
        lambda image: image.resize((180, 134)),
        lambda image: Image.open(io.BytesIO(stored(image, quality=50))),
    ):
        copies = np.array([row["phash_fine"] for row in scores(*[stored(change(image)) for image in drawn])], np.uint64)
        assert np.mean(hamming(fine, copies) <= 4) > 0.95
    apart = hamming(fine[:, None], fine[None])[np.triu_indices(len(drawn), 1)]
    assert apart.min() > 4


def test_symmetric_and_blank_pictures_have_hashes_without_chance():
    half = np.random.default_rng(2).integers(0, 256, (64, 32, 3), np.uint8)
    symmetric = Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))
    blank = Image.new("RGB", (64, 64), "white")
    images = [
        stored(image, "PNG") for image in (symmetric, blank, symmetric.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    ]
    first, plain, mirrored = scores(*images)
    assert (first["phash"], first["phash_fine"]) == (mirrored["phash"], mirrored["phash_fine"])
    assert (plain["phash"], plain["phash_fine"]) == (1 << 63, 0)  # the first is the mean, and nothing else is there


def test_every_column_is_told_of():
    assert all(description(field) for field in Duplicates.columns)
