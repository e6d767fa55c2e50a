"""The pages that ail, the homes that link to all pages, robots.txt, sitemaps and opt-outs by host."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from xml.sax.saxutils import escape

from infra.miniweb import pages
from infra.miniweb.site import DEAD_HOST, OUTSIDE_HOST, Answer, Candidate, Page, Site

LINKS_PER_LIST = 40
CRAWL_DELAY_S = 0.1

MakeCandidates = Callable[[str, str, str], list[Candidate]]


@dataclass(frozen=True, slots=True)
class Ill:
    """An ill page: its host, its fate in a crawl, and how its answer or its head differs from a sound page's."""

    host: str
    fate: str
    answer: dict[str, Any] | None = None
    head: str | None = None
    folder: str = "more"
    suffix: str = ".html"
    body: bytes | None = None  # instead of a document with images
    redirect: str | None = None
    rare: bool = False


def _once(status: int, *headers: tuple[str, str]) -> dict[str, Any]:
    return {"first": Answer(b"later\n", "text/plain", status, headers)}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"headers": ((name, value),)}


_ERROR = b"<!doctype html><title>error</title>\n"
ILLS: dict[str, Ill] = {
    "http_404": Ill("garden", "http_404", {"status": 404}, body=_ERROR),
    "http_410": Ill("garden", "http_410", {"status": 410}, body=_ERROR),
    "http_500": Ill("broken", "http_500", {"status": 500}, body=_ERROR),
    "fails_once": Ill("flaky", "ok", _once(500)),
    "busy_once": Ill("busy", "ok", _once(429, ("Retry-After", "1"))),
    "busy_always": Ill("jammed", "rate_limited", {"status": 429, "headers": (("Retry-After", "3600"),)}, body=_ERROR),
    "stalled": Ill("slow", "timeout", {"manner": "stall"}, body=b"", rare=True),
    "disallowed": Ill("garden", "robots", folder="private"),
    "redirect": Ill("garden", "redirect", {"status": 301}, redirect="home"),
    # A crawl takes a redirect for a link: that it leads to itself or out of scope is seen when the target's turn comes.
    "redirect_loop": Ill("garden", "redirect", {"status": 302}, redirect="self"),
    "redirect_to_private": Ill("garden", "redirect", {"status": 302}, redirect="http://10.0.0.1/"),
    "pdf": Ill("garden", "not_html", {"media_type": "application/pdf"}, suffix=".pdf", body=b"%PDF-1.4\n%%EOF\n"),
    "plain_text": Ill("garden", "not_html", {"media_type": "text/plain"}, suffix=".txt", body=b"just words\n"),
    "feed": Ill("garden", "not_html", {"media_type": "application/rss+xml"}, suffix=".xml", body=b"<rss/>\n"),
    "meta_noai": Ill("optout", "opt_out", head='<meta name="robots" content="noai">'),
    "meta_noimageai": Ill("optout", "opt_out", head='<meta name="ROBOTS" content="index, NoImageAI">'),
    "meta_noindex": Ill("optout", "opt_out", head='<meta name="robots" content="noindex">'),
    "meta_noimageindex": Ill("optout", "opt_out", head='<meta name="robots" content="noimageindex">'),
    "meta_for_us": Ill("optout", "opt_out", head='<meta name="pairmill" content="noai">'),
    "meta_for_another": Ill("optout", "ok", head='<meta name="otherbot" content="noai">'),
    "header_noai": Ill("optout", "opt_out", _header("X-Robots-Tag", "noai, noimageai")),
    "header_for_us": Ill("optout", "opt_out", _header("X-Robots-Tag", "pairmill: noindex")),
    "header_for_another": Ill("optout", "ok", _header("X-Robots-Tag", "otherbot: noindex")),
    "header_tdm": Ill("optout", "opt_out", _header("tdm-reservation", "1")),
    "meta_tdm": Ill("optout", "opt_out", head='<meta name="tdm-reservation" content="1">'),
    "file_tdm": Ill("optout", "opt_out", folder="reserved"),
}


def add_ill_pages(site: Site, make_candidates: MakeCandidates, sets: int) -> None:
    """Serve `sets` copies of each ill page (the slow ones once in four), duplicates of pages, and the homes."""
    extra: dict[str, list[str]] = {}
    for number in range(sets):
        for name, ill in ILLS.items():
            if not ill.rare or number % 4 == 0:
                page = _add(site, name, number, ill, make_candidates)
                extra.setdefault(ill.host, []).append(page.url)
    extra.setdefault("gallery", []).extend(_add_duplicate_pages(site, sets))
    for url, kind, fate in (
        (f"http://{DEAD_HOST}:{site.port}/", "dead_name", "dns"),
        (f"http://{OUTSIDE_HOST}:{site.port}/", "outside", "out_of_scope"),
        ("http://10.0.0.1/", "private", "out_of_scope"),
    ):
        site.pages.append(Page(url, kind, fate, None))
        if kind != "private":  # which a redirect leads to
            extra.setdefault("garden", []).append(url)
    _add_homes(site, extra)


