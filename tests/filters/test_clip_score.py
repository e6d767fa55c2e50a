"""A clip score is what its encoder says of image and caption, one pair at a time; what it cannot tell is null."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from filters.__main__ import SPREAD, main
from filters.base import Batch, batches
from filters.clip_score import ClipScore, ClipScoreSettings
from filters.rules import load_rules
from filters.score import make_steps, plan_text, score
from filters.select import select
from infra.cli import run_main
from infra.dataset import Dataset
from infra.errors import FingerprintError, UsageError
from infra.executors import LocalExecutor, RayExecutor
from infra.jobs import Resources, RunOptions
from infra.rows import Rows
from infra.tables import read_table
from tests.filters.small_datasets import caption_scores, make_dataset
from tests.filters.stored_shards import Sample, picture, store
from tests.servers.commands import CHECKOUT, published
from tests.training.untrained import checkpoint_of
from training.checkpoint import CHECKPOINTS
from training.models.clip import Clip, ClipSettings
from training.models.load import load_encoder
from training.preprocess import Ops, UnreadableImage

# Shapes: E embedding

ROUNDING = 1e-6  # float32, one layer, cosines: other shapes of a batch take other kernels
ARCH = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 64, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SHARDS = {
    "00000": [Sample(f"good {n}", f"a photo of a dog, number {n % 4}", picture(n)) for n in range(9)],
    "00001": [
        Sample("no caption", None, picture(9)),
        Sample("white space", " \n\t", picture(10)),
        Sample("cut", "a dog", picture(0)[:400]),
        Sample("garbage", "a dog", b"\xff\xd8\xff\xe0 but no picture at all"),
        Sample("empty", "a dog", b""),
        Sample("controls", "\x00\x07\u200f\ufeff", picture(11)),
        Sample("endless", "dog " * 20_000, picture(12)),
        Sample("not stored", "a cat", None),
        Sample("last", "a photo of a dog, number 0", picture(3)),
    ],
    "00002": [Sample("nothing stored here", "a cat", None)],
}
UNKNOWN = {"no caption", "white space", "cut", "garbage", "empty"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model: architecture, weights, and others of the same architecture."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "arch.json").write_text(json.dumps(ARCH))
    for seed, name in enumerate(("weights", "others")):
        save_file(clip(seed).clip.state_dict(), folder / f"{name}.safetensors")
    return folder


def clip(seed: int) -> Clip:
    torch.manual_seed(seed)
    return Clip(ClipSettings(arch=ARCH)).eval()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return store(tmp_path / "dataset", SHARDS)


def settings_of(files: Path, **others: Any) -> list[str]:
    """Words for --set."""
    given = {"model": files / "arch.json", "pretrained": files / "weights.safetensors", **others}
    return [f"clip_score.{name}={value}" for name, value in given.items() if value is not None]


def run(dataset: Dataset, files: Path, *, scorers: tuple[str, ...] = ("clip_score",), **others: Any) -> None:
    name, captions = others.pop("name", None), others.pop("captions", ())
    score(
        dataset, scorers, others.pop("executor", LocalExecutor()), name=name, captions=captions,
        settings=settings_of(files, **others),
    )  # fmt: skip


def rows_of(dataset: Dataset, table: str = "clip_score") -> list[dict[str, Any]]:
    return [row for shard in SHARDS for row in table_of(dataset, shard, table).to_pylist()]


def table_of(dataset: Dataset, shard: str, table: str = "clip_score") -> pa.Table:
    return read_table(dataset.storage, f"scores/{table}/{shard}.parquet")


def cosines(dataset: Dataset, table: str = "clip_score") -> np.ndarray:
    """Of all rows in their order, NaN where it is null."""
    return np.array([row["clip_score"] for row in rows_of(dataset, table)], np.float64)


def by_a_bare_loop(dataset: Dataset, files: Path, captions: tuple[str, ...] = ()) -> np.ndarray:
    """One pair after the other, by the same operations and the same encoder."""
    encoder = load_encoder(str(files / "arch.json"), str(files / "weights.safetensors"))
    ops = Ops.parse(encoder.ops)
    found = []
    for shard in SHARDS:
        for pair in Rows(dataset).pairs(shard, images=True, captions=captions):
            for caption in pair.captions:
                try:
                    image = encoder.images(ops(pair.image or b"", np.random.default_rng(0))[None])[0]
                except UnreadableImage:
                    found.append(np.nan)
                    continue
                text = encoder.texts([caption.text])[0]
                found.append(float(image.double() @ text.double()) if caption.text.strip() else np.nan)
    return np.array(found)


def with_captions(dataset: Dataset) -> Dataset:
    """Further captions of some images: some the same as others', and one of no image here."""
    uids = [sample.uid for samples in SHARDS.values() for sample in samples if sample.image is not None]
    keys = [(uid, "blip", n) for uid in uids[::2] for n in range(3)]
    texts = [f"a noise of kind {at % 5}" if at % 4 else "" for at in range(len(keys))]
    half = len(keys) // 2
    tables = {"00000": (keys[:half], texts[:half]), "00001": (keys[half:], texts[half:]), "00002": ([], [])}
    made = {shard: caption_scores(k, text=pa.array(t, pa.string())) for shard, (k, t) in tables.items()}
    return make_dataset(dataset.storage.url, {}, captions={"blip": made})


