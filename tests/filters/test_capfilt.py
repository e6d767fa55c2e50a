"""CapFilt's two scorers: what they write and say is what their model does, one image at a time; nothing else enters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filters.__main__ import SPREAD, main
from filters.base import description
from filters.explain import explain, life_lines
from filters.rules import SelectRecipe, load_rules
from filters.score import make_steps, plan_text, score, summary
from filters.select import select
from infra.cli import run_main
from infra.dataset import Dataset
from infra.executors import LocalExecutor, RayExecutor
from infra.jobs import Resources
from infra.rows import Rows
from infra.tables import open_table, read_table
from infra.verify import Verify
from pipeline.reshard.config import ReshardConfig
from pipeline.reshard.run import reshard
from tests.filters.small_datasets import verdicts
from tests.filters.stored_shards import Sample, picture, store
from tests.servers.commands import CHECKOUT, published
from tests.training.models.blips import CLIP, SIZES, blip
from tests.training.untrained import checkpoint_of
from training.data.source import DatasetSettings, Source
from training.models.blip_encoder import BlipEncoder
from training.models.captioner import Captioner
from training.models.clip import ClipSettings
from training.models.clip_spec import build
from training.models.load import load_captioner, load_matcher
from training.preprocess import Ops

ROUNDING = 1e-6  # float32, one layer, a probability: other shapes of a batch take other kernels
NATS = 1e-4  # the same of a sum over twenty tokens, each of a few nats
NUM_GOOD = 7
BROKEN = {"cut": picture(0)[:400], "garbage": b"\xff\xd8\xff\xe0 but no picture at all", "empty": b""}
SHARDS = {
    "00000": [Sample(f"good {n}", f"a photo of a dog, number {n % 4}", picture(n)) for n in range(NUM_GOOD)],
    "00001": [
        Sample("no caption", None, picture(9)),
        Sample("white space", " \n\t", picture(10)),
        *(Sample(word, "a dog", data) for word, data in BROKEN.items()),
        Sample("endless", "dog " * 20_000, picture(12)),
        Sample("not stored", "a cat", None),
        Sample("last", "a photo of a dog, number 0", picture(3)),
    ],
    "00002": [Sample("nothing stored here", "a cat", None)],
}
STORED = [sample for samples in SHARDS.values() for sample in samples if sample.image is not None]
READ = [sample for sample in STORED if sample.word not in BROKEN]
SHORT = ("caption.num=2", "caption.min_length=0")  # of which some have no words


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints: a captioner, another, a filter, and one that does both."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, entry) in enumerate(
        {"captioner": "blip.caption", "other": "blip.caption", "filter": "blip.retrieval", "both": "blip"}.items()
    ):
        module = blip(entry, seed, 3.0, **SIZES)
        with torch.no_grad():
            if module.head is not None:
                module.head.bias[module.tokenizer.end] += 7  # captions of any length
            if module.matching is not None:
                module.matching.weight.mul_(6)  # verdicts of either kind
                module.matching.bias.copy_(torch.tensor([0.0, 1.0]))
        checkpoint_of(module, folder / name, entry)
    checkpoint_of(build(ClipSettings(arch=CLIP)), folder / "clip", "clip")  # type: ignore[arg-type]
    return folder


def checkpoint(models: Path, name: str) -> str:
    return f"{models}/{name}/step-0000000003"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = store(tmp_path_factory.mktemp("pristine") / "dataset", SHARDS)
    marks = dataset.ledger.done("download")
    dataset.write_sizes({dataset.tar(shard): mark.counts.rows_out for shard, mark in marks.items()})
    return Path(dataset.storage.url)


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Dataset:
    return Dataset(shutil.copytree(pristine, tmp_path / "dataset"))


@pytest.fixture(scope="module")
def judged(pristine: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two captions for each image, and all of its captions judged, by one command."""
    dataset = Dataset(shutil.copytree(pristine, tmp_path_factory.mktemp("judged") / "dataset"))
    run(dataset, models, "caption", "itm", more=SHORT)
    return dataset


