"""The running web does what the truth table says: each url asked over real HTTP, each name over real DNS."""

from __future__ import annotations

import gzip
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import dns.message
import dns.query
import dns.rcode
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from infra.miniweb import MiniwebConfig, MiniwebError, RunningWeb, running
from infra.miniweb.launch import OUTLIVES_S
from infra.miniweb.plan import plan_site
from infra.miniweb.truth import truth_table

ROOT = Path(__file__).parents[3]
MAX_BYTES = 8 << 20
DEADLINE_S = 1.5


@pytest.fixture(scope="module")
def web():
    with running(MiniwebConfig(pages=60, port=0, dns_port=0)) as started:
        yield started


@pytest.fixture(scope="module")
def truth(web: RunningWeb) -> list[dict]:
    return truth_table(plan_site(60, 0, web.port)).to_pylist()


def resolves(web: RunningWeb, name: str) -> bool:
    host, port = web.dns.split(":")
    response = dns.query.udp(dns.message.make_query(name, "A"), host, port=int(port), timeout=2)
    return response.rcode() == dns.rcode.NOERROR


def ask(web: RunningWeb, url: str, hops: int = 5, attempts: int = 2) -> tuple[str, int | None, bytes]:
    """A plain client's outcome of one url in the words of the truth table, the last status, the body."""
    parts = urlsplit(url)
    if parts.scheme != "http":
        return "blocked_scheme", None, b""
    name, port = parts.hostname or "", parts.port or 80
    if name.replace(".", "").isdigit():
        return "blocked_address", None, b""
    if not resolves(web, name):
        return "dns", None, b""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Host": parts.netloc, "Accept-Encoding": "gzip"})
        response = connection.getresponse()
        if response.status in (301, 302, 307, 308):
            if not hops:
                return "too_many_redirects", response.status, b""
            return ask(web, urljoin(url, response.getheader("Location", "")), hops - 1, attempts)
        if response.status in (429, 500) and attempts > 1 and int(response.getheader("Retry-After", "0")) < 10:
            return ask(web, url, hops, attempts - 1)
        if response.status != 200:
            return "rate_limited" if response.status == 429 else f"http_{response.status}", response.status, b""
        body = read_within(response)
    except ConnectionRefusedError:
        return "connect", None, b""
    except TimeoutError:
        return "timeout", None, b""
    except ConnectionResetError:
        return "reset", None, b""
    except http.client.IncompleteRead:
        return "wrong_length", None, b""
    except http.client.LineTooLong:
        return "headers_too_large", None, b""
    finally:
        connection.close()
    if len(body) > MAX_BYTES:
        return "too_large", 200, b""
    if "noai" in (tag := response.getheader("X-Robots-Tag", "")) or "noimageai" in tag:
        return ("opt_out" if ":" not in tag else "success"), 200, body
    if response.getheader("Content-Encoding") == "gzip":
        unpacker = zlib.decompressobj(31)
        try:
            body = unpacker.decompress(body, MAX_BYTES)
        except zlib.error:
            return "bad_encoding", 200, b""
        if not unpacker.eof:
            return "too_large", 200, b""
    return "success", 200, body


