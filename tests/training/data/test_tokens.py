"""Image tokens from tables: each pair has its own picture's; what is missing is masked, what is broken is told."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DatasetError, FingerprintError, RecipeError
from tests.training.shards import make_shards, uid_of
from training.byte_pairs import learn_merges
from training.data.loader import DataSettings, Loader
from training.data.tokens import read_made, write_codes
from training.models.dalle_captions import DalleTokenizer
from training.models.dalle_settings import DalleSettings
from training.ranks import Ranks

OPS = "decode|squash(8)|normalize(unit)"
MERGES = learn_merges([f"picture number {number}" for number in range(40)], 280)
TOKENIZER = DalleTokenizer(DalleSettings(vocab=MERGES, text_length=24, dropout=0.5))


def codes_of(number):
    return torch.tensor([number, 2 * number, 7, 599])


def made_dataset(folder, name="vae", num=4, missing=(), by=("one", "one")):
    dataset = make_shards(folder, [9, 4])
    for shard, numbers, weights in (("00000", range(9), by[0]), ("00001", range(9, 13), by[1])):
        uids = pa.array([uid_of(number) for number in reversed(numbers)], pa.binary(16))  # in another order
        codes = [None if number in missing else codes_of(number) for number in reversed(numbers)]
        write_codes(dataset.storage, name, shard, uids, codes, {"num": num, "kinds": 600, "weights": weights})
    return dataset


def batches(folder, tokens="vae", start=0, workers=0, ranks=Ranks(), codes=(4, 600), **more):
    data = {"datasets": [{"path": str(folder), "tokens": tokens}], "batch": 6, "lanes": 6, "workers": workers, **more}
    loader = Loader(DataSettings.parse(data, "data"), OPS, TOKENIZER, 3, ranks=ranks, codes=codes)
    made = loader.batches(start)
    found = [*islice(made, 5)]
    made.close()
    return found, loader


def number_of(uid):
    return next(number for number in range(13) if uid_of(number) == uid)


def test_each_pair_has_the_tokens_of_its_own_picture_and_no_picture_is_opened(tmp_path):
    made_dataset(tmp_path)
    for tar in tmp_path.glob("*.tar"):
        tar.write_bytes(b"")  # nobody looks
    found, _ = batches(tmp_path)
    for batch in found:
        assert batch.tensors.keys() == {"codes", "text", "valid"}
        assert batch["valid"].all()
        for uid, codes in zip(batch.uids, batch["codes"], strict=True):
            assert torch.equal(codes, codes_of(number_of(uid)))


def test_a_picture_without_tokens_is_masked_and_counted(tmp_path):
    made_dataset(tmp_path, missing=(3, 11))
    found, loader = batches(tmp_path)
    for batch in found:
        for uid, codes, valid in zip(batch.uids, batch["codes"], batch["valid"], strict=True):
            assert bool(valid) == (number_of(uid) not in (3, 11))
            assert bool(valid) or not codes.any()
    assert loader.broken == {"no_tokens": sum(int((~batch["valid"]).sum()) for batch in found)}
    assert loader.broken["no_tokens"] > 0


def test_words_are_drawn_otherwise_each_epoch_and_the_same_from_any_worker_rank_and_restart(tmp_path):
    made_dataset(tmp_path)
    alone, _ = batches(tmp_path)
    by_place = {}
    for at, batch in enumerate(alone):
        for row, uid in enumerate(batch.uids):
            by_place.setdefault(uid, set()).add(tuple(batch["text"][row].tolist()))
        assert TOKENIZER.text(batch["text"][0].tolist()) == f"picture number {number_of(batch.uids[0])}", at
    assert any(len(texts) > 1 for texts in by_place.values())  # two epochs and more
    working, _ = batches(tmp_path, workers=2)
    later, _ = batches(tmp_path, start=12)
    halves = [batches(tmp_path, ranks=Ranks(2, rank))[0] for rank in (0, 1)]
    for at, batch in enumerate(alone):
        assert torch.equal(working[at]["text"], batch["text"])
        assert torch.equal(torch.cat([half[at]["text"] for half in halves]), batch["text"])
        assert at < 2 or torch.equal(later[at - 2]["text"], batch["text"])


def test_broken_tables_are_told_with_their_place_and_the_mend(tmp_path):
    dataset = made_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"tokens/other/00000\.parquet: no table .* python -m training encode"):
        batches(tmp_path, tokens="other")
    path = tmp_path / "tokens/vae/00000.parquet"
    table = pq.read_table(path)
    good = table["codes"].to_pylist()
    for wrong, said in (
        (b"\x01", "not 4 tokens in every row"),
        (np.full(4, 600, "<u2").tobytes(), "beyond the 600 kinds"),
    ):
        codes = pa.array([wrong, *good[1:]], pa.binary())
        pq.write_table(table.set_column(1, "codes", codes), path)
        with pytest.raises(DatasetError, match=said):
            batches(tmp_path)
    path.write_bytes(b"no parquet")
    with pytest.raises(DatasetError, match="no table of image tokens"):
        batches(tmp_path)
    assert read_made(dataset.storage, "vae", "00001")["kinds"] == 600


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_are_told_or_change_nothing(tmp_path_factory, data):
    """Wrong tokens look like any others: pages have checksums."""
    folder = tmp_path_factory.mktemp("flipped")
    made_dataset(folder)
    good = [batch["codes"] for batch in batches(folder)[0]]
    path = folder / "tokens/vae/00000.parquet"
    held = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        held[data.draw(st.integers(0, len(held) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(held)
    try:
        found = [batch["codes"] for batch in batches(folder)[0]]
    except (DatasetError, RecipeError):
        return
    assert all(torch.equal(one, other) for one, other in zip(found, good, strict=True))


def test_tokens_of_another_kind_than_the_models_are_refused_before_the_first_step(tmp_path):
    made_dataset(tmp_path)
    for codes, said in (
        ((16, 600), "4 tokens of 600 kinds, the model reads 16 of 600; set model.grid=2 and model.codes=600"),
        ((4, 64), "the model reads 4 of 64"),
        (None, "this model looks at pictures"),
    ):
        with pytest.raises(RecipeError, match=said):
            batches(tmp_path, codes=codes)
    with pytest.raises(RecipeError, match="this model reads image tokens: python -m training encode"):
        batches(tmp_path, tokens=None)


def test_whose_tokens_they_are_is_remembered(tmp_path):
    made_dataset(tmp_path / "data")
    _, loader = batches(tmp_path / "data")
    assert loader.state(6)["tokens"] == "one"
    made_dataset(tmp_path / "mixed", by=("one", "two"))
    with pytest.raises(DatasetError, match=r"0000[01]\.parquet: .*otherwise than the first shard's"):
        batches(tmp_path / "mixed")
    made_dataset(tmp_path / "other", by=("two", "two"))
    _, other = batches(tmp_path / "other")
    with pytest.raises(FingerprintError, match="other data"):
        other.resume(loader.state(6))
    with pytest.raises(RecipeError, match="same dVAE"):
        batches(tmp_path, datasets=[{"path": str(tmp_path / name), "tokens": "vae"} for name in ("data", "other")])


def test_datasets_with_and_without_tokens_cannot_be_mixed(tmp_path):
    made_dataset(tmp_path)
    with pytest.raises(RecipeError, match="tokens of the same dVAE, or none"):
        batches(tmp_path, datasets=[{"path": str(tmp_path), "tokens": "vae"}, {"path": str(tmp_path)}])
