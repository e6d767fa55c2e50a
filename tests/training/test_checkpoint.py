"""A checkpoint is whole or not there: killed at any file, truncated, corrupt, pickled, of another model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.storage import Storage
from training.checkpoint import FACTS, Checkpoint, CheckpointError, Facts, Keep, folder_of, latest, prune
from training.ranks import Ranks
from training.saver import Saver


class Held:
    """An engine as far as checkpoints know one."""

    def __init__(self, value: float = 0.0, num: int = 3) -> None:
        self.ranks, self.device = Ranks(), torch.device("cpu")
        self.states = {f"block.{at}.weight": self._states(value + at, (at + 1, 2)) for at in range(num)}
        self.states["scale"] = self._states(value, ())
        self.states["seen"] = {"weight": torch.tensor(int(value))}
        self.num_updates = int(value)
        self.kept: dict[str, Tensor] = {}

    @staticmethod
    def _states(value: float, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {key: torch.full(shape, value + at) for at, key in enumerate(("weight", "exp_avg", "exp_avg_sq"))}

    def sizes(self) -> dict[str, int]:
        return {name: states["weight"].numel() for name, states in self.states.items()}

    def read(self, name: str) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.states[name].items()}

    def write(self, name: str, states: Mapping[str, Tensor]) -> None:
        self.states[name] = dict(states)

    def own(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.kept.items()}

    def write_own(self, states: Mapping[str, Tensor]) -> None:
        self.kept = dict(states)

    def counters(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates}

    def finish(self, counters: Mapping[str, Any]) -> None:
        self.num_updates = counters["num_updates"]

    def is_as(self, other: Held) -> bool:
        return self.num_updates == other.num_updates and all(
            torch.equal(value, other.states[name][key])
            for name, states in self.states.items()
            for key, value in states.items()
        )


def save(storage: Storage, step: int, keep: Keep | None = None, **facts: Any) -> None:
    saver = Saver(storage, Ranks(), keep)
    saver.save(Held(step), Facts(step=step, **facts))
    saver.wait()


def newest(storage: Storage) -> Checkpoint:
    url = latest(storage)
    assert url is not None
    return Checkpoint.open(url)


def steps(storage: Storage) -> list[int]:
    """Of the folders that are there, whole or not."""
    return sorted({int(name[5:15]) for name in storage.sizes()})


def test_what_was_saved_is_restored_from_disk_and_object_store(place: str) -> None:
    storage = Storage(place)
    assert latest(storage) is None
    save(storage, 7, samples=70, loader={"position": 70}, metrics={"recall": 0.5, "loss": float("nan")})
    checkpoint = newest(storage)
    assert (checkpoint.facts.samples, checkpoint.facts.loader) == (70, {"position": 70})
    assert checkpoint.facts.metrics == {"recall": 0.5}
    again = Held(0)
    checkpoint.restore(again)
    assert again.is_as(Held(7))
    assert torch.equal(checkpoint.weights()["block.1.weight"], torch.full((2, 2), 8.0))
    assert checkpoint.weights().keys() == again.states.keys()
    names = [Path(name).name for name in storage.list(folder_of(7))]
    assert [name.split(".")[0] for name in names] == [
        "checkpoint",
        "optimizer-00000-of-00001",
        "weights-00000-of-00001",
    ]


def test_who_loads_weights_gets_their_average_where_one_was_kept(tmp_path: Path) -> None:
    storage, held = Storage(tmp_path), Held(3)
    held.states["scale"]["average"] = torch.tensor(0.25)
    saver = Saver(storage, Ranks())
    saver.save(held, Facts(step=3))
    saver.wait()
    found = newest(storage).weights()
    assert (float(found["scale"]), float(found["seen"])) == (0.25, 3)
    assert torch.equal(found["block.1.weight"], held.states["block.1.weight"]["weight"])
    again = Held(0)
    newest(storage).restore(again)
    assert again.is_as(held)


def test_what_changes_after_the_call_is_not_saved(tmp_path: Path) -> None:
    storage, held = Storage(tmp_path), Held(3)
    saver = Saver(storage, Ranks())
    saver.save(held, Facts(step=3))
    for states in held.states.values():
        states["weight"].zero_()
    saver.wait()
    again = Held(0)
    newest(storage).restore(again)
    assert again.is_as(Held(3))


class Killed:
    """A storage that ends its process by SIGKILL before the n-th file is published or removed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, countdown: int) -> None:
        self.countdown = countdown
        for name in ("_publish", "remove", "remove_folder"):
            monkeypatch.setattr(Storage, name, self._counted(getattr(Storage, name)))

    def _counted(self, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.countdown -= 1
            if self.countdown < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call


@pytest.mark.parametrize("again", [4, 3], ids=["the next step", "the same step once more"])
def test_killed_at_any_file_of_a_save_the_one_before_is_whole_and_used(tmp_path: Path, again: int) -> None:
    keep, fates = Keep(last=1), []
    for countdown in range(20):
        storage = Storage(tmp_path / str(countdown))
        save(storage, 3, keep, samples=1)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
        else:
            Killed(pytest.MonkeyPatch(), countdown)
            save(storage, again, keep, samples=2)
            os._exit(0)
        checkpoint = newest(storage)
        held = Held(0)
        checkpoint.restore(held)
        assert held.is_as(Held(checkpoint.facts.step))
        assert (checkpoint.facts.step, checkpoint.facts.samples) in {(3, 1), (again, 2)}
        fates.append((os.WIFSIGNALED(status), checkpoint.facts.samples))
        save(storage, 5, keep)  # goes on, and leaves nothing of the killed one
        assert steps(storage) == [5]
        assert len(storage.list(folder_of(5))) == 3
        assert not any((tmp_path / str(countdown) / ".tmp").iterdir())
        if not os.WIFSIGNALED(status):
            break
    assert {(True, 1), (True, 2), (False, 2)} == set(fates)


@pytest.mark.parametrize("harm", ["no facts", "cut short", "gone", "facts that are no JSON"])
def test_the_newest_that_is_whole_is_taken(tmp_path: Path, harm: str) -> None:
    storage = Storage(tmp_path)
    save(storage, 1)
    save(storage, 2)
    folder = tmp_path / folder_of(2)
    weights = next(folder.glob("weights*"))
    if harm == "no facts":
        (folder / FACTS).unlink()
    elif harm == "cut short":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "gone":
        weights.unlink()
    else:
        (folder / FACTS).write_text("{")
    assert newest(storage).facts.step == 1
    with pytest.raises(CheckpointError, match="step-0000000002"):
        Checkpoint.open(str(folder))


def test_a_changed_byte_is_found_before_anything_is_restored(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    save(storage, 2)
    file = next((tmp_path / folder_of(2)).glob("optimizer*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    held = Held(9)
    with pytest.raises(CheckpointError, match="corrupt"):
        newest(storage).restore(held)
    assert held.is_as(Held(9))


def test_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt may be a pickle"):
        Checkpoint.open(str(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpoint.open(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["../weights-x.safetensors", "/etc/weights-x.safetensors", "weights-0.pt"])
def test_facts_that_name_files_elsewhere_or_of_another_kind_are_refused(tmp_path: Path, name: str) -> None:
    storage = Storage(tmp_path)
    save(storage, 2)
    facts = json.loads(storage.read(f"{folder_of(2)}/{FACTS}"))
    facts["files"][0]["name"] = name
    storage.commit_bytes(f"{folder_of(2)}/{FACTS}", json.dumps(facts).encode())
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.open(str(tmp_path / folder_of(2)))


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    save(storage, 2)
    with pytest.raises(CheckpointError, match=r"block\.3\.weight has no numbers here, 8 in the module"):
        newest(storage).restore(Held(0, num=4))


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for step, recall in enumerate([0.1, 0.9, 0.3, 0.9, 0.2, 0.4], start=1):
        save(storage, step, metrics={"recall": recall, "drawn/fid@4": recall})
    save(storage, 7)
    (tmp_path / folder_of(8)).mkdir()
    (tmp_path / folder_of(8) / "weights-00000-of-00001.ab.safetensors").touch()  # newer than any whole one: let be
    prune(storage, Keep(last=2, best="recall"))
    assert steps(storage) == [4, 6, 7, 8]
    prune(storage, Keep(last=1, best="drawn/fid@4"))  # of a distance the least: of steps 4 and 6 the latter
    assert steps(storage) == [6, 7, 8]
    prune(storage, Keep(last=1, best="unheard of"))
    assert steps(storage) == [7, 8]


def test_a_save_that_failed_is_told_by_wait_and_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    saver = Saver(storage, Ranks())

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "_publish", full)
    saver.save(Held(1), Facts(step=1))
    with pytest.raises(CheckpointError, match="No space left"):
        saver.wait()
    with pytest.raises(CheckpointError, match="No space left"):
        saver.save(Held(2), Facts(step=2))


def test_rank_0_publishes_nothing_until_every_rank_has_told_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import saver as module

    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    storage = Storage(tmp_path)
    writing = module._Writing(storage, Ranks(2, 0), "ab", Facts(step=1), None)
    (tmp_path / folder_of(1)).mkdir()
    (tmp_path / folder_of(1) / "written-00001-of-00002.cd.json").write_text("[]")  # of an earlier, killed save
    with pytest.raises(CheckpointError, match=r"written-00001-of-00002\.ab\.json"):
        writing.write({"weights": {"a": torch.zeros(1)}})
    assert latest(storage) is None
    module._Writing(storage, Ranks(2, 1), "ab", Facts(step=1), None).write({"weights": {"b": torch.ones(1)}})
    writing.write({"weights": {"a": torch.zeros(1)}})
    assert newest(storage).weights() == {"a": torch.zeros(1), "b": torch.ones(1)}
    assert len(storage.list(folder_of(1))) == 3


def test_tensors_are_dealt_to_all_ranks_by_size() -> None:
    from training.saver import _dealt

    sizes = {"a": 10, "b": 6, "c": 5, "d": 0, "e": 4}
    shares = [_dealt(sizes, Ranks(2, rank)) for rank in range(2)]
    assert shares[0] | shares[1] == sizes.keys()
    assert not shares[0] & shares[1]
    assert sorted(sum(sizes[name] for name in share) for share in shares) == [11, 14]
