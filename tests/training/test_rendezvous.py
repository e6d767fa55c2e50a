"""What launchers say of a process's place, with variables made up as they write them."""

from __future__ import annotations

import pytest

from infra.errors import UsageError
from training.rendezvous import Place, first_node, rendezvous

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node[01-03,7]",
}  # fmt: skip


def test_without_a_launcher_there_is_no_place() -> None:
    assert rendezvous({"PATH": "/bin"}) is None


def test_a_shell_inside_an_allocation_is_no_rank_of_it() -> None:
    assert rendezvous({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None


def test_torchrun_is_taken_at_its_word_inside_srun_too() -> None:
    assert rendezvous(TORCHRUN | SLURM) == Place(3, 1, 4, "10.0.0.7", 29500)


def test_srun_meets_at_the_first_node_at_a_port_of_the_step() -> None:
    place = rendezvous(SLURM)
    assert place is not None
    assert (place.rank, place.local_rank, place.world_size, place.master_addr) == (5, 1, 8, "node01")
    others = [rendezvous(SLURM | {"SLURM_PROCID": str(rank)}) for rank in range(8)]
    assert {(other.master_addr, other.master_port) for other in others if other} == {("node01", place.master_port)}
    next_step = rendezvous(SLURM | {"SLURM_STEP_ID": "3"})
    assert next_step is not None
    assert next_step.master_port != place.master_port
    assert 1024 < place.master_port < 2**16


def test_the_launching_nodes_address_serves_where_slurm_tells_no_list() -> None:
    without = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    place = rendezvous(without | {"SLURM_LAUNCH_NODE_IPADDR": "10.1.2.3"})
    assert place is not None
    assert place.master_addr == "10.1.2.3"


def test_an_address_given_by_hand_wins_over_slurms() -> None:
    place = rendezvous(SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "4242"})
    assert place is not None
    assert (place.master_addr, place.master_port) == ("head", 4242)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node01,node02", "node01"),
        ("node[01-03,7]", "node01"),
        ("node[7,01-03]", "node7"),
        ("gpu-a[003]", "gpu-a003"),
        ("rack[1-2]-n[03-04],z9", "rack1-n03"),
        ("a.example.org,b[1-2]", "a.example.org"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    "environ",
    [
        {name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"},
        {name: value for name, value in TORCHRUN.items() if name != "WORLD_SIZE"},
        TORCHRUN | {"RANK": "x"},
        TORCHRUN | {"RANK": "4"},
        {name: value for name, value in SLURM.items() if name != "SLURM_NTASKS"},
        SLURM | {"SLURM_STEP_NODELIST": "["},
    ],
)
def test_half_a_launcher_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        rendezvous(environ)
