"""WARC to pairs on one core: ours against warcio + BeautifulSoup (html.parser), on .warc.gz, same pages, same pairs.

    python -m benchmarks.crawl [--pages N] [--repeats R] [--warc FILE]

Both read every record and resolve src of each img with a text in alt. Ours looks at srcset, lazy loading, picture and
figures besides, so it does more. Time is CPU time of this process, the runs alternate, medians are printed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urljoin

from bs4 import BeautifulSoup
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipeline.crawl.html import parse_page
from pipeline.crawl.warc import PageRecord, open_archive, read_archive

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

Page = tuple[str, str, bytes]  # url, content type, body
Run = tuple[int, int]  # pages, pairs with a text in alt


def ours(path: str) -> Run:
    """read_archive + parse_page."""
    num_pages = num_pairs = 0
    with open_archive(path) as stream:
        for record in read_archive(stream, path):
            if isinstance(record, PageRecord):
                page = parse_page(
                    record.body, url=record.url, content_type=record.content_type, sources=("alt",), with_links=False
                )
                num_pages += 1
                num_pairs += len(page.candidates)
    return num_pages, num_pairs


def theirs(path: str) -> Run:
    """warcio + BeautifulSoup."""
    num_pages = num_pairs = 0
    with open(path, "rb") as stream:
        for record in ArchiveIterator(stream):
            if record.rec_type != "response" or record.http_headers.get_statuscode() != "200":
                continue
            if "html" not in (record.http_headers.get_header("Content-Type") or ""):
                continue
            url = record.rec_headers.get_header("WARC-Target-URI")
            soup = BeautifulSoup(record.content_stream().read(), "html.parser")
            base = soup.find("base", href=True)
            base_url = urljoin(url, base["href"]) if base else url
            pairs = [
                (urljoin(base_url, img["src"]), img["alt"].strip())
                for img in soup.find_all("img", src=True, alt=True)
                if img["alt"].strip() and img["src"].strip() and not img["src"].startswith("data:")
            ]
            num_pages += 1
            num_pairs += len(pairs)
    return num_pages, num_pairs


def real_pages() -> Iterator[Page]:
    """Pages of the shared archives and of the shared site."""
    for path in sorted((SHARED / "warc").glob("*.warc*")):
        with open_archive(str(path)) as stream:
            for record in read_archive(stream, str(path)):
                if isinstance(record, PageRecord):
                    yield record.url, record.content_type or "text/html", record.body
    for path in sorted((SHARED / "site").rglob("*.html")):
        yield f"https://site.example/{path.relative_to(SHARED / 'site')}", "text/html; charset=utf-8", path.read_bytes()


def drawn_pages() -> Iterator[Page]:
    """Where there is no shared data: pages of plain article markup."""
    for number in range(20):
        article = "".join(
            f'<div class="entry"><h2><a href="/a/{number}/{at}">Entry {at}</a></h2><p>{"Some words of text. " * 20}</p>'
            f'<figure><img src="/images/{number}/{at}.jpg" alt="Picture {at} of {number}" width=320></figure></div>'
            for at in range(40)
        )
        html = f"<!doctype html><html lang=en><head><title>{number}</title></head><body>{article}</body></html>"
        yield f"https://drawn.example/{number}", "text/html; charset=utf-8", html.encode()


def write_archive(path: Path, pages: Iterable[Page]) -> None:
    """A .warc.gz of responses, a gzip member a record."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for url, content_type, body in pages:
            http = StatusAndHeaders("200 OK", [("Content-Type", content_type)], protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=http))


def timed(run: Callable[[str], Run], path: str) -> tuple[float, Run]:
    """CPU seconds and what was found."""
    start = time.process_time()
    found = run(path)
    return time.process_time() - start, found


def main() -> None:
    """Build the archive, time both in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=300, help="records of the archive; real pages, repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warc", help="an archive of your own (.warc.gz)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.warc or Path(folder) / "pages.warc.gz")
        if not options.warc:
            pages = list(real_pages() if SHARED.is_dir() else drawn_pages())
            write_archive(path, islice(cycle(pages), options.pages))
            print(f"{options.pages} records of {len(pages)} {'real' if SHARED.is_dir() else 'drawn'} pages")
        compressed = path.stat().st_size
        with gzip.open(path) as file:
            plain = sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))
        runs: dict[str, list[float]] = {"ours": [], "warcio + BeautifulSoup": []}
        found = {}
        for _ in range(options.repeats):
            for name, run in (("ours", ours), ("warcio + BeautifulSoup", theirs)):
                took_s, found[name] = timed(run, str(path))
                runs[name].append(took_s)
    print(f"{compressed / 1e6:.1f} MB compressed, {plain / 1e6:.1f} MB plain; CPU, medians of {options.repeats}")
    medians = {name: statistics.median(times) for name, times in runs.items()}
    for name, took_s in medians.items():
        num_pages, num_pairs = found[name]
        print(
            f"{name:24} {took_s:8.2f} s  {num_pages / took_s:8.1f} pages/s  {compressed / took_s / 1e6:7.2f} MB/s .gz  "
            f"{plain / took_s / 1e6:7.1f} MB/s plain  {num_pages} pages  {num_pairs} pairs"
        )
    print(f"ratio {medians['warcio + BeautifulSoup'] / medians['ours']:.1f}x (target 5x)")
    if len(set(found.values())) > 1:
        print("the two differ in what they found")


if __name__ == "__main__":
    main()