def test_scores_are_those_of_a_bare_loop_and_unknown_where_there_is_no_picture_or_caption(dataset, files) -> None:
    run(dataset, files)
    np.testing.assert_allclose(cosines(dataset), by_a_bare_loop(dataset, files), atol=ROUNDING, rtol=0)
    words = {sample.uid: sample.word for samples in SHARDS.values() for sample in samples}
    assert {words[row["uid"]] for row in rows_of(dataset) if row["clip_score"] is None} == UNKNOWN
    assert len(np.unique(np.round(cosines(dataset)[:9], 4))) == 9  # nobody has another's


def test_every_caption_of_an_image_is_scored_and_its_image_encoded_once(dataset, files, monkeypatch) -> None:
    from training.models.encoder import Encoder

    seen = {"images": 0, "texts": 0}
    for name in seen:
        real = getattr(Encoder, name)

        def counting(self: Encoder, inputs: Any, name: str = name, real: Any = real) -> torch.Tensor:
            seen[name] += len(inputs)
            return real(self, inputs)

        monkeypatch.setattr(Encoder, name, counting)
    with_captions(dataset)
    run(dataset, files, captions=["blip"])
    stored = [sample for samples in SHARDS.values() for sample in samples if sample.image is not None]
    rows = Rows(dataset)
    captions = [[c.text for p in rows.pairs(shard, captions=["blip"]) for c in p.captions] for shard in SHARDS]
    distinct = [{text for text in texts if text.strip()} for texts in captions]
    read = [sample for sample in stored if sample.word not in ("cut", "garbage", "empty")]
    assert seen == {"images": len(read), "texts": sum(map(len, distinct))}
    found = cosines(dataset)
    assert len(found) > len(stored)
    np.testing.assert_allclose(found, by_a_bare_loop(dataset, files, ("blip",)), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("others", [{"batch": 1}, {"batch": 4, "threads": 3}, {"batch": 500}])
def test_no_score_depends_on_the_batch_or_the_threads(dataset, files, others) -> None:
    run(dataset, files)
    run(dataset, files, name="other", **others)
    np.testing.assert_allclose(cosines(dataset, "other"), cosines(dataset), atol=ROUNDING, rtol=0)


def test_neighbours_and_other_scorers_of_the_pass_change_nothing(dataset, files, tmp_path) -> None:
    run(dataset, files)
    alone = {"00000": SHARDS["00000"][3:5], "00001": SHARDS["00001"][-1:], "00002": SHARDS["00002"]}
    few = store(tmp_path / "few", alone)
    run(few, files, scorers=("image", "clip_score", "text"), batch=2)
    of_uid = {row["uid"]: row["clip_score"] for row in rows_of(dataset)}
    for row in rows_of(few):
        assert row["clip_score"] == pytest.approx(of_uid[row["uid"]], abs=ROUNDING)
    assert all(few.storage.list(f"scores/{name}") for name in ("text", "image"))


@pytest.mark.parametrize(("ahead", "asked_for"), [(0, [1, 2, 3]), (1, [2, 3, 3])])  # on a CPU, and beside a GPU
def test_so_many_batches_are_decoded_ahead_of_the_model(dataset, files, ahead, asked_for) -> None:
    scorer = ClipScore(ClipScoreSettings(model=f"{files}/arch.json", pretrained=f"{files}/weights.safetensors"))
    scorer.setup()
    scorer._ahead = ahead
    given: list[Batch] = []

    def telling():
        for batch in batches(Rows(dataset).pairs("00000", images=True), 3):
            given.append(batch)
            yield batch

    tables = scorer.score_all(telling())
    assert [(next(tables).num_rows, len(given)) for _ in range(3)] == [(3, number) for number in asked_for]
    assert next(tables, None) is None


def test_embeddings_are_the_encoders_in_half_precision(dataset, files) -> None:
    run(dataset, files)
    run(dataset, files, name="emb", embeddings="true")
    table = pa.concat_tables([table_of(dataset, shard, "emb") for shard in SHARDS])
    assert table.schema.field("image_embedding").type == pa.list_(pa.float16(), 16)
    encoder = load_encoder(str(files / "arch.json"), str(files / "weights.safetensors"))
    for row, cosine in zip(table.to_pylist(), cosines(dataset), strict=True):
        if row["clip_score"] is None:
            assert np.isnan(cosine)
            assert row["image_embedding"] is None or row["text_embedding"] is None
        else:
            image, text = np.array(row["image_embedding"], np.float64), np.array(row["text_embedding"], np.float64)
            assert row["clip_score"] == cosine
            assert image @ text == pytest.approx(cosine, abs=2e-3)  # 16 numbers of 11 bits
    first = Ops.parse(encoder.ops)(picture(0), np.random.default_rng(0))
    np.testing.assert_allclose(
        np.array(table["image_embedding"][0].as_py(), np.float32), encoder.images(first[None])[0].numpy(), atol=1e-3
    )  # half precision
    assert (table["image_embedding"].null_count, table["text_embedding"].null_count) == (3, 2)


def test_a_table_with_embeddings_can_be_selected_from_and_explained(dataset, files, capsys) -> None:
    run(dataset, files, name="emb", embeddings="true")
    rules = files / "rules.yaml"
    rules.write_text("rules:\n  - top: emb.clip_score\n    fraction: 0.3\n    of: all\n")
    (told,) = select([dataset], load_rules(str(rules)), "best", LocalExecutor())
    assert told["rows_out"] == 4  # of the 12 that have a score, the one at place 3 and all above
    uid = SHARDS["00000"][0].uid.hex()
    assert run_main(main, "python -m filters", ["explain", dataset.storage.url, uid], SPREAD) == 0
    assert "clip_score" in capsys.readouterr().out


# Which model.


def test_a_run_that_was_trained_here_is_scored_with_by_its_folder(dataset, files, tmp_path) -> None:
    """Its newest checkpoint; a newer one makes other scores, which are refused under the old name."""
    checkpoint_of(clip(0), f"{tmp_path}/run/{CHECKPOINTS}", "clip", 3)
    run(dataset, files)
    before = dataset.storage.stamps()
    run(dataset, files, model=tmp_path / "run", pretrained=None, name="trained")
    assert dataset.storage.read("scores/trained/00000.parquet") == dataset.storage.read(
        "scores/clip_score/00000.parquet"
    )
    # The same weights, wherever they lie, are the same scorer.
    run(dataset, files, model=f"{tmp_path}/run/{CHECKPOINTS}/step-0000000003", pretrained=None)
    assert {name: stamp for name, stamp in dataset.storage.stamps().items() if name in before} == before
    checkpoint_of(clip(1), f"{tmp_path}/run/{CHECKPOINTS}", "clip", 4)
    with pytest.raises(FingerprintError, match="weights"):
        run(dataset, files, model=tmp_path / "run", pretrained=None, name="trained")


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"pretrained": "others.safetensors"}, "weights"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"embeddings": "true"}, "embeddings"),
    ],
)
def test_what_changes_scores_is_refused_under_the_same_name(dataset, files, others, said) -> None:
    others = {name: files / value if name == "pretrained" else value for name, value in others.items()}
    run(dataset, files)
    before = dataset.storage.stamps()
    with pytest.raises(FingerprintError, match=said):
        run(dataset, files, **others)
    assert dataset.storage.stamps() == before
    run(dataset, files, name="other", **others)
    assert (said == "embeddings") == np.array_equal(cosines(dataset, "other"), cosines(dataset), equal_nan=True)


