"""Is this machine, and the cluster, fit for the work? One check a line: ok, a warning, or a problem with its mend."""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from infra.errors import PairmillError
from infra.executors import CHECKOUT, RayExecutor
from infra.storage import Storage

ROOMS = ("infra", "filters", "training", "pipeline")
TELLING = ("pyarrow", "duckdb", "aiohttp", "aiodns", "fastwarc", "simplejpeg", "opencv-python-headless", "ray")
LITTLE_DISK, HARDLY_ANY_DISK = 20 << 30, 1 << 30
LITTLE_SHM = 256 << 20  # below it Ray puts its object store on the disk
FILES_A_CONNECTION = 2  # its socket, and often a name server's or a spool's
FILES_BESIDES = 256
SLOW_NAMES_PER_S = 50.0
DNS_AT_ONCE = 256
DNS_TIMEOUT_S = 5.0

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `mend` is empty when all is well."""

    name: str
    state: State
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.name:12} {self.text}" + (f"; {self.mend}" if self.mend else "")

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look at, beyond the machine itself."""

    path: str = "."  # where datasets go, a folder or an fsspec url
    ray: bool = True
    ray_address: str | None = None
    names: Sequence[str] = ()  # host names to resolve; empty: localhost, many times
    dns: Sequence[str] = ()  # name servers, host:port; empty: the system's
    connections: int = 128


def examine(wanted: Wanted) -> Iterator[Check]:
    """The checks, one after the other, quick ones first. None of them raises: what fails is a problem."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", check_python),
        ("libraries", partial(check_libraries, CHECKOUT / "pyproject.toml")),
        ("rooms", check_rooms),
        ("open files", partial(check_open_files, wanted.connections)),
        ("/dev/shm", check_shm),
        ("disk", partial(check_disk, wanted.path)),
        ("temporary", partial(check_disk, tempfile.gettempdir(), "temporary")),
        ("names", partial(check_names, wanted.names, wanted.dns)),
    ]
    if wanted.ray:
        checks.append(("ray", partial(check_ray, wanted.ray_address)))
    for name, check in checks:
        try:
            yield check()
        except PairmillError as error:
            yield Check(name, "problem", str(error))
        except Exception as error:  # noqa: BLE001 - a doctor who faints helps nobody
            yield Check(
                name, "problem", f"{type(error).__name__}: {error}", "mend this first; the check could not be made"
            )


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Is this a Python that the libraries agree on?"""
    text = f"{version[0]}.{version[1]}.{version[2]} on {platform.platform(terse=True)}"
    if (3, 11) <= version[:2] < (3, 13):
        return Check("python", "ok", text)
    return Check("python", "problem", text, "use Python 3.11 or 3.12: img2dataset needs imghdr, gone from 3.13")


def check_libraries(pyproject: Path) -> Check:
    """Are the dependencies that pyproject.toml names installed, in the versions that it asks for?"""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in tomllib.loads(pyproject.read_text())["project"]["dependencies"]]
    missing, other = [], []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            other.append(f"{requirement.name} {version} (wants {requirement.specifier})")
    if missing or other:
        text = "; ".join(
            part for part in ("not installed: " * bool(missing) + ", ".join(missing), ", ".join(other)) if part
        )
        return Check("libraries", "problem", text, "run `make setup`, and this command with .venv/bin/python")
    told = ", ".join(f"{name} {metadata.version(name)}" for name in TELLING)
    return Check("libraries", "ok", f"{len(wanted)} as asked for: {told}")


def check_rooms(rooms: Sequence[str] = ROOMS, checkout: Path = CHECKOUT) -> Check:
    """Do the rooms come from the checkout? Other packages install a `training`, too."""
    strangers = []
    for room in rooms:
        spec = importlib.util.find_spec(room)
        if spec is None or not _lies_in(spec.origin, checkout):
            strangers.append(f"{room} from {spec.origin if spec is not None else 'nowhere'}")
    if strangers:
        mend = f"run from the root of the checkout: cd {checkout} && python -m infra doctor"
        return Check("rooms", "problem", ", ".join(strangers), mend)
    return Check("rooms", "ok", f"{', '.join(rooms)} from {checkout}")


def check_open_files(connections: int) -> Check:
    """Do as many connections fit the limit of open files?"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_A_CONNECTION * connections + FILES_BESIDES
    text = f"{_count(soft)} may be open; {connections} connections a worker take up to {needed}"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Check("open files", "ok", text)
    where = "in this shell" if hard == resource.RLIM_INFINITY or hard >= needed else "as root, or in limits.conf"
    return Check("open files", "warning", text, f"raise it {where}: ulimit -n {max(needed, 65_536)}")


def check_shm(path: str = "/dev/shm") -> Check:
    """Is there shared memory for Ray's object store?"""
    if not Path(path).is_dir():
        text = "absent; Ray keeps its object store on the disk"
        return Check("/dev/shm", "ok" if sys.platform != "linux" else "warning", text)
    usage = shutil.disk_usage(path)
    text = f"{_gb(usage.free)} free of {_gb(usage.total)}"
    if usage.free >= LITTLE_SHM:
        return Check("/dev/shm", "ok", text)
    return Check("/dev/shm", "warning", text, "give the container more: docker run --shm-size=1g")


