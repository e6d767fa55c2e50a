"""robots.txt as RFC 9309 reads it, and the sitemaps that it names."""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from xml.parsers import expat

from protego import Protego

from pipeline.urls import clean_url

MAX_ROBOTS_BYTES = 500 << 10  # what RFC 9309 asks to be read at least, and what we read at most
MAX_SITEMAP_BYTES = 50 << 20  # decoded; the limit of sitemaps.org
MAX_SITEMAP_URLS = 50_000

_AGENT_LINE = re.compile(r"\s*user[- ]?agent(?:\s*:|\s)\s*([^#]*)", re.IGNORECASE)
_OTHERS = "another-agent"


class Robots:
    """What a site allows our agent to fetch. `sitemaps`: absolute urls; `crawl_delay`: seconds, None if not asked."""

    def __init__(self, text: str, agent: str) -> None:
        self._agent = agent.lower()
        self._rules = Protego.parse(_relevant(text, self._agent))
        self.crawl_delay: float | None = self._rules.crawl_delay(self._agent)
        self.sitemaps = list(dict.fromkeys(url for line in self._rules.sitemaps if (url := clean_url(line, line))))

    @classmethod
    def from_response(cls, status: int | None, body: bytes | None, agent: str) -> Robots:
        """From the answer to GET /robots.txt. status: None where no answer came. agent: our product token.

        No answer, 5xx and 429 disallow everything until it can be read (RFC 9309, 2.3.1.4; it counts 429 among the
        4xx that allow everything, but a server that asks for fewer requests does not ask for all of them). Other
        statuses but 2xx allow everything.
        """
        if status is None or status >= 500 or status == 429:
            return cls("User-agent: *\nDisallow: /", agent)
        if not 200 <= status < 300 or not body:
            return cls("", agent)
        head = body[:MAX_ROBOTS_BYTES].removeprefix(codecs.BOM_UTF8)
        if len(body) > MAX_ROBOTS_BYTES:
            head = head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1]  # half a rule would be another rule
        return cls(head.decode("utf-8", "replace"), agent)

    def allows(self, url: str) -> bool:
        """May this url be fetched?"""
        return self._rules.can_fetch(url, self._agent)


def parse_sitemap(data: bytes, max_urls: int = MAX_SITEMAP_URLS) -> tuple[list[str], list[str]]:
    """(page urls, urls of further sitemaps) of a sitemap, a sitemap index or a text file of urls; gzip allowed.

    Distinct, in order, at most max_urls in all. Of a broken file what comes before the damage.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, MAX_SITEMAP_BYTES)
        except zlib.error:
            return [], []
    data = data[:MAX_SITEMAP_BYTES].removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] == b"<":
        return _parse_xml(data, max_urls)
    lines = data.decode("utf-8", "replace").splitlines()
    return _clean(lines, max_urls), []


class _EnoughError(Exception):
    pass


def _parse_xml(data: bytes, max_urls: int) -> tuple[list[str], list[str]]:
    found: dict[str, list[str]] = {"url": [], "sitemap": []}
    stack: list[str] = []
    text: list[str] = []

    def start(name: str, _: object) -> None:
        stack.append(name.rpartition(" ")[2].lower())
        text.clear()

    def end(_: str) -> None:
        # An image's own loc lies deeper: within <image:image>.
        if stack[-1] == "loc" and len(stack) > 1 and stack[-2] in found:
            found[stack[-2]].append("".join(text))
            if len(found["url"]) + len(found["sitemap"]) >= max_urls:
                raise _EnoughError
        stack.pop()

    def refuse(*_: object) -> None:
        raise _EnoughError  # entities of one's own have no use here but to grow

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.EntityDeclHandler = refuse
    with suppress(expat.ExpatError, _EnoughError, ValueError):  # what came before is good
        parser.Parse(data, True)
    pages = _clean(found["url"], max_urls)
    return pages, _clean(found["sitemap"], max_urls)


def _clean(lines: Iterable[str], max_urls: int) -> list[str]:
    urls: dict[str, None] = {}
    for line in lines:
        if len(urls) == max_urls:
            break
        if (url := clean_url(line, line)) is not None:
            urls[url] = None
    return list(urls)


def _relevant(text: str, agent: str) -> str:
    """The same file with all other agents under one name, and versions cut off ours.

    A file that names thousands of agents above thousands of rules would grow to their product in the parser, which
    also takes "pair" for "pairmill"; RFC 9309 (2.2.1) wants the whole product token.
    """
    lines: list[str] = []
    for line in text.splitlines():
        match = _AGENT_LINE.match(line)
        if match:
            token = match[1].strip().lower().partition("/")[0]
            name = token if token in ("*", agent) else _OTHERS
            line = f"User-agent: {name}"
            if lines and lines[-1] == line:
                continue
        lines.append(line)
    return "\n".join(lines)