def read_within(response: http.client.HTTPResponse) -> bytes:
    """At most MAX_BYTES + 1 of the body, within the deadline. Raises IncompleteRead for a body that ends early."""
    deadline, chunks, length = time.monotonic() + DEADLINE_S, [], 0
    while length <= MAX_BYTES and (chunk := response.read1(1 << 16)):
        chunks.append(chunk)
        length += len(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length and length <= MAX_BYTES:
        raise http.client.IncompleteRead(b"")
    return b"".join(chunks)


def judge(body: bytes) -> tuple[str, tuple[int, int] | None]:
    """What an image's bytes must come to, and its size as shown."""
    if not body:
        return "empty", None
    if body.startswith(b"<svg"):
        return "unsupported_format", None
    if body.startswith(b"<!doctype"):
        return "not_image", None
    try:
        with Image.open(io.BytesIO(body)) as image:
            if image.width * image.height > 50_000_000:
                return "too_many_pixels", None
            image.load()
            short, long = sorted(image.size)
            size = ImageOps.exif_transpose(image).size
    except Image.DecompressionBombError:
        return "too_many_pixels", None
    except OSError:
        return "decode_error", None
    return ("too_small" if short < 64 else "too_elongated" if long > 4 * short else "success"), size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_pair_downloads_as_the_truth_table_says(web, truth):
    pairs = [row for row in truth if row["row"] == "candidate" and row["fate"] == "pair"]

    def outcome(row: dict) -> tuple[str, tuple[int, int] | None]:
        word, _, body = ask(web, row["url"])
        return judge(body) if word == "success" else (word, None)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(outcome, pairs))
    wrong = [
        (row["url"], row["image_kind"], row["outcome"], g)
        for row, g in zip(pairs, got, strict=True)
        if row["outcome"] != g[0]
    ]
    assert not wrong
    for row, (word, size) in zip(pairs, got, strict=True):
        if word == "success":
            assert size == (row["width"], row["height"]), row


def test_every_page_answers_as_the_truth_table_says(web, truth):
    pages = [row for row in truth if row["row"] == "page"]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda row: ask(web, row["page_url"], hops=0 if row["redirect_to"] else 5), pages))
    for row, (word, status, body) in zip(pages, got, strict=True):
        assert status == row["status"], (row, word)
        if row["fate"] in ("timeout", "dns"):
            assert word == row["fate"]
        elif row["fate"] == "out_of_scope":
            assert word in ("dns", "blocked_address")  # nobody is there, and nobody needs to ask
        elif row["fate"] == "ok":
            assert b"<html" in body.replace(b"\0", b"").lower()


def test_smaller_forms_of_an_image_are_served_too(web, truth):
    urls = [url for row in truth for url in row["alternatives"] or ()]
    assert len(urls) > 20
    for url in urls:
        word, _, body = ask(web, url)
        assert (word, judge(body)[0]) == ("success", "success")


def test_the_same_web_serves_the_same_bytes(web, truth):
    with running(MiniwebConfig(pages=60, port=0, dns_port=0)) as other:
        rows = [row for row in truth if row["outcome"] == "success"][:40]
        for row in rows:
            moved = row["url"].replace(f":{web.port}/", f":{other.port}/")
            assert ask(web, row["url"])[2] == ask(other, moved)[2]


def test_names_of_the_web_resolve_and_no_others(web):
    host, port = web.dns.split(":")

    def query(name: str, kind: str) -> dns.message.Message:
        return dns.query.udp(dns.message.make_query(name, kind), host, port=int(port), timeout=2)

    known = query("Garden.MiniWeb.test", "A")
    assert known.rcode() == dns.rcode.NOERROR
    assert [item.address for item in known.answer[0]] == ["127.0.0.1"]
    none = query("garden.miniweb.test", "AAAA")
    assert none.rcode() == dns.rcode.NOERROR
    assert not none.answer
    for name in ("dead.miniweb.test", "miniweb.test", "example.org", "x.garden.miniweb.test"):
        assert query(name, "A").rcode() == dns.rcode.NXDOMAIN


def test_what_is_no_query_is_ignored(web):
    host, port = web.dns.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for data in (b"", b"\0", os.urandom(40), b"GET / HTTP/1.1\r\n\r\n"):
            client.sendto(data, (host, int(port)))
    assert resolves(web, "garden.miniweb.test")


def test_a_resolver_of_the_client_kind_takes_host_and_port(web):
    import asyncio

    import aiodns

    async def resolve(name: str) -> list[str]:
        resolver = aiodns.DNSResolver(nameservers=[web.dns])
        result = await resolver.getaddrinfo(name, family=socket.AF_UNSPEC)
        return [node.addr[0].decode() for node in result.nodes]

    assert asyncio.run(resolve("cdn.miniweb.test")) == ["127.0.0.1"]
    with pytest.raises(aiodns.error.DNSError):
        asyncio.run(resolve("dead.miniweb.test"))