def check_disk(path: str, name: str = "disk") -> Check:
    """Is there room where datasets go? For an object store: does it answer?"""
    storage = Storage(path)
    if not storage.is_local:
        try:
            storage.filesystem.ls(storage.path())
        except FileNotFoundError:
            bucket = storage.path().partition("/")[0]
            if not storage.filesystem.exists(bucket):
                return Check(name, "problem", f"{path}: no bucket {bucket}", "create it, or check the name")
        return Check(name, "ok", f"{path} answers")
    place = Path(storage.path())
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{_gb(free)} free at {place}"
    if free < HARDLY_ANY_DISK:
        return Check(name, "problem", text, "free some, or name another place")
    if free < LITTLE_DISK:
        return Check(
            name, "warning", text, "about enough for a million small images; --dry-run reckons what a run takes"
        )
    return Check(name, "ok", text)


def check_names(names: Sequence[str], servers: Sequence[str] = ()) -> Check:
    """How many host names a second are resolved, the way that a download does it."""
    asked = list(names) or ["localhost"] * 200
    began = time.monotonic()
    num_found = asyncio.run(_resolve(asked, servers))
    rate = len(asked) / max(time.monotonic() - began, 1e-9)
    of_whom = f"by {', '.join(servers)}" if servers else "by the system's name servers"
    what = f"of {len(names)} names" if names else "of 200 times localhost (--names FILE measures the way out)"
    text = f"{num_found} {what} resolved {of_whom}, {rate:,.0f} a second"
    if not num_found:
        return Check("names", "problem", text, "see /etc/resolv.conf, or name a server: --dns HOST:PORT")
    if names and num_found < 0.5 * len(asked):
        return Check("names", "warning", text, "many names of the web are dead, but half is a lot: try --dns HOST:PORT")
    if len(asked) >= 100 and rate < SLOW_NAMES_PER_S:
        return Check("names", "warning", text, "a caching name server on this machine (unbound, knot) makes it fast")
    return Check("names", "ok", text)


def check_ray(address: str | None) -> Check:
    """Does a Ray start here, or answer at the address, and do its nodes import the rooms from a checkout?"""
    began = time.monotonic()
    executor = RayExecutor(address)
    try:
        cluster = executor.describe(ROOMS)
    finally:
        executor.close()
    where = f"at {address}" if address else "on this machine"
    text = (
        f"{cluster['version']} {where}: {len(cluster['nodes'])} nodes, {cluster['cpus']:g} CPUs, "
        f"{cluster['gpus']:g} GPUs, ready in {time.monotonic() - began:.1f} s"
    )
    for node, files in cluster["nodes"].items():
        folders = {str(Path(file).parent.parent) if file else None for file in files.values()}
        if None in folders or len(folders) > 1:
            told = ", ".join(f"{room} from {file or 'nowhere'}" for room, file in files.items())
            return Check(
                "ray", "problem", f"{text}; node {node} imports {told}", "start the job from the checkout's root"
            )
    return Check("ray", "ok", text)


async def _resolve(names: Sequence[str], servers: Sequence[str]) -> int:
    import aiodns

    resolver = aiodns.DNSResolver(list(servers) or None, timeout=DNS_TIMEOUT_S / 2, tries=2)
    waiting = iter(names)
    num_found = 0

    async def work() -> None:
        nonlocal num_found
        for name in waiting:
            try:
                async with asyncio.timeout(DNS_TIMEOUT_S):
                    found = await resolver.getaddrinfo(name, family=socket.AF_INET, type=socket.SOCK_STREAM)
            except (aiodns.error.DNSError, TimeoutError, UnicodeError):
                continue
            num_found += bool(found.nodes)

    try:
        await asyncio.gather(*(work() for _ in range(min(DNS_AT_ONCE, len(names)))))
    finally:
        await resolver.close()
    return num_found


def _lies_in(origin: str | None, checkout: Path) -> bool:
    return origin is not None and Path(origin).resolve().is_relative_to(checkout) and "site-packages" not in origin


def _gb(number: int) -> str:
    return f"{number / 1e9:,.1f} GB"


def _count(limit: int) -> str:
    return "any number of files" if limit == resource.RLIM_INFINITY else f"{limit:,} files"