def _add(site: Site, name: str, number: int, ill: Ill, make_candidates: MakeCandidates) -> Page:
    path = f"/{ill.folder}/{name}-{number}{ill.suffix}"
    url = site.url(ill.host, path)
    target = {"home": site.url(ill.host, "/"), "self": url}.get(ill.redirect or "", ill.redirect)
    fields: dict[str, Any] = dict(ill.answer or {})
    candidates: tuple[Candidate, ...] = ()
    if target:
        fields |= {"headers": (("Location", target),)}
    elif ill.body is not None:
        fields |= {"body": ill.body}
    else:
        candidates = tuple(make_candidates(f"{name}/{number}", ill.host, path))
        head = [ill.head] if ill.head else []
        text = pages.document(f"More: {name} {number}", [c.html for c in candidates], head=head)
        fields |= {"body": text.encode()}
    site.serve(ill.host, path, Answer(**fields))
    if ill.fate == "robots":
        candidates = ()  # nobody who obeys sees them
    elif ill.fate == "opt_out":
        candidates = tuple(_opted_out(candidate) for candidate in candidates)
    status = None if fields.get("manner") == "stall" else fields.get("status", 200)
    page = Page(url, name, ill.fate, status, candidates=candidates, redirect_to=target)
    site.pages.append(page)
    return page


def _opted_out(candidate: Candidate) -> Candidate:
    return replace(candidate, fate="opt_out", outcome=None)


def _add_duplicate_pages(site: Site, sets: int) -> list[str]:
    """Print views: the same images and captions as a content page of the gallery, at another url."""
    originals = [page for page in site.pages if page.kind == "content" and "://gallery." in page.url]
    urls = []
    for original in originals[: 2 * sets]:
        path = "/print" + original.url.rsplit("/p", 1)[1]
        answer = site.answers[original.url.removeprefix("http://").replace(f":{site.port}", "", 1)]
        assert isinstance(answer.body, bytes)
        site.serve("gallery", path, answer)
        copies = tuple(
            replace(c, fate="duplicate", outcome=None) if c.fate == "pair" else c for c in original.candidates
        )
        page = replace(original, url=site.url("gallery", path), kind="duplicate_page", candidates=copies)
        site.pages.append(page)
        urls.append(page.url)
    return urls


def _add_homes(site: Site, extra: dict[str, list[str]]) -> None:
    """A home for each host that holds pages: it links to all of them, over further lists where there are many."""
    by_host: dict[str, list[str]] = {host: list(urls) for host, urls in extra.items()}
    for page in site.pages:
        if page.kind == "content":
            host = page.url.split("//")[1].split(".")[0]
            by_host.setdefault(host, []).extend([page.url] if page.via == "link" else [])
    for host, urls in by_host.items():
        parts = [urls[at : at + LINKS_PER_LIST] for at in range(0, len(urls), LINKS_PER_LIST)] or [[]]
        lists = [site.url(host, f"/list/{n}.html") for n in range(1, len(parts))]
        for n, part in enumerate(parts):
            links = [(url, url.rsplit("/", 1)[1] or url) for url in part + (lists if n == 0 else [])]
            path = f"/list/{n}.html" if n else "/"
            text = pages.document(f"The {host} of the small web", [], links=links)
            url = site.serve(host, path, Answer(text.encode()))
            site.pages.append(Page(url, "list" if n else "home", via="link" if n else "seed"))
        site.seeds.append(site.url(host, "/"))


def add_robots_and_sitemaps(site: Site) -> None:
    """robots.txt; sitemap.xml, on the archive an index of two, one of them gzipped; tdmrep.json of the optout host."""
    delay = f"Crawl-delay: {CRAWL_DELAY_S}"
    content = [page.url for page in site.pages if page.kind == "content"]
    for host in ("trusted", "garden"):
        urls = [url for url in content if f"://{host}." in url]
        site.sitemaps.append(_serve_sitemap(site, host, "/sitemap.xml", _url_set(urls)))
    urls = [url for url in content if "://archive." in url]
    parts = [
        _serve_sitemap(site, "archive", "/sitemap-1.xml", _url_set(urls[::2])),
        _serve_sitemap(site, "archive", "/sitemap-2.xml.gz", gzip.compress(_url_set(urls[1::2]), mtime=0)),
    ]
    site.sitemaps.append(_serve_sitemap(site, "archive", "/sitemap.xml", _sitemap("sitemapindex", "sitemap", parts)))
    for host, rule in (("garden", "Disallow: /private/"), ("trusted", "Disallow:"), ("archive", delay)):
        site.serve(host, "/robots.txt", _robots(rule, f"Sitemap: {site.url(host, '/sitemap.xml')}"))
    site.serve("slow", "/robots.txt", _robots(delay))
    reserved = [{"location": "/reserved/", "tdm-reservation": 1}]
    site.serve("optout", "/.well-known/tdmrep.json", Answer(json.dumps(reserved).encode(), "application/json"))


def _robots(*lines: str) -> Answer:
    return Answer(("User-agent: *\n" + "\n".join(lines) + "\n").encode(), "text/plain")


def _serve_sitemap(site: Site, host: str, path: str, body: bytes) -> str:
    url = site.serve(host, path, Answer(body, "application/gzip" if path.endswith(".gz") else "application/xml"))
    site.pages.append(Page(url, "sitemap", "sitemap", via="sitemap"))
    return url


def _url_set(urls: list[str]) -> bytes:
    return _sitemap("urlset", "url", urls)


def _sitemap(root: str, entry: str, urls: list[str]) -> bytes:
    rows = "".join(f"<{entry}><loc>{escape(url)}</loc></{entry}>\n" for url in urls)
    space = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} {space}>\n{rows}</{root}>\n'.encode()