@pytest.fixture
def copy(judged: Dataset, tmp_path: Path) -> Dataset:
    return Dataset(shutil.copytree(judged.storage.url, tmp_path / "copy"))


def words(models: Path, *scorers: str, caption: str = "captioner", itm: str = "filter") -> list[str]:
    """Words for --set: where each scorer's model lies."""
    places = {"caption": caption, "itm": itm}
    return [f"{name}.checkpoint={checkpoint(models, places[name])}" for name in scorers if name in places]


def run(dataset: Dataset, models: Path, *scorers: str, more: Any = (), executor: Any = None, **others: Any) -> Any:
    """What the command does; its facts."""
    which = {name: others.pop(name) for name in ("caption", "itm") if name in others}
    settings = [*words(models, *scorers, **which), *more]
    return summary(score(dataset, scorers, executor or LocalExecutor(), settings=settings, **others), dataset)


def rows_of(dataset: Dataset, folder: str) -> list[dict[str, Any]]:
    """A table's rows over all shards."""
    return [row for name in dataset.tables(folder) for row in read_table(dataset.storage, name).to_pylist()]


def captions_of(dataset: Dataset, table: str = "blip") -> dict[tuple[bytes, int], dict[str, Any]]:
    return {(row["uid"], row["n"]): row for row in rows_of(dataset, f"captions/{table}")}


def texts_of(dataset: Dataset, table: str = "blip") -> dict[tuple[bytes, int], str]:
    return {key: row["text"] for key, row in captions_of(dataset, table).items()}


def itm_of(dataset: Dataset, table: str = "itm") -> dict[tuple[bytes, str, int], float]:
    """Of each caption; NaN where it is null."""
    found = rows_of(dataset, f"scores/{table}")
    return {(row["uid"], row["source"], row["n"]): np.nan if row["itm"] is None else row["itm"] for row in found}


def assert_near(found: Dataset, wanted: Dataset, table: str = "blip", scores: str = "itm") -> None:
    """The same words, and numbers that differ by rounding."""
    one, other = captions_of(found, table), captions_of(wanted)
    assert [(key, row["text"], row["num_tokens"]) for key, row in one.items()] == [
        (key, row["text"], row["num_tokens"]) for key, row in other.items()
    ]
    np.testing.assert_allclose(
        [row["score"] for row in one.values()], [row["score"] for row in other.values()], atol=NATS, rtol=0
    )
    assert list(itm_of(found, scores)) == list(itm_of(wanted))
    one, other = list(itm_of(found, scores).values()), list(itm_of(wanted).values())
    np.testing.assert_allclose(one, other, atol=ROUNDING, rtol=0)


# What they say.


def test_each_readable_image_gets_its_captions_and_what_is_not_there_is_counted(judged, models) -> None:
    facts = run(judged, models, "caption", "itm", more=SHORT)
    found = rows_of(judged, "captions/blip")
    told, judgements = facts["tables"]["captions/blip"], facts["tables"]["itm"]
    wanted = [(sample.uid, "blip", n) for sample in READ for n in range(2)]
    lacking = set(wanted) - {(row["uid"], row["source"], row["n"]) for row in found}
    assert [(row["uid"], row["source"], row["n"]) for row in found] == [key for key in wanted if key not in lacking]
    assert 0 < len(lacking) < len(wanted) / 2
    assert told["dropped"] == {"unreadable_image": 2 * len(BROKEN), "no_words": len(lacking)}
    assert (told["rows_in"], told["rows_out"]) == (2 * len(STORED), len(found))
    assert all(row["text"].strip() and row["num_tokens"] >= 1 and row["score"] < 0 for row in found)
    assert len({row["text"] for row in found}) > len(found) * 0.9
    assert judgements["rows_in"] == judgements["rows_out"] == len(STORED) + len(found)
    assert judgements["dropped"] == {}
    schema = open_table(judged.storage, "captions/blip/00000.parquet").schema_arrow
    assert all(description(schema.field(name)) for name in ("text", "score", "num_tokens"))


