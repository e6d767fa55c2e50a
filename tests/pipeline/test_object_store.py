"""DATASET on an S3 server, two Ray nodes that share no disk, one of them killed: crawl, download and resume hold.

The second node runs in a mount namespace of its own with an empty /tmp; all that both nodes see is the checkout's
code (shipped by Ray as well), the S3 server and the small web, all on loopback.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from infra.dataset import Dataset
from infra.miniweb import MiniwebConfig, running
from infra.verify import Verify
from tests.servers.commands import assert_same, run, start
from tests.servers.ray_nodes import can_unshare, kill_tree, ray_nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]
NUM_NODES_LOST = max(1, int(os.environ.get("PAIRMILL_CHAOS", "5")) // 10)

WEB = ("--timeout-s", "2", "--total-timeout-s", "5", "--backoff-s", "0.2", "--attempts", "2")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on an S3 server on loopback; its address and keys are in the environment, as a user would set them."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("shards")
    try:
        yield "s3://shards"
    finally:
        server.stop()


@pytest.mark.skipif(not can_unshare(), reason="mount namespaces need root here")
@pytest.mark.parametrize("seed", range(NUM_NODES_LOST))
def test_two_nodes_without_a_common_disk_survive_the_loss_of_one(s3, tmp_path, seed):
    with running(MiniwebConfig(pages=36, port=0, dns_port=0)) as web:
        reach = ("--allow-network", "127.0.0.0/8", "--dns", web.dns, *WEB)
        seeds = [word for seed in web.seeds for word in ("--seed", seed)]
        crawling = ("--delay-s", "0.005", "--buckets", "4", *reach)
        downloading = ("--image-size", "128", "--shard-size", "16", "--cpus-per-worker", "0.5", *reach)
        plain = tmp_path / "plain"
        run("pipeline", "crawl", *seeds, "--out", plain, "--local", *crawling)
        run("pipeline", "download", plain / "pairs", "--out", plain, "--local", *downloading)
        with ray_nodes() as (address, second):
            run("pipeline", "crawl", *seeds, "--out", f"{s3}/data", "--ray", address, *crawling)
            words = ("pipeline", "download", f"{s3}/data/pairs", "--out", f"{s3}/data", "--ray", address, *downloading)
            process = start(*words)
            dataset = Dataset(f"{s3}/data")
            num_done = random.Random(seed).randint(1, 4)
            _wait_until(lambda: len(dataset.ledger.done("download")) >= num_done, process)
            kill_tree(second)
            _, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
            facts = run(*words)
        assert facts["rows_in"] == facts["rows_out"] + sum(facts["dropped"].values())
        assert not [finding for finding in Verify(dataset).findings() if finding.is_problem]
        copy = tmp_path / "copy"
        for name in dataset.storage.sizes():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(dataset.storage.read(name))
        assert_same(plain, copy)


def _wait_until(condition, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.1)
    raise TimeoutError("nothing was downloaded")
