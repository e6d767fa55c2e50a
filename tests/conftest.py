"""What tests of several rooms share: one Ray a session, and an S3 server on loopback."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from infra.executors import RayExecutor

# Two processes on one pair of cores: without it, each one's threads spin while they wait for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# How fast examples are drawn says something of the machine's other work, not of the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

CROWDED = ("ray", "browser", "chaos", "gpu")  # marks of tests that start processes which outlive a call


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs two processes. Tests of either kind follow each other in one of them; quick ones fill both."""
    for item in items:
        if any(item.get_closest_marker(name) for name in CROWDED):
            item.add_marker(pytest.mark.xdist_group("crowded"))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("slow"))


@pytest.fixture(scope="session")
def ray_here() -> Iterator[RayExecutor]:
    """A Ray on this machine with two CPUs, started once. For tests marked `ray`."""
    executor = RayExecutor(num_cpus=2)
    executor.describe()
    yield executor
    executor.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback; nothing in it outlives the session."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed: make setup")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh bucket's url, `s3://…`; the environment leads s3fs (and child processes) to the server on loopback."""
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # an instance remembers the environment that it was made in
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """A folder for a dataset, on a disk and on an object store: the same laws hold on both."""
    if request.param == "disk":
        return f"{tmp_path}/place"
    return f"{request.getfixturevalue('s3_bucket')}/place"