def test_every_caption_of_either_kind_is_judged_in_the_rows_order_or_unknown(judged) -> None:
    written = [key[:2] for key in captions_of(judged)]
    keys = [
        key
        for sample in STORED
        for key in [(sample.uid, "web", 0), *((uid, "blip", n) for uid, n in written if uid == sample.uid)]
    ]
    found = itm_of(judged)
    assert list(found) == keys
    blank = {sample.uid for sample in STORED if not (sample.caption or "").strip()}
    unread = {sample.uid for sample in STORED} - {sample.uid for sample in READ}
    unknown = {key for key, value in found.items() if np.isnan(value)}
    assert unknown == {key for key in keys if key[0] in unread or (key[1] == "web" and key[0] in blank)}
    known = [value for value in found.values() if not np.isnan(value)]
    assert min(known) < 0.3 < 0.7 < max(known)  # the laws below are of both kinds


def test_captions_and_verdicts_are_those_of_a_bare_loop(judged, models) -> None:
    captioner = load_captioner(checkpoint(models, "captioner"))
    module = load_matcher(checkpoint(models, "filter"))._module
    (step,) = make_steps(judged, ["caption"], settings=[*words(models, "caption"), *SHORT])
    texts, known = texts_of(judged), itm_of(judged)
    ops, num_compared = Ops.parse(captioner.ops), 0
    for shard in SHARDS:
        for pair in Rows(judged).pairs(shard, images=True, captions=["blip"]):
            if pair.uid not in {sample.uid for sample in READ}:
                continue
            image = ops(pair.image, np.random.default_rng(0))[None]
            (written,) = captioner.write(image, [pair.uid], step.scorer.settings)
            assert [one.text for one in written] == [texts.get((pair.uid, n), "") for n in range(2)]
            for one in (one for one in pair.captions if one.text.strip()):
                ids = module.tokenizer([one.text])
                with torch.inference_mode():
                    (logits,) = module.judge(ids, module.text.look(module.vision(image)))
                want = float(logits.double().softmax(0)[1])
                assert known[pair.uid, one.source, one.n] == pytest.approx(want, abs=ROUNDING)
                num_compared += 1
    assert num_compared == sum(not np.isnan(value) for value in known.values())


def test_a_greedy_caption_is_the_likeliest_token_time_after_time(dataset, models) -> None:
    """Read anew from the start for each token: no cache, no batch."""
    run(dataset, models, "caption", more=["caption.method=greedy", "caption.repetition_penalty=1"])
    captioner = load_captioner(checkpoint(models, "captioner"))
    module, tokenizer = captioner._module, captioner._module.tokenizer
    for sample in READ:
        image = Ops.parse(captioner.ops)(sample.image, np.random.default_rng(0))[None]
        ids = tokenizer.prompts(1)
        with torch.inference_mode():
            seen = module.text.look(module.vision(image))
            while ids.shape[1] < 20 and ids[0, -1] != tokenizer.end:
                logits = module.head(module.text(ids, "decoder", context=seen), module.text.tokens.weight)[0, -1]
                if ids.shape[1] < 5:
                    logits[tokenizer.end] = -torch.inf
                ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        assert texts_of(dataset).get((sample.uid, 0), "") == tokenizer.text(ids[0].tolist())


@pytest.mark.parametrize("method", ["sample", "beam"])
def test_the_first_of_three_captions_is_that_of_one(dataset, models, method) -> None:
    given = [f"caption.method={method}"]
    run(dataset, models, "caption", more=given)
    run(dataset, models, "caption", more=[*given, "caption.num=3"], name="three")
    one, three = texts_of(dataset), texts_of(dataset, "three")
    assert {key: text for key, text in three.items() if key[1] == 0} == one
    assert len(one) == len(READ)
    assert len(set(three.values())) > len(set(one.values()))