def test_a_worker_with_other_weights_under_the_same_name_is_refused(files, tmp_path) -> None:
    place = shutil.copy(files / "weights.safetensors", tmp_path)
    scorer = ClipScore(ClipScoreSettings(model=f"{files}/arch.json", pretrained=place))
    assert scorer.identity()["arch"]
    shutil.copy(files / "others.safetensors", place)
    with pytest.raises(UsageError, match="another model than where the run began"):
        scorer.setup()


def test_a_worker_that_stands_elsewhere_finds_the_model(files, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(files)
    scorer = ClipScore(ClipScoreSettings(model="./arch.json", pretrained="weights.safetensors"))
    monkeypatch.chdir(tmp_path)
    scorer.setup()
    assert scorer.identity()["ops"] == "decode|resize(32)|center_crop(32)|normalize(clip)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which model? Give --set clip_score.model=ViT-B-32"),
        (["model=ViT-B-32"], "its weights are random; give a tag, a path or a checkpoint"),
        (["model=ViT-B_32", "pretrained=openai"], "did you mean ViT-B-32"),
        (["model={files}/arch.json", "pretrained={files}/gone.safetensors"], "gone.safetensors"),
        (["model=ViT-B-32", "pretrained=openia"], "did you mean openai"),
        (["model={files}/arch.json", "pretrained={files}/weights.safetensors", "dtype=fp16"], "'float32', 'bfloat16'"),
        (["modle=ViT-B-32"], "did you mean model"),
    ],
)
def test_what_is_wrong_with_the_model_is_said_before_anything_is_scored(dataset, files, capsys, words, said) -> None:
    before = published(Path(dataset.storage.url))
    given = [part for word in words for part in ("--set", f"clip_score.{word.format(files=files)}")]
    assert command(dataset, "score", "--local", "--scorers", "clip_score", *given) == 2
    assert said in capsys.readouterr().err
    assert published(Path(dataset.storage.url)) == before


