"""What an encoder is tried on: images in the order that they are stored in, with their captions or their class.

Two forms of folder: datasets that training reads as well (`training.data.source`), and CLIP_benchmark's:

    DATASET/classnames.txt  zeroshot_classification_templates.txt        a class, a template a line
    DATASET/test/0.tar  1.tar … nshards.txt                              or the tars beside classnames.txt
        000000.jpg  000000.cls                                           the number of its class, from 0
        000000.jpg  000000.txt                                           a caption a line
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from infra.errors import DatasetError, UsageError
from infra.shards import IMAGE_ENDINGS, Member, read_at, walk_members
from infra.storage import Storage
from training.data.source import DatasetSettings, Source

CLASSES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
NUM_SHARDS = "nshards.txt"
MAX_TEXT_BYTES = 1 << 20


class Sample(NamedTuple):
    """An image by the place of its bytes, and what belongs to it."""

    name: str
    tar: str
    offset: int  # of the encoded image in the tar, bytes
    size: int  # 0 where there is no image
    captions: Sequence[str]
    label: int | None  # number of its class


class Samples(Protocol):
    """Samples that can be gone through more than once, always in the same order."""

    storage: Storage  # that the tars lie in

    def __iter__(self) -> Iterator[Sample]: ...

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready: what a result names its data by."""


class DatasetSamples:
    """The images of a dataset with all of their surviving captions. Raises DatasetError where there are none."""

    def __init__(self, settings: DatasetSettings) -> None:
        self._settings = settings
        self._source = Source(settings, "image")
        self.storage = self._source.dataset.storage

    def __iter__(self) -> Iterator[Sample]:
        for shard in self._source.shards:
            view = self._source.view(shard)
            texts = view.texts.to_pylist()
            for row, uid in enumerate(view.uids.to_pylist()):
                captions = tuple(text for text in texts[view.first[row] : view.first[row + 1]] if text)
                yield Sample(
                    uid.hex(), f"{shard}.tar", int(view.offsets[row]), int(view.sizes[row]), captions, None
                )  # fmt: skip

    def identity(self) -> Mapping[str, Any]:
        """The folder, and what of it."""
        captions = None if self._settings.selection else list(self._settings.captions)
        return {"path": self.storage.url, "selection": self._settings.selection, "captions": captions}


class BenchmarkSamples:
    """A folder in CLIP_benchmark's form. Raises DatasetError where it has no tars, or lacks some."""

    def __init__(self, path: str, split: str) -> None:
        self.root = Storage(path)
        self.split = split if is_split(self.root, split) else None
        self.storage = Storage(f"{self.root.url}/{split}") if self.split else self.root
        self.tars = sorted(self.storage.list("", ".tar"), key=lambda name: (len(name), name))
        if not self.tars:
            raise DatasetError(f"{self.root.url}: no tars there, nor in {split}/; give the folder that holds them")
        told = read_lines(self.storage, NUM_SHARDS)
        if told and told[0] != str(len(self.tars)):
            raise DatasetError(
                f"{self.storage.url}: {len(self.tars)} tars, though {NUM_SHARDS} says {told[0]}; fetch those that lack"
            )

    def __iter__(self) -> Iterator[Sample]:
        for tar in self.tars:
            with self.storage.open(tar) as file:
                key, image, texts = "", None, dict[str, str]()
                for member in walk_members(file):
                    if member.key != key:
                        if image or texts:
                            yield _sample(tar, key, image, texts)
                        key, image, texts = member.key, None, {}
                    if member.ending in IMAGE_ENDINGS:
                        image = image or member
                    elif member.ending in ("txt", "cls") and member.size <= MAX_TEXT_BYTES:
                        texts[member.ending] = read_at(file, member.offset, member.size).decode("utf-8", "replace")
                if image or texts:
                    yield _sample(tar, key, image, texts)

    def identity(self) -> Mapping[str, Any]:
        """The folder, and which part of it."""
        return {"path": self.root.url, "split": self.split}


def samples_of(settings: DatasetSettings, split: str, *, labelled: bool) -> DatasetSamples | BenchmarkSamples:
    """What lies in a folder. labelled: its classes are wanted, which only tars with `.cls` members tell.

    Raises UsageError for a selection, or tables of captions, where there can be none.
    """
    root = Storage(settings.path)
    if not labelled and not is_split(root, split) and not root.exists(CLASSES):
        return DatasetSamples(settings)
    if settings != DatasetSettings.parse({"path": settings.path}, settings.path):
        raise UsageError(
            f"{settings.path}: read from the tars alone, in CLIP_benchmark's form, which has no selection, no tables "
            "of captions and no index; leave them out"
        )
    return BenchmarkSamples(settings.path, split)


def is_split(root: Storage, split: str) -> bool:
    """Are there tars in the folder of that name?"""
    return bool(root.list(split, ".tar"))


def read_lines(storage: Storage, name: str) -> list[str]:
    """Lines of a small text file that are not empty; none where it is absent."""
    try:
        text = storage.read(name).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _sample(tar: str, key: str, image: Member | None, texts: Mapping[str, str]) -> Sample:
    name = f"{tar}#{key}"
    label = texts.get("cls", "").strip()
    captions = tuple(line.strip() for line in texts.get("txt", "").splitlines() if line.strip())
    if label and not label.isdecimal():
        raise DatasetError(f"{name}.cls: {label[:40]!r} is no class number; write a line's number of {CLASSES}, from 0")
    offset, size = (image.offset, image.size) if image else (0, 0)
    return Sample(name, tar, offset, size, captions, int(label) if label else None)
