"""Loader: CPU a sample, time to resume, and which laws hold: ours, MosaicML Streaming's and Megatron-Energon's.

    pip install --target STREAMING --no-deps mosaicml-streaming==0.13.0 python-snappy cramjam zstd catalogue paramiko
    pip install --target ENERGON --no-deps megatron-energon==7.4.1 multi-storage-client rapidyaml filetype mfusepy \\
        xattr lark wcmatch bracex "prettytable<4" deprecation
    python -m benchmarks.loader_peers --streaming STREAMING --energon ENERGON [--photos ../shared/data/photos]

A folder that is not given leaves that peer out. All read the same photos and captions, batches of 64, and prepare them
by our own operations (decode, random crop to 112 px, normalise), so that what differs is the loader; nobody tokenises.
Streaming reads its own format, made from the shards; Energon reads the shards, with its index. Each run is a process of
its own, rounds are interleaved, and medians are told. CPU is that of all the processes of a run while batches flow:
start-up is left out. Time to the first batch begins when the libraries are imported, and the files are in the page
cache. Laws are tried by running an epoch to its end, from a state saved at its middle; a batch is a set of samples.

To ours' favour: the operations, which write into the batch's own rows; the peers' are made to do so too. Against ours:
a worker comes from a fork server, which imports torch anew, where the peers fork; and each sample has a generator of
its own, so that a restart repeats the crops, where the peers get one a process. To Energon's favour: its epoch, which
only an iteration without repeating has; in the laws, a batch is two micro-batches of 32, by which alone it goes on with
other ranks; and its tool that deals states to ranks is helped where it fails, with a folder and with file names.
Against it: a worker of it saves its state once in 60 s at most, and what came since is made again after a restart.
The set is small: what grows with an epoch does not show. Its number of samples is odd, as in life.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from itertools import chain, islice, product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import psutil
import torch

from benchmarks import loader as photos
from infra.torchvision_here import make_importable
from training.preprocess import Ops, set_up_worker

OPS = "decode|random_resized_crop(112)|normalize(clip)"
BATCH, SEED = 64, 0
SHARDS, SAMPLES = 3, 681
MIDDLE, WARM, TIMED = 16, 4, 24  # batches
LIMIT_S = 60.0  # of a run


@dataclass(frozen=True)
class Job:
    """What one process of a run does."""

    side: str
    work: str
    ranks: int = 1
    rank: int = 0
    workers: int = 0
    parts: int = 1  # micro-batches of a step that Energon makes on a rank
    state: str | None = None  # a file, to go on from
    saved: str | None = None  # the same, to be written at the epoch's middle
    stop: int | None = None  # after so many batches; None: at the end of the epoch


class Feed(NamedTuple):
    """A loader at work: the samples of each batch, by name, and what writes its state."""

    batches: Iterator[list[str]]
    save: Callable[[str], None]


class Row(NamedTuple):
    """Medians of some rounds."""

    cpu_ms: float  # a sample
    first_s: float  # until the first batch of an epoch
    resumed_s: float  # until the first batch of its second half


class Refused(Exception):
    """A run that gave nothing, and the last words of it."""


class Law(NamedTuple):
    """What is tried: (ranks, workers of each) before and after a restart at the middle of an epoch."""

    text: str
    before: tuple[int, int]
    after: tuple[int, int] | None = None


LAWS = (
    Law("each sample once in an epoch, 1 rank", (1, 1)),
    Law("each sample once in an epoch, 2 ranks", (2, 1)),
    Law("resumed with the same ranks and workers", (1, 1), (1, 1)),
    Law("resumed with 2 workers, not 1", (1, 1), (1, 2)),
    Law("resumed with 2 ranks, not 1", (1, 1), (2, 1)),
    Law("resumed with 2 ranks of 1 worker, not 1 of 2", (1, 2), (2, 1)),
    Law("resumed with 1 rank of 2 workers, not 2 of 1", (2, 1), (1, 2)),
)


def ours() -> Callable[[Job], Feed]:
    from training.data.loader import DataSettings, Loader
    from training.ranks import Ranks

    for late in ("pandas", "pyarrow.dataset"):  # which pyarrow imports with the first table
        import_module(late)

    def make(job: Job) -> Feed:
        datasets = [{"path": str(shards_of(job))}]
        data = DataSettings.parse({"datasets": datasets, "batch": BATCH, "workers": job.workers}, "data")
        made = Loader(data, OPS, no_tokens, SEED, ranks=Ranks(job.ranks, job.rank))
        start = made.resume(json.loads(Path(job.state).read_text())) if job.state else 0
        given = 0

        def batches() -> Iterator[list[str]]:
            nonlocal given
            for batch in made.batches(start):
                given += BATCH
                yield [uid.hex() for uid in batch.uids]

        def of_epoch() -> Iterator[list[str]]:
            for names, planned in zip(batches(), made.plan(start), strict=False):
                assert names == [sample.uid.hex() for sample in planned]
                if not (first := [sample.uid.hex() for sample in planned if sample.epoch == 0]):
                    return
                yield first

        def save(path: str) -> None:
            Path(path).write_text(json.dumps(made.state(start + given)))

        return Feed(batches() if job.stop else of_epoch(), save)

    return make


def streaming() -> Callable[[Job], Feed]:
    library, distributed = import_module("streaming"), torch.distributed

    def make(job: Job) -> Feed:
        if job.ranks > 1:
            distributed.init_process_group("gloo")
        size = BATCH // job.ranks
        dataset = library.StreamingDataset(local=mds_of(job), shuffle=True, shuffle_seed=SEED, batch_size=size)
        made = library.StreamingDataLoader(dataset, batch_size=size, num_workers=job.workers, collate_fn=collated)
        if job.state:
            made.load_state_dict(json.loads(Path(job.state).read_text()))

        def save(path: str) -> None:
            if job.rank == 0:
                Path(path).write_text(json.dumps(made.state_dict()))

        return Feed((batch["key"] for batch in made), save)

    return make


def collated(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"key": [sample["key"] for sample in samples], "image": decoded([sample["jpg"] for sample in samples])}


def energon() -> Callable[[Job], Feed]:
    library = import_module("megatron.energon")

    def batch(self: Any, samples: Sequence[Any]) -> dict[str, Any]:
        return {"key": [each.__key__ for each in samples], "image": decoded([each.image for each in samples])}

    encoder = type("Encoder", (library.TaskEncoder,), {"decoder": None, "batch": library.stateless(batch)})

    def make(job: Job) -> Feed:
        among = library.WorkerConfig(rank=job.rank, world_size=job.ranks, num_workers=job.workers)
        dataset = library.get_train_dataset(
            str(shards_of(job)), worker_config=among, batch_size=BATCH // job.ranks // job.parts, repeat=False,
            shuffle_buffer_size=100, max_samples_per_sequence=100, task_encoder=encoder(),
        )  # fmt: skip
        made = library.get_savable_loader(dataset)
        if job.state:  # a pickle, as Energon has it; this one was written by the run before
            made.restore_state_rank(torch.load(redistributed(job), weights_only=False))

        def save(path: str) -> None:
            torch.save(made.save_state_rank(), f"{path}.{job.rank}")

        return Feed(joined((batch["key"] for batch in made), job.parts), save)

    return make


def redistributed(job: Job) -> str:
    """The file of this rank's state, by Energon's own tool where the number of ranks has changed."""
    state = Path(str(job.state))
    saved = sorted(str(path) for path in state.parent.glob(f"{state.name}.*"))
    if len(saved) == job.ranks:
        return saved[job.rank]
    tool: Any = import_module("megatron.energon.tools.checkpoint")
    folder = Path(f"{state}-for-{job.rank}-of-{job.ranks}")
    folder.mkdir()
    if len(saved) == 1:  # from one name the tool cannot tell how those of other ranks go on
        tool.detect_and_replicate_pattern = lambda names: f"{state.name}.{{}}".format
    tool.command_redist.main([*saved, str(folder), "--new-world-size", str(job.ranks)], standalone_mode=False)
    return str(folder / f"{state.name}.{job.rank}")


def no_tokens(texts: Sequence[str]) -> torch.Tensor:
    return torch.zeros(len(texts), 1, dtype=torch.int64)


@cache
def prepared() -> tuple[Ops, np.random.Generator]:
    """The operations and the chance of this process."""
    return Ops.parse(OPS), np.random.default_rng()


def decoded(images: Sequence[bytes]) -> torch.Tensor:
    """Encoded images → (B, 3, H, W), as our own reader fills a batch."""
    ops, rng = prepared()
    out = torch.zeros(len(images), 3, ops.size, ops.size)
    if torch.utils.data.get_worker_info() is not None:
        cast(Any, out).share_memory_()
    for row, data in zip(out, images, strict=True):
        ops.into(data, rng, row)
    return out


def joined(parts: Iterator[list[str]], num: int) -> Iterator[list[str]]:
    while some := list(islice(parts, num)):
        yield list(chain(*some))


def shards_of(job: Job) -> Path:
    return Path(job.work) / "shards"


def mds_of(job: Job) -> str:
    return f"{job.work}/mds"


def convert(job: Job) -> None:
    """What a peer reads, from the shards."""
    if job.side == "streaming":
        columns = {"key": "str", "jpg": "bytes", "txt": "str"}
        with import_module("streaming").MDSWriter(out=mds_of(job), columns=columns) as writer:
            for path in sorted(shards_of(job).glob("*.tar")):
                for sample in import_module("webdataset").WebDataset(str(path), shardshuffle=False):
                    row = {"key": sample["__key__"], "jpg": sample["jpg"], "txt": sample["txt"].decode()}
                    writer.write(row)
    elif job.side == "energon":
        said = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample",
                "--num-workers", "1"]  # fmt: skip
        fields = json.dumps({"image": "jpg", "caption": "txt"})
        tool = import_module("megatron.energon.tools.prepare").command
        tool.main([str(shards_of(job)), *said, "--field-map", fields], standalone_mode=False)


SIDES = {"ours": ours, "streaming": streaming, "energon": energon}


def work_on(job: Job) -> dict[str, Any]:
    """In a process of its own: the samples of each batch, seconds to the first, CPU-milliseconds a sample."""
    set_up_worker()
    prepared()
    make = SIDES[job.side]()
    began = time.perf_counter()
    feed = make(job)
    batches = [next(feed.batches)]
    found: dict[str, Any] = {"first_s": time.perf_counter() - began, "batches": batches}
    spent: dict[int, float] = {}
    while job.stop is None or len(batches) < job.stop:
        if len(batches) in (WARM, WARM + TIMED):
            spent[len(batches)] = cpu_s()
        if len(batches) == MIDDLE and job.saved:
            feed.save(job.saved)
        if (batch := next(feed.batches, None)) is None:
            break
        batches.append(batch)
    if len(spent) == 2:
        found["cpu_ms"] = 1e3 * (spent[WARM + TIMED] - spent[WARM]) / sum(map(len, batches[WARM : WARM + TIMED]))
    return found


def cpu_s() -> float:
    """CPU-seconds until now, of this process and of all that come from it."""
    here = psutil.Process()
    times = [each.cpu_times() for each in (here, *here.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def run(job: Job, folders: dict[str, str], mode: str = "--job") -> list[dict[str, Any]]:
    """What each rank found, in a process of its own. Raises Refused."""
    jobs = [replace(job, rank=rank) for rank in range(job.ranks)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [launch(each, folders, port, mode) for each in jobs]
    try:
        errors = [process.communicate(timeout=LIMIT_S)[1] for process in started]
    except subprocess.TimeoutExpired:
        raise Refused(f"nothing came for {LIMIT_S:.0f} s") from None
    finally:
        for process in started:
            process.kill()
    for process, error in zip(started, errors, strict=True):
        if process.returncode:
            raise Refused(last_words(error) or f"it ended with {process.returncode}")
    return [json.loads(result_of(each).read_text()) for each in jobs] if mode == "--job" else []


def launch(job: Job, folders: dict[str, str], port: int, mode: str) -> subprocess.Popen[str]:
    told = {
        **os.environ, "PYTHONPATH": os.pathsep.join([folders[job.side], "."]), "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore", "RANK": str(job.rank), "LOCAL_RANK": str(job.rank), "WORLD_SIZE": str(job.ranks),
        "LOCAL_WORLD_SIZE": str(job.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.loader_peers", mode, json.dumps(asdict(job))]
    return subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def last_words(error: str) -> str:
    """The end of a traceback: the error, and the line that raised it where the error says nothing."""
    lines = [line.strip() for line in error.splitlines() if line.strip(" ^~")]
    if not lines:
        return ""
    return lines[-1] if ": " in lines[-1] else ": ".join((lines[-1], *lines[-2:-1]))


def result_of(job: Job) -> Path:
    return Path(job.work) / f"found-{job.rank}.json"


def epoch(job: Job, folders: dict[str, str]) -> list[list[str]]:
    """The global batches to the epoch's end, each in the order of names."""
    found = run(replace(job, parts=2 // job.ranks), folders)
    steps = zip_longest(*(each["batches"] for each in found), fillvalue=[])
    return [sorted(chain(*step)) for step in steps]


def verdicts(side: str, work: str, folders: dict[str, str]) -> Iterator[str]:
    """What came of each law."""
    whole: dict[tuple[int, int], list[list[str]]] = {}
    for law in LAWS:
        ranks, workers = law.before
        saved = f"{work}/states/{side}-{ranks}x{workers}"
        try:
            if law.before not in whole:
                whole[law.before] = epoch(Job(side, work, ranks, workers=workers, saved=saved), folders)
        except Refused as refused:
            yield f"not tried: {refused}" if law.after else f"refused: {refused}"
            continue
        try:
            yield verdict(whole[law.before], law, Job(side, work, state=saved), folders)
        except Refused as refused:
            yield f"refused: {refused}"


def verdict(whole: list[list[str]], law: Law, job: Job, folders: dict[str, str]) -> str:
    seen, said = whole, []
    if law.after:
        ranks, workers = law.after
        rest = epoch(replace(job, ranks=ranks, workers=workers), folders)
        seen = whole[:MIDDLE] + rest
        pairs = zip_longest(whole[MIDDLE:], rest)
        match [place for place, (one, other) in enumerate(pairs, MIDDLE + 1) if one != other]:
            case [last] if last == len(whole):
                said = ["the last batch differs"]
            case [_, *_] as others:
                said = [f"{len(others)} of {len(whole) - MIDDLE} batches differ"]
    counts = Counter(chain(*seen))
    again = counts.total() - len(counts)
    said += [f"{SHARDS * SAMPLES - len(counts)} lost"] if len(counts) < SHARDS * SAMPLES else []
    said += [f"{again} again"] if again else []
    return f"no: {', '.join(said)}" if said else "yes"


def measured(sides: Sequence[str], work: str, folders: dict[str, str], rounds: int) -> dict[tuple[str, int], Row]:
    """Medians, of each side and number of workers."""
    found: dict[tuple[str, int], list[Row]] = {}
    for _, side, workers in product(range(rounds), sides, (0, 1)):
        job = Job(side, work, workers=workers)
        state = f"{work}/states/{side}-{workers}"
        (fresh,) = run(replace(job, saved=state, stop=WARM + TIMED + 1), folders)
        (resumed,) = run(replace(job, state=state, stop=1), folders)
        row = Row(fresh["cpu_ms"], fresh["first_s"], resumed["first_s"])
        found.setdefault((side, workers), []).append(row)
    return {key: Row(*map(statistics.median, zip(*rows, strict=True))) for key, rows in found.items()}


def show_laws(told: dict[str, list[str]]) -> None:
    """A table of yes and no, with what was refused below it."""
    print(f"{'law':<50}" + "".join(f"{side:<40}" for side in told).rstrip())
    notes: list[str] = []
    for place, law in enumerate(LAWS):
        cells = []
        for side in told:
            text = told[side][place]
            if len(text) > 38:
                notes.append(text)
                text = f"{text.partition(':')[0]} [{len(notes)}]"
            cells.append(f"{text:<40}")
        print(f"{law.text:<50}{''.join(cells)}".rstrip())
    for number, note in enumerate(notes, 1):
        print(f"[{number}] {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streaming", help="a folder with mosaicml-streaming")
    parser.add_argument("--energon", help="a folder with megatron-energon")
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--work", default="/tmp/pairmill-loader-peers", help="where data is made, once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--convert", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job or options.convert:
        make_importable()
        job = Job(**json.loads(options.job or options.convert))
        if options.convert:
            convert(job)
        else:
            result_of(job).write_text(json.dumps(work_on(job)))
        return
    given = {"ours": "", "streaming": options.streaming, "energon": options.energon}
    folders = {side: folder for side, folder in given.items() if folder is not None}
    make_data(options.work, options.photos, folders)
    print(f"{'loader':<12}{'workers':>8}{'CPU-ms a sample':>18}{'a CPU-second':>15}{'first batch':>14}{'resumed':>10}")
    for (side, workers), row in measured(list(folders), options.work, folders, options.rounds).items():
        cpu = f"{row.cpu_ms:>18.3f}{1e3 / row.cpu_ms:>15,.0f}"
        print(f"{side:<12}{workers:>8}{cpu}{row.first_s:>12.2f} s{row.resumed_s:>8.2f} s")
    print()
    show_laws({side: list(verdicts(side, options.work, folders)) for side in folders})


def make_data(work: str, source: Path, folders: dict[str, str]) -> None:
    """Shards, and of them what each peer reads: each once. States of former runs go."""
    shards = shards_of(Job("ours", work))
    shutil.rmtree(f"{work}/states", ignore_errors=True)
    Path(work, "states").mkdir(parents=True)
    if not (shards / "selections/few/summary.json").exists():
        photos.SHARDS, photos.SAMPLES = SHARDS, SAMPLES  # fewer: an epoch is run whole, many times
        photos.make(shards, source)
    made = {"ours": shards, "streaming": Path(mds_of(Job("streaming", work))), "energon": shards / ".nv-meta"}
    for side in folders:
        if not made[side].exists():
            run(Job(side, work), folders, "--convert")


if __name__ == "__main__":
    main()
