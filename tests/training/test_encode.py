"""Image tokens of a dataset: what the model gives of each picture, once; training from them as from pictures."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.errors import FingerprintError, UsageError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.storage import Storage
from tests.training import runs
from tests.training.models.dalles import WORDS, vae_at
from tests.training.shards import make_shards, picture, uid_of
from training.data.tokens import as_codes
from training.encode import EncodeStep, encode
from training.encode_settings import EncodeSettings
from training.models.painter import load_painter
from training.models.token_maker import dvae_of, load_token_maker
from training.objectives.discrete import mapped
from training.preprocess import Ops

SIZES = [7, 5]


@pytest.fixture
def place(tmp_path):
    return make_shards(tmp_path / "data", SIZES, images={3: b"no picture"}), vae_at(tmp_path / "vae")


def run(dataset, vae, name="vae", options=None, **settings):
    return encode(EncodeStep(dataset, vae, name, EncodeSettings(**settings)), LocalExecutor(), options)


def bytes_of(dataset, name="vae"):
    folder = f"{dataset.storage.url}/tokens/{name}"
    return {shard: Storage(folder).read(f"{shard}.parquet") for shard in ("00000", "00001")}


def test_each_picture_has_the_tokens_that_the_model_gives_it_and_what_is_none_is_counted(place):
    dataset, vae = place
    result = run(dataset, vae, batch=2)
    assert (result.counts.rows_in, result.counts.rows_out, result.counts.extra) == (12, 12, {"no_tokens": 1})
    maker = load_token_maker(vae)
    encoder = dvae_of(vae).encoder
    ops, found = Ops.parse(maker.ops), {}
    for shard in ("00000", "00001"):
        table = pq.read_table(f"{dataset.storage.url}/tokens/vae/{shard}.parquet")
        made = json.loads(table.schema.metadata[b"pairmill.made"])
        assert (made["num"], made["kinds"], made["weights"]) == (16, 40, maker.identity()["weights"])
        found |= dict(zip(table["uid"].to_pylist(), table["codes"].to_pylist(), strict=True))
    assert found.keys() == {uid_of(number) for number in range(12)}
    for number in range(12):
        if number == 3:
            assert found[uid_of(number)] is None
            continue
        image = ops(picture(number), np.random.default_rng(0))
        logits = encoder(mapped(image[None])).flatten(2)[0]  # (V, I)
        codes = as_codes(found[uid_of(number)])
        chosen = logits.gather(0, codes[None])[0]
        assert (logits.amax(0) - chosen).max() < 1e-4  # the likeliest, up to what another batch rounds otherwise
    assert len(set(found.values())) > 2


def test_a_run_that_was_stopped_and_other_batches_give_the_same_bytes_and_nothing_is_done_twice(place, tmp_path):
    dataset, vae = place
    assert run(dataset, vae, options=RunOptions(limit=1)).num_run == 1
    assert run(dataset, vae, batch=3).num_run == 1
    assert run(dataset, vae).num_run == 0
    other = make_shards(tmp_path / "other", SIZES, images={3: b"no picture"})
    run(other, vae)
    assert bytes_of(dataset) == bytes_of(other)


def test_another_model_is_refused_under_the_same_name_and_what_is_no_dvae_anywhere(place, tmp_path):
    dataset, vae = place
    run(dataset, vae)
    second = vae_at(tmp_path / "second", seed=5)
    with pytest.raises(FingerprintError, match="Give another --name"):
        run(dataset, second)
    assert run(dataset, second, "second").num_run == 2
    with pytest.raises(UsageError, match="no checkpoint or run there"):
        run(dataset, str(tmp_path), "third")
    with pytest.raises(UsageError, match="letters, digits"):
        run(dataset, vae, "../up")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_from_tokens_and_from_pictures_gives_the_same_loss(precision, tmp_path):
    dataset, vae = make_shards(tmp_path / "data", [13, 11]), vae_at(tmp_path / "vae")
    run(dataset, vae)
    losses = {}
    for way, model, tokens in (("table", {}, "vae"), ("pictures", {"vae": vae}, None)):
        folder = tmp_path / way
        data = json.dumps([{"path": dataset.storage.url, "tokens": tokens}])
        path = runs.recipe(
            folder, tmp_path / "data", model={"name": "dalle", **WORDS, **model}, micro_batch=6,
            engine={"precision": precision},
        )  # fmt: skip
        assert runs.train(path, "--set", f"data.datasets={data}") == 0
        losses[way] = runs.losses(folder)
    assert losses["table"] == losses["pictures"]
    assert len(losses["table"]) == runs.STEPS
    trained, other = str(tmp_path / "table/run"), vae_at(tmp_path / "other", seed=1)
    assert load_painter(trained, vae=vae).maker.grid == 4
    with pytest.raises(UsageError, match="not the dVAE that made the tokens"):
        load_painter(trained, vae=other)
