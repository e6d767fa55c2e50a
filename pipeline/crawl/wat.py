"""A WAT record, Common Crawl's JSON description of a page, to the same Page that HTML gives.

It names src, alt and title of each img tag and no figcaption, srcset or lang attribute.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.crawl.html import MAX_META_CHARS, MAX_METAS, pair_image
from pipeline.crawl.page import SOURCES, Candidate, Page
from pipeline.crawl.picture import addresses
from pipeline.crawl.text import clean_lang, clean_text
from pipeline.urls import Resolver

Headers = tuple[tuple[str, str], ...]


class WatError(Exception):
    """The record describes no page. `reason`: bad_record, not_response, http_NNN or not_html."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


def parse_wat(
    record: bytes, *, url: str, sources: Sequence[str] = SOURCES, with_links: bool = False
) -> tuple[Page, int, Headers]:
    """The page, its HTTP status and headers. record: the JSON. url: the page's address. Raises WatError."""
    try:
        envelope = _dict(json.loads(record), "Envelope")
    except (ValueError, RecursionError):
        raise WatError("bad_record") from None
    payload = _dict(envelope, "Payload-Metadata")
    response = _dict(payload, "HTTP-Response-Metadata")
    if not response:
        raise WatError("not_response" if payload else "bad_record")
    status = str(_dict(response, "Response-Message").get("Status", ""))
    if not (status.isascii() and status.isdigit() and len(status) == 3):
        raise WatError("bad_record")
    if status != "200":
        raise WatError(f"http_{status}", int(status))
    html = _dict(response, "HTML-Metadata")
    if not html:
        raise WatError("not_html", 200)
    headers = tuple(
        (name, text)
        for name, value in _dict(response, "Headers").items()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str)
    )
    language = next((value for name, value in headers if name.lower() == "content-language"), None)
    return _page(html, url, sources, clean_lang(language), with_links), 200, headers


def _page(html: dict[str, Any], url: str, sources: Sequence[str], lang: str | None, with_links: bool) -> Page:
    head = _dict(html, "Head")
    resolve = Resolver(url)
    base = _text(head, "Base")
    if base is not None and (resolved := resolve(base)) is not None:
        resolve = Resolver(resolved)
    metas = [
        (name[:100].strip().lower(), (_text(meta, "content") or "")[:MAX_META_CHARS])
        for meta in _dicts(head, "Metas")
        if (name := _text(meta, "name") or _text(meta, "http-equiv"))
    ]
    tags = [*_dicts(head, "Link"), *_dicts(html, "Links")]
    licence = _related(tags, "license", resolve)
    candidates: list[Candidate] = []
    dropped: Counter[str] = Counter()
    num_img = num_with_alt = num_nofollow = 0
    links: dict[str, None] = {}
    for tag in tags:
        path, reference = _text(tag, "path"), _text(tag, "url")
        if path == "IMG@/src":
            num_img += 1
            num_with_alt += bool(clean_text(_text(tag, "alt")))
            texts: dict[str, str] = {}
            for source in sources:
                if source != "figcaption" and (text := clean_text(_text(tag, source))):
                    texts.setdefault(text, source)
            img = {"src": reference}
            pairs = pair_image(img, texts, addresses(img), resolve, lang, licence)
            if isinstance(pairs, str):
                dropped[pairs] += 1
            else:
                candidates += pairs
        elif with_links and path in ("A@/href", "AREA@/href"):
            if "nofollow" in (_text(tag, "rel") or "").lower().split():
                num_nofollow += 1
            elif (link := resolve(reference or "")) is not None:
                links[link] = None
    return Page(
        candidates=candidates, dropped=dropped, links=list(links), num_nofollow=num_nofollow,
        title=clean_text(_text(head, "Title")) or None, lang=lang, meta_robots=tuple(metas[:MAX_METAS]),
        licence=licence, canonical_url=_related(tags, "canonical", resolve),
        num_img=num_img, num_img_with_alt=num_with_alt,
    )  # fmt: skip


def _related(tags: Sequence[dict[str, Any]], relation: str, resolve: Resolver) -> str | None:
    for tag in tags:
        if relation in (_text(tag, "rel") or "").lower().split():
            url = resolve(_text(tag, "url") or "")
            if url is not None:
                return url
    return None


def _dict(parent: Any, name: str) -> dict[str, Any]:
    value = parent.get(name) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def _dicts(parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = parent.get(name)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _text(parent: dict[str, Any], name: str) -> str | None:
    value = parent.get(name)
    return value if isinstance(value, str) else None
