"""The commands of README.md, CONTRIBUTING.md and docs/: what is written there works.

Every shell block of these files has one of three tags:

    ```sh test      run as it stands, block after block of a file in one folder
    ```sh dry       needs the open web, a cluster or a bucket: each of its commands is run with --dry-run
    ```sh cluster   needs other people's tools: the files it names must exist

`make demo` is run with a smaller web; any other `make` target with -n, so that `make test` does not start itself.
"""

from __future__ import annotations

import gzip
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.reasons import REASONS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md"]
PAGES += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))]
TAGS = ("test", "dry", "cluster")
FENCE = re.compile(r"^```(\S*) ?(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDED = ("Makefile", "pyproject.toml", "constraints.txt", "infra", "filters", "training", "pipeline", "benchmarks")


def blocks(page: str, tag: str) -> list[str]:
    """The shell blocks of a page that have this tag."""
    return [text for kind, tagged, text in FENCE.findall((ROOT / page).read_text()) if (kind, tagged) == ("sh", tag)]


def commands(block: str) -> list[str]:
    """Its commands, continued lines joined, comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def with_tag(tag: str) -> list[tuple[str, str]]:
    return [(page, line) for page in PAGES for block in blocks(page, tag) for line in commands(block)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout, with the files that the commands take from their user."""
    place = tmp_path_factory.mktemp("checkout")
    for name in NEEDED:
        (place / name).symlink_to(ROOT / name)
    rows = pa.table({"URL": ["https://example.org/1.jpg"] * 3, "TEXT": ["a", "b", "c"]})
    for table in ("laion/00000.parquet", "data/example/pairs/00000.parquet", "urls.parquet"):
        (place / table).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, place / table)
    (place / "warc.paths.gz").write_bytes(gzip.compress(b"crawl-data/one.warc.gz\n"))
    (place / "takedowns.txt").write_text("https://example.org/a.jpg\n")
    (place / "archives").mkdir()
    (place / "archives/one.warc.gz").write_bytes(gzip.compress(b""))
    return place


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """An object store on loopback with the bucket that the commands name; the variables that lead to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    try:
        import boto3

        client = boto3.client(
            "s3", endpoint_url=keys["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="k", aws_secret_access_key="s",
        )  # fmt: skip
        client.create_bucket(Bucket="my-bucket")
        yield keys
    finally:
        server.stop()


def environment(**more: str) -> dict[str, str]:
    """Ours, where `python` and `make` find this interpreter and nothing is installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "MAKEFLAGS": f"VENV={sys.prefix} STAMP=Makefile", **more}


def run(command: str, folder: Path, **more: str) -> str:
    """Run in bash; returns what was said. Asserts exit 0."""
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment(**more), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"$ {command}\n{ended.stdout}"
    return ended.stdout


def small_demo() -> str:
    """Flags that make the demo small, and keep it apart from one that runs here already."""
    ports = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    web = f"--set miniweb.pages=24 --set miniweb.port={ports[0]} --set miniweb.dns_port={ports[1]}"
    runs = ("then.0.train.trusted", "then.1.train.everything", "then.1.train.fitting")
    little = [f"--set {run}.set.{setting}" for run in runs for setting in ("samples=96", "data.workers=0")]
    return " ".join(["--local", web, *little])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "test")])
def test_what_a_page_says_to_run_works(page, folder):
    flags = small_demo()
    for block in blocks(page, "test"):
        for line in commands(block):
            is_other_target = re.match(r"make (?!demo$)", line)
            run(line.replace("make ", "make -n ") if is_other_target else line, folder, DEMO_FLAGS=flags)


def test_the_demo_and_the_tests_are_among_the_commands_that_are_run():
    lines = [line for block in blocks("README.md", "test") for line in commands(block)]
    assert lines[:2] == ["make demo", "make test"]
    assert "make -n test" not in lines


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), with_tag("dry"))
def test_a_command_for_the_open_web_plans_what_it_would_do(page, line, folder, bucket):
    ours = line.partition(" -- ")[2] if line.startswith("ray job submit") else line
    assert ours.split()[:2] == ["python", "-m"], line
    said = run(f"{ours} --dry-run", folder, **bucket)
    assert re.search(r"^(crawl|download|dataset|remove): ", said, re.MULTILINE), said


@pytest.mark.parametrize(("page", "line"), with_tag("cluster"))
def test_a_command_for_other_tools_names_files_that_exist(page, line):
    named = [word for word in shlex.split(line) if re.match(r"(infra|pipeline)/", word)]
    assert named, line
    assert [word for word in named if not (ROOT / word).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_shell_block_is_left_out(page):
    tagged = [(kind, tag) for kind, tag, _ in FENCE.findall((ROOT / page).read_text())]
    assert [tag for kind, tag in tagged if kind in ("sh", "bash", "shell", "console") and tag not in TAGS] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_link_to_a_file_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md"])
def test_the_tree_shows_what_is_there(page):
    plain = [text for kind, _, text in FENCE.findall((ROOT / page).read_text()) if not kind]
    (tree,) = (text for text in plain if text.startswith("infra/ "))
    room, missing = "", []
    for line in tree.splitlines():
        top = re.match(r"(\w+)/(?: |$)", line)
        room = top[1] if top else room
        # Names stand in the first column, before two or more spaces and the remark.
        column = re.match(r"(?:  )?((?:[\w.]+/?)(?:  ?[\w.]+(?:\.py|/))*)(?:  |$)", line)
        for name in column[1].split() if column else []:
            inside = name if top else f"{room}/{name}"
            if not (ROOT / inside).exists():
                missing.append(inside)
    assert missing == []


def test_every_reason_is_explained_in_the_docs():
    told = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    shown = set(re.findall(r"`([a-z0-9_]+)`", told))
    silent = {"failed_to_download", "failed_to_resize", "proxy", "denied", "waiting"}  # of foreign tables
    assert sorted(set(REASONS) - shown - silent) == []