def test_a_prompt_is_no_part_of_a_caption(dataset, models) -> None:
    prompt = "three large blue hearts above "
    run(dataset, models, "caption", more=[f"caption.prompt={prompt}", "caption.min_length=7"])
    run(dataset, models, "caption", more=["caption.prompt=''", "caption.min_length=7"], name="bare")
    texts = list(texts_of(dataset).values())
    assert len(texts) == len(READ)
    assert not any(text.startswith("three large blue") for text in texts)
    assert max(row["num_tokens"] for row in captions_of(dataset).values()) <= 20 - 6  # [DEC] and five words are given
    assert list(texts_of(dataset, "bare").values()) != texts


# What they do not depend on.


@pytest.mark.parametrize("more", [(1, 1), (3, 2), (500, 1)])
def test_neither_batch_nor_threads_change_a_word(judged, dataset, models, more) -> None:
    batch, threads = more
    given = [f"{name}.{option}" for name in ("caption", "itm") for option in (f"batch={batch}", f"threads={threads}")]
    run(dataset, models, "caption", "itm", more=[*SHORT, *given])
    assert_near(dataset, judged)


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_shards_and_neighbours_change_no_word(judged, models, tmp_path, num_shards) -> None:
    """The same images in other shards, among them a stranger, and the other way round."""
    parts: dict[str, list[Sample]] = {f"{n:03d}": [] for n in range(num_shards)}
    for at, sample in enumerate([Sample("a stranger", "a cat", picture(20)), *reversed(STORED)]):
        parts[f"{at % num_shards:03d}"].append(sample)
    other = store(tmp_path / "other", parts)
    run(other, models, "caption", "itm", more=SHORT)
    known = {sample.uid for sample in STORED}
    assert {key: text for key, text in texts_of(other).items() if key[0] in known} == texts_of(judged)
    found, wanted = itm_of(other), itm_of(judged)
    np.testing.assert_allclose([found[key] for key in wanted], list(wanted.values()), atol=ROUNDING, rtol=0)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_writes_the_same_words(judged, dataset, models, ray_here: RayExecutor) -> None:
    run(dataset, models, "caption", "itm", more=SHORT, executor=ray_here)
    assert_near(dataset, judged)  # a worker of Ray has one thread, and sums in another order


def test_an_image_is_encoded_once_by_each_model(dataset, models, monkeypatch) -> None:
    seen = {"write": 0, "look": 0}
    for kind, name in ((Captioner, "write"), (BlipEncoder, "look")):
        real = getattr(kind, name)

        def counting(self: Any, images: Any, *others: Any, name: str = name, real: Any = real) -> Any:
            seen[name] += len(images)
            return real(self, images, *others)

        monkeypatch.setattr(kind, name, counting)
    run(dataset, models, "caption", "itm", more=["caption.num=4"])
    assert len(rows_of(dataset, "scores/itm")) == len(STORED) + 4 * len(READ)
    assert seen == {"write": len(READ), "look": len(READ)}


# What becomes of them.


