"""Who trains together: the launcher's variables to a rank, a world size and the address where all meet.

torchrun and deepspeed write RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; srun writes SLURM_… and no address.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from infra.errors import UsageError
from training.ranks import Ranks

FIRST_PORT, NUM_PORTS = 20_000, 20_000  # below those that systems hand out by themselves


@dataclass(frozen=True)
class Place:
    """One process's place among those that a launcher started."""

    rank: int
    local_rank: int
    world_size: int
    master_addr: str
    master_port: int

    def variables(self) -> dict[str, str]:
        """As torch and DeepSpeed want to find it in the environment."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def rendezvous(environ: Mapping[str, str]) -> Place | None:
    """The place that a launcher gave this process; None where there was no launcher: it trains alone.

    Raises UsageError where a launcher's variables are there in part only, or are no numbers.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        address, port = _need(environ, "MASTER_ADDR", "torchrun"), _number(environ, "MASTER_PORT", "torchrun")
        rank, world = _number(environ, "RANK", "torchrun"), _number(environ, "WORLD_SIZE", "torchrun")
        return _checked(Place(rank, _number(environ, "LOCAL_RANK", "torchrun"), world, address, port))
    # A shell inside an allocation (salloc, sbatch) has SLURM_NTASKS, but only srun gives each process its own step.
    if "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    first = first_node(nodes) if nodes else _need(environ, "SLURM_LAUNCH_NODE_IPADDR", "srun")
    # The steps of one job must not meet each other, so the port is made from both numbers.
    serial = _number(environ, "SLURM_JOB_ID", "srun") * 31 + _number(environ, "SLURM_STEP_ID", "srun")
    own = FIRST_PORT + serial % NUM_PORTS
    rank, local = _number(environ, "SLURM_PROCID", "srun"), _number(environ, "SLURM_LOCALID", "srun")
    address, port = environ.get("MASTER_ADDR", first), int(environ.get("MASTER_PORT", own))
    return _checked(Place(rank, local, _number(environ, "SLURM_NTASKS", "srun"), address, port))


def first_node(nodes: str) -> str:
    """The first host of Slurm's list: node[01-03,7],other-5 → node01; a[1-2]b[3,4] → a1b3."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes.strip())
    if first is None:
        raise UsageError(f"SLURM_STEP_NODELIST={nodes!r}: no host can be read from it; set MASTER_ADDR")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


@contextmanager
def joined(environ: Mapping[str, str], timeout_s: float = 1800.0) -> Iterator[Ranks]:
    """Meet the other ranks, and part from them when the block ends. Alone, a group of one that opens no port and stays
    for the next run of this process: DeepSpeed holds on to the first group that it sees.

    timeout_s: how long a collective waits for a rank that does not come.
    """
    place = rendezvous(environ)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    patience = datetime.timedelta(seconds=timeout_s)
    with _told(place or Place(0, 0, 1, "127.0.0.1", FIRST_PORT)):
        if dist.is_initialized():  # by Ray, or by the run before, which was alone
            yield Ranks.here()
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(place.local_rank if place else 0)
        if place is None:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=patience)
            yield Ranks.here()
            return
        dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=patience)
        try:
            yield Ranks.here()
        finally:
            dist.destroy_process_group()


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """The place in the environment, where DeepSpeed looks; afterwards children are not to think that it is theirs."""
    before = {name: os.environ.get(name) for name in place.variables()}
    os.environ.update(place.variables())
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _checked(place: Place) -> Place:
    if not 0 <= place.rank < place.world_size:
        raise UsageError(f"rank {place.rank} of {place.world_size}: ranks count from 0; is RANK of another launcher?")
    return place


def _need(environ: Mapping[str, str], name: str, launcher: str) -> str:
    if not environ.get(name):
        raise UsageError(f"{name} is not set, though others of {launcher} are; start all ranks with {launcher}")
    return environ[name]


def _number(environ: Mapping[str, str], name: str, launcher: str) -> int:
    text = _need(environ, name, launcher)
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} is no number; start all ranks with {launcher}")
    return int(text)