def command(dataset: Dataset, name: str, *words: str) -> int:
    return run_main(main, "python -m filters", [name, dataset.storage.url, *words], SPREAD)


def test_ray_is_asked_for_the_gpus_and_threads_of_the_settings(dataset, files) -> None:
    (step,) = make_steps(dataset, ["clip_score"], settings=settings_of(files, num_gpus=0.5, threads=4))
    assert (step.resources, step.holds) == (Resources(cpus=4, gpus=0.5), True)
    assert plan_text(dataset, ["clip_score"], settings=settings_of(files)) == [
        "score_clip_score: 3 jobs, 0 done before"
    ]


# From start to end.


def test_score_then_select_by_the_shipped_rules(dataset, files, capsys) -> None:
    given = [part for word in settings_of(files) for part in ("--set", word)]
    assert command(dataset, "score", "--local", "--scorers", "clip_score", *given) == 0
    assert "clip_score: 17 rows; no_clip_score 5" in capsys.readouterr().out
    for name in ("clip_top30", "clip_threshold"):
        rules = str(CHECKOUT / f"filters/recipes/{name}.yaml")
        assert command(dataset, "select", "--local", "--rules", rules, "--name", name) == 0
    found = np.sort(cosines(dataset)[~np.isnan(cosines(dataset))])[::-1]
    said = capsys.readouterr().out
    assert f"clip_top30: {(found >= found[int(len(found) * 0.3)]).sum()} of 17 captions kept" in said
    assert f"clip_threshold: {(found >= np.float32(0.28)).sum()} of 17 captions kept" in said


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(dataset, files, tmp_path) -> None:
    shutil.copytree(dataset.storage.url, tmp_path / "stopped")
    stopped = Dataset(tmp_path / "stopped")
    run(dataset, files)
    score(stopped, ["clip_score"], LocalExecutor(), settings=settings_of(files), options=RunOptions(limit=1))
    first = stopped.storage.stamps()
    run(stopped, files)
    assert scores(stopped) == scores(dataset)
    assert first.items() <= {**first, **stopped.storage.stamps()}.items()


def scores(dataset: Dataset) -> dict[str, bytes]:
    return {name: data for name, data in published(Path(dataset.storage.url)).items() if name.startswith("scores/")}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_scores(dataset, files, tmp_path, ray_here: RayExecutor) -> None:
    shutil.copytree(dataset.storage.url, tmp_path / "ray")
    on_ray = Dataset(tmp_path / "ray")
    run(dataset, files)
    run(on_ray, files, executor=ray_here)
    assert scores(on_ray).keys() == scores(dataset).keys()
    # A worker of Ray has one thread, and sums in another order.
    np.testing.assert_allclose(cosines(on_ray), cosines(dataset), atol=ROUNDING, rtol=0)