@pytest.fixture(scope="module")
def selected(judged: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """By the shipped rule, and by the better caption of each image."""
    dataset = Dataset(shutil.copytree(judged.storage.url, tmp_path_factory.mktemp("selected") / "dataset"))
    best = SelectRecipe(captions=("blip",), rules=({"best_caption": "itm.itm", "at_least": 0.5},))
    for recipe, name in ((load_rules(str(CHECKOUT / "filters/recipes/capfilt.yaml")), "capfilt"), (best, "best")):
        select([dataset], recipe, name, LocalExecutor())
    return dataset


def survivors(dataset: Dataset, name: str) -> list[tuple[bytes, str, int]]:
    return [key for *key, reason in map(list, verdicts(dataset, name)) if reason is None for key in [tuple(key)]]


def text_of(dataset: Dataset, key: tuple[bytes, str, int]) -> str | None:
    web = {sample.uid: sample.caption for sample in STORED}
    return web[key[0]] if key[1] == "web" else texts_of(dataset)[key[0], key[2]]


def test_what_does_not_match_or_is_not_known_falls_and_both_kinds_stay(selected: Dataset) -> None:
    reasons = {
        key: "no_itm" if np.isnan(value) else "does_not_match" if value < 0.5 else None
        for key, value in itm_of(selected).items()
    }
    assert {(uid, source, n): reason for uid, source, n, reason in verdicts(selected, "capfilt")} == reasons
    assert set(reasons.values()) == {None, "does_not_match", "no_itm"}
    kept = [key for key, reason in reasons.items() if reason is None]
    assert {source for _, source, _ in kept} == {"web", "blip"}
    assert len({uid for uid, _, _ in kept}) < len(kept)  # some images keep several


def test_of_an_image_the_best_caption_alone_may_stay(selected: Dataset) -> None:
    known = {key: value for key, value in itm_of(selected).items() if value >= 0.5}
    best = {uid: max(value for key, value in known.items() if key[0] == uid) for uid, _, _ in known}
    kept = survivors(selected, "best")
    assert [known[key] for key in kept] == [best[uid] for uid in dict.fromkeys(uid for uid, _, _ in known)]


@pytest.mark.parametrize("name", ["capfilt", "best"])
@pytest.mark.parametrize("unit", ["caption", "image"])
def test_the_loader_sees_the_survivors_and_nothing_else(selected: Dataset, name: str, unit: Any) -> None:
    source = Source(DatasetSettings(path=selected.storage.url, selection=name), unit)
    found = [
        (uid, text)
        for view in map(source.view, source.shards)
        for at, uid in enumerate(view.uids.to_pylist())
        for text in view.texts[view.first[at] : view.first[at + 1]].to_pylist()
    ]
    kept = survivors(selected, name)
    assert found == [(key[0], text_of(selected, key)) for key in kept]
    assert source.sizes.sum() == (len(kept) if unit == "caption" else len({uid for uid, _, _ in kept}))


def test_a_dataset_with_captions_and_scores_of_models_is_whole(selected: Dataset) -> None:
    assert [str(finding) for finding in Verify(selected, complete=True).findings()] == []


def test_a_life_tells_what_was_said_of_each_of_its_captions(selected: Dataset) -> None:
    for sample in STORED:
        (life,) = explain(selected, sample.uid.hex())
        said = "\n".join(life_lines(life))
        keys = [key for key in itm_of(selected) if key[0] == sample.uid]
        assert [(row["source"], row["n"]) for row in life.scores["itm"]] == [key[1:] for key in keys]
        for _, source, n in keys:
            assert "itm: itm " in said if source == "web" else f"itm ({source} {n}): itm " in said
        assert len(life.verdicts["capfilt"]) == len(keys)


def test_resharded_captions_of_either_kind_keep_their_images_and_names(selected: Dataset, tmp_path: Path) -> None:
    out = Dataset(tmp_path / "out")
    reshard(selected, out, "capfilt", ReshardConfig(shard_size=3), LocalExecutor())
    kept = survivors(selected, "capfilt")
    first = {key[0]: key for key in reversed(kept)}
    rows = {row["uid"]: row for shard in out.shards() for row in read_table(out.storage, out.table(shard)).to_pylist()}
    assert list(rows) == list(dict.fromkeys(uid for uid, _, _ in kept))
    for uid, row in rows.items():
        assert (row["caption"], row["caption_source"], row["caption_n"]) == (
            text_of(selected, first[uid]), *first[uid][1:]
        )  # fmt: skip
    made = {(row["uid"], row["source"], row["n"]): row["text"] for row in rows_of(out, "captions/blip")}
    assert made == {key: text_of(selected, key) for key in kept if key[1] == "blip"}
    told = [open_table(one.storage, name).schema_arrow.metadata[b"pairmill.made"]
            for one in (selected, out) for name in one.tables("captions/blip")]  # fmt: skip
    assert len(set(told)) == 1
    assert [str(finding) for finding in Verify(out, complete=True).findings()] == []


# The command.


def command(dataset: Dataset, *given: str) -> int:
    return run_main(main, "python -m filters", ["score", dataset.storage.url, "--local", *given], SPREAD)


def spread(settings: list[str]) -> list[str]:
    return [part for word in settings for part in ("--set", word)]


def test_the_command_says_what_it_would_do_then_does_it_and_tells_it(dataset, models, capsys) -> None:
    before = published(Path(dataset.storage.url))
    given = ("--scorers", "caption,itm", *spread([*words(models, "caption", "itm"), *SHORT]))
    assert command(dataset, *given, "--dry-run") == 0
    lines = ["captions_blip: 3 jobs, 0 done before", "score_itm: 3 jobs, 0 done before"]
    assert capsys.readouterr().out.splitlines() == lines
    assert published(Path(dataset.storage.url)) == before
    assert command(dataset, *given, "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    url = dataset.storage.url
    assert facts["paths"] == [f"{url}/captions/blip", f"{url}/scores/itm"]
    assert set(facts["tables"]) == {"captions/blip", "itm"}
    assert facts["dropped"] == facts["tables"]["captions/blip"]["dropped"]
    assert facts["rows_in"] == facts["rows_out"] + sum(facts["dropped"].values())
    num_blank = sum(not (sample.caption or "").strip() for sample in READ)
    assert facts["tables"]["itm"]["unknown"] == {"no_itm": len(BROKEN) + num_blank}
    settings = [*words(models, "caption", "itm"), "caption.threads=3", "itm.num_gpus=0.5"]
    steps = make_steps(dataset, ["caption", "itm"], settings=settings)
    assert [step.resources for step in steps] == [Resources(cpus=3), Resources(gpus=0.5)]
    assert plan_text(dataset, ["caption"], settings=[*words(models, "caption"), *SHORT]) == [
        "captions_blip: 3 jobs, 3 done before"
    ]


@pytest.mark.parametrize(
    ("scorer", "given", "said"),
    [
        ("caption", [], "caption: which model? Give --set caption.checkpoint=RUN"),
        ("itm", [], "itm: which model? Give --set itm.checkpoint=RUN"),
        ("caption", ["checkpoint={models}/gone"], "gone"),
        ("caption", ["checkpoint={filter}"], "a filter cannot write captions; give a blip or blip.caption"),
        ("itm", ["checkpoint={captioner}"], "a captioner cannot tell whether an image and a text match"),
        ("itm", ["checkpoint={clip}"], "holds a clip, not a blip"),
        ("caption", ["checkpoint={clip}"], "holds a clip, not a blip"),
        ("caption", ["checkpoint={captioner}", "vocab=bert.txt"], "brings its vocabulary; leave vocab out"),
        ("caption", ["checkpoint={captioner}", "mehtod=beam"], "did you mean method"),
        ("caption", ["checkpoint={captioner}", "method=best"], "'greedy', 'beam' or 'sample'"),
        ("caption", ["checkpoint={captioner}", "method=beam", "num=4"], "num=4 texts of num_beams=3; set num_beams: 4"),
        ("caption", ["checkpoint={captioner}", "method=greedy", "num=2"], "greedy search finds one text; set method"),
        ("itm", ["checkpoint={filter}", "num=2"], "unknown key num"),
    ],
)
def test_a_wrong_model_or_setting_is_told_before_anything_is_made(dataset, models, capsys, scorer, given, said) -> None:
    before = published(Path(dataset.storage.url))
    places = {name: checkpoint(models, name) for name in ("captioner", "filter", "clip")} | {"models": models}
    settings = [f"{scorer}.{word.format(**places)}" for word in given]
    assert command(dataset, "--scorers", scorer, *spread(settings)) == 2
    assert said in capsys.readouterr().err
    assert published(Path(dataset.storage.url)) == before
