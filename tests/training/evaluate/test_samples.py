"""What is tried: each sample of each form of folder once, in the order of storage, with all that belongs to it."""

from __future__ import annotations

import pytest

from infra.errors import DatasetError, UsageError
from infra.storage import Storage
from tests.training.evaluate.oracle import captioned, grey, labelled, write_tars
from tests.training.shards import caption_of, make_selection, make_shards, picture, uid_of
from training.data.source import DatasetSettings
from training.evaluate.samples import BenchmarkSamples, samples_of


def settings(path, **more):
    return DatasetSettings.parse({"path": str(path), **more}, "test")


def bytes_of(samples):
    return [samples.storage.read(s.tar, s.offset, s.offset + s.size) if s.size else None for s in samples]


def test_tars_of_a_split_are_read_in_the_order_of_their_numbers(tmp_path):
    write_tars(tmp_path / "test", [[labelled(at, 3)] for at in range(11)])
    samples = samples_of(settings(tmp_path), "test", labelled=True)
    assert [sample.tar for sample in samples] == [f"{at}.tar" for at in range(11)]
    assert {sample.label for sample in samples} == {3}
    assert bytes_of(samples) == [grey(at) for at in range(11)]


def test_a_line_of_a_text_is_a_caption(tmp_path):
    write_tars(
        tmp_path / "test", [[captioned(0, " one ", "", "two\u2028three"), {"txt": b"no image"}, {"png": grey(1)}]]
    )
    first, second, third = samples_of(settings(tmp_path), "test", labelled=False)
    assert first.captions == ("one", "two", "three")
    assert (second.captions, second.size) == (("no image",), 0)
    assert (third.captions, third.label) == ((), None)


def test_tars_may_lie_beside_the_class_names(tmp_path):
    write_tars(tmp_path, [[labelled(0, 1)]])
    (tmp_path / "classnames.txt").write_text("a\nb")
    samples = samples_of(settings(tmp_path), "test", labelled=False)
    assert isinstance(samples, BenchmarkSamples)
    assert samples.identity() == {"path": str(tmp_path), "split": None}


def test_a_shard_that_lacks_is_told(tmp_path):
    write_tars(tmp_path / "test", [[labelled(0, 1)], [labelled(1, 1)]])
    (tmp_path / "test" / "1.tar").unlink()
    with pytest.raises(DatasetError, match=r"1 tars, though nshards\.txt says 2"):
        samples_of(settings(tmp_path), "test", labelled=True)


def test_a_tar_that_is_cut_short_is_told(tmp_path):
    write_tars(tmp_path / "test", [[labelled(at, 1) for at in range(9)]])
    path = tmp_path / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[: 512 * 9])
    with pytest.raises(DatasetError, match="broken tar"):
        list(samples_of(settings(tmp_path), "test", labelled=True))


def test_a_label_that_is_no_number_is_told(tmp_path):
    write_tars(tmp_path / "test", [[{"png": grey(0), "cls": b"cat"}]])
    with pytest.raises(DatasetError, match=r"0\.tar#s0000000\.cls: 'cat' is no class number"):
        list(samples_of(settings(tmp_path), "test", labelled=True))


def test_a_folder_without_tars_is_told(tmp_path):
    with pytest.raises(DatasetError, match="no tars there, nor in val/"):
        samples_of(settings(tmp_path), "val", labelled=True)


@pytest.mark.parametrize("more", [{"selection": "best"}, {"captions": ["blip"]}, {"index": "elsewhere"}])
def test_what_labelled_tars_cannot_have_is_refused(tmp_path, more):
    write_tars(tmp_path / "test", [[labelled(0, 1)]])
    with pytest.raises(UsageError, match="leave them out"):
        samples_of(settings(tmp_path, **more), "test", labelled=True)


def test_a_dataset_gives_its_images_with_all_captions_that_survive(tmp_path):
    more = {"blip": {0: ["zero", "none"], 3: ["three"]}}
    dataset = make_shards(tmp_path, [2, 3], more=more)
    make_selection(dataset, "some", lambda uid, source, n: uid != uid_of(1) and n == 0, ["web", "blip"])
    samples = list(samples_of(settings(tmp_path, selection="some"), "test", labelled=False))
    assert [sample.name for sample in samples] == [uid_of(number).hex() for number in (0, 2, 3, 4)]
    assert [sample.captions for sample in samples] == [
        (caption_of(0), "zero"), (caption_of(2),), (caption_of(3), "three"), (caption_of(4),),
    ]  # fmt: skip
    storage = Storage(tmp_path)
    assert [storage.read(s.tar, s.offset, s.offset + s.size) for s in samples] == [picture(n) for n in (0, 2, 3, 4)]


def test_samples_can_be_gone_through_twice(tmp_path):
    make_shards(tmp_path / "ours", [2])
    write_tars(tmp_path / "theirs" / "test", [[captioned(0, "a")]])
    for name in ("ours", "theirs"):
        samples = samples_of(settings(tmp_path / name), "test", labelled=False)
        assert list(samples) == list(samples) != []