def test_connections_are_kept_and_strange_requests_refused(web):
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=5)
    for _ in range(3):
        connection.request("GET", "/", headers={"Host": f"garden.miniweb.test:{web.port}"})
        response = connection.getresponse()
        assert response.status == 200
        assert response.read()
    local = connection.sock.getsockname()
    for method, host, path, status in (
        ("GET", "garden.miniweb.test", "/nowhere", 404),
        ("GET", "example.org", "/", 421),
        ("POST", "garden.miniweb.test", "/", 405),
        ("HEAD", "garden.miniweb.test", "/", 200),
    ):
        connection.request(method, path, headers={"Host": host})
        response = connection.getresponse()
        response.read()
        assert response.status == status
    assert connection.sock.getsockname() == local


def test_sitemaps_name_the_pages_that_nothing_links_to(web, truth):
    index = ask(web, web.sitemaps[-1])[2].decode()
    assert "<sitemapindex" in index
    bodies = [ask(web, loc.split("</loc>")[0])[2] for loc in index.split("<loc>")[1:]]
    listed = b"".join(gzip.decompress(b) if b.startswith(b"\x1f\x8b") else b for b in bodies).decode()
    pages = [row for row in truth if row["row"] == "page" and row["page_kind"] == "content"]
    orphans = [row["page_url"] for row in pages if row["via"] == "sitemap"]
    assert orphans
    assert all(f"<loc>{url}</loc>" in listed for url in orphans)


def test_a_taken_port_is_told_with_its_mend(web):
    for values in ({"port": web.port, "dns_port": 0}, {"port": 0, "dns_port": int(web.dns.split(":")[1])}):
        taken = pytest.raises(MiniwebError, match=r"port \d+ on 127\.0\.0\.1 is taken.*--(dns-)?port")
        with taken, running(MiniwebConfig(pages=1, **values)):
            pass


def test_it_is_ready_soon_and_gone_when_the_block_ends():
    begun = time.monotonic()
    with running(MiniwebConfig(pages=300, port=0, dns_port=0)) as started:
        assert time.monotonic() - begun < 15  # 0.5 s on an idle machine
        port = started.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_an_interrupt_at_the_terminal_is_for_the_run_that_it_serves():
    program = (
        "import signal, socket, time\nfrom infra.miniweb import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background a shell has it ignored
        "with running(MiniwebConfig(pages=1, port=0, dns_port=0)) as web:\n"
        "    try:\n        print('up', flush=True)\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        time.sleep(0.5)\n"
        "        socket.create_connection(('127.0.0.1', web.port), 1).close()\n        print('served', flush=True)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    os.killpg(run.pid, signal.SIGINT)
    assert run.communicate(timeout=30)[0] == "served\n"


def test_of_a_killed_run_it_serves_on_for_some_seconds_and_the_next_run_waits_for_its_port():
    program = (
        "import sys, time\nfrom infra.miniweb import *\n"
        "with running(MiniwebConfig(pages=1, port=int(sys.argv[1]), dns_port=0)) as web:\n"
        "    print(web.port, flush=True)\n    time.sleep(60)\n"
    )

    def start(port: int) -> tuple[subprocess.Popen, int]:
        parent = subprocess.Popen(
            [sys.executable, "-c", program, str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        return parent, int(parent.stdout.readline())

    def end(parent: subprocess.Popen) -> float:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
        return time.monotonic()

    first, port = start(0)
    ended = end(first)
    time.sleep(1)  # what workers of a killed run live on is less
    socket.create_connection(("127.0.0.1", port), 1).close()
    second, again = start(port)
    assert again == port
    assert time.monotonic() - ended > OUTLIVES_S
    ended = end(second)
    while time.monotonic() < ended + OUTLIVES_S + 5:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("the web outlived its parent for good")


def test_the_command_writes_the_truth_table(tmp_path):
    out = tmp_path / "truth.parquet"
    command = [sys.executable, "-m", "infra.miniweb", "truth", "--pages=3", "--port=8970", f"--out={out}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert pq.read_table(out).equals(truth_table(plan_site(3, 0, 8970)))
