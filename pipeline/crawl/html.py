"""A page to its candidates: every image with each text that speaks of it. Bytes in, no network, never raises.

Every img tag ends in at least one candidate or in exactly one dropped reason:

    no_caption     no text beside it
    no_url         a tag without an address
    data_url       the picture is written into the page
    bad_url        no valid http(s) url
    noscript_copy  what a noscript element repeats of an image found elsewhere on the page
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from selectolax.lexbor import LexborCSSSelector, LexborDocumentOptions, LexborHTMLParser, LexborNode, SelectolaxError

from pipeline.crawl.charset import to_utf8
from pipeline.crawl.guard import is_too_complex
from pipeline.crawl.page import SOURCES, Candidate, Page
from pipeline.crawl.picture import Attributes, addresses, has_data_url
from pipeline.crawl.text import clean_lang, clean_text, element_text
from pipeline.urls import Resolver, clean_url

__all__ = ["SOURCES", "Candidate", "Page", "clean_url", "pair_image", "parse_page"]

MAX_META_CHARS = 1_000
MAX_METAS = 1_000
_QUERY = "img,source,picture,figure,figcaption,noscript,base,meta,title,link,[lang],[rel~=license]"
_QUERY_WITH_LINKS = f"{_QUERY},a[href],area[href]"
_LANDMARKS = frozenset(("picture", "figure", "figcaption", "noscript"))
_local = threading.local()


class _Place(NamedTuple):
    """What surrounds an element; nearest of each. Elements as memory addresses."""

    lang: str | None = None
    figure: int | None = None
    picture: int | None = None
    is_noscript: bool = False


def parse_page(
    body: bytes,
    *,
    url: str,
    content_type: str | None = None,
    sources: Sequence[str] = SOURCES,
    content_language: str | None = None,
    with_links: bool = True,
) -> Page:
    """Read a page.

    url: the page's own address. content_type, content_language: its HTTP headers, whole. sources: where captions come
    from, in order; a text that an earlier source has given is not repeated. A figcaption is given to every image whose
    nearest figure it belongs to: whether it fits each of several is for the scores to tell. with_links=False leaves
    `links` empty, which saves a third of the time on pages with many.
    """
    html = to_utf8(body, content_type)
    if is_too_complex(html):
        return Page(fault="too_complex")
    try:
        tree = LexborHTMLParser(html, options=LexborDocumentOptions.WO_EVENTS)
    except (SelectolaxError, RuntimeError, MemoryError, ValueError):
        return Page(fault="parse_error")
    root = tree.root
    if root is None:
        return Page()
    nodes = _selector().find(_QUERY_WITH_LINKS if with_links else _QUERY, root)
    return _Reader(nodes, url, clean_lang(content_language)).page(sources)


def pair_image(
    img: Attributes, texts: Mapping[str, str], references: Sequence[str], resolve: Resolver, lang: str | None,
    licence: str | None,
) -> list[Candidate] | str:  # fmt: skip
    """Candidates of one image, or the reason why there are none. texts: text -> source, in order."""
    if not texts:
        return "no_caption"
    if not references:
        return "data_url" if has_data_url(img) else "no_url"
    urls = list(dict.fromkeys(found for reference in references if (found := resolve(reference)) is not None))
    if not urls:
        return "bad_url"
    others = tuple(urls[1:])
    return [Candidate(urls[0], text, source, lang, licence, others) for text, source in texts.items()]


class _Reader:
    """One page, from its interesting elements in document order."""

    def __init__(self, nodes: Iterable[LexborNode], url: str, lang: str | None) -> None:
        self.imgs: list[tuple[LexborNode, Attributes]] = []
        self.links: list[Attributes] = []
        self.licences: list[str] = []
        self.canonicals: list[str] = []
        self.metas: list[tuple[str, str]] = []
        self.title: str | None = None
        self.base: str | None = None
        self._captions: list[LexborNode] = []
        self._sources: dict[int, list[Attributes]] = {}  # of a picture element
        self._langs: dict[int, str] = {}
        self._landmarks: dict[int, str] = {}
        self._places: dict[int, _Place] = {}
        self.lang = lang
        # A selector list reports an element once for each selector that it fits.
        for node in {node.mem_id: node for node in nodes}.values():
            self._take(node)
        self.resolve = Resolver(url)
        if self.base is not None and (base := self.resolve(self.base)) is not None:
            self.resolve = Resolver(base)

    def _take(self, node: LexborNode) -> None:
        tag, attributes = node.tag, node.attributes
        if "lang" in attributes and (lang := clean_lang(attributes["lang"])) is not None:
            if tag == "html":
                self.lang = lang
            else:
                self._langs[node.mem_id] = lang
        if tag == "img":
            self.imgs.append((node, attributes))
        elif tag == "a" or tag == "area" or tag == "link":
            self._take_link(tag, attributes)
        elif tag in _LANDMARKS:
            self._landmarks[node.mem_id] = tag
            if tag == "figcaption":
                self._captions.append(node)
        elif tag == "source":
            parent = node.parent
            if parent is not None:
                self._sources.setdefault(parent.mem_id, []).append(attributes)
        elif tag == "meta":
            name = attributes.get("name") or attributes.get("http-equiv")
            if name and len(self.metas) < MAX_METAS:
                self.metas.append((name[:100].strip().lower(), (attributes.get("content") or "")[:MAX_META_CHARS]))
        elif tag == "title":
            if self.title is None:
                self.title = clean_text(node.text()) or None
        elif tag == "base" and self.base is None:
            self.base = attributes.get("href")

    def _take_link(self, tag: str, attributes: Attributes) -> None:
        href = attributes.get("href")
        if href is None:
            return
        if tag != "link":
            self.links.append(attributes)
        if relation := attributes.get("rel"):
            relations = relation.lower().split()
            if "license" in relations:
                self.licences.append(href)
            elif tag == "link" and "canonical" in relations:
                self.canonicals.append(href)

    def page(self, sources: Sequence[str]) -> Page:
        licence = self._first_url(self.licences)
        figcaptions = self._figcaptions() if "figcaption" in sources else {}
        candidates: list[Candidate] = []
        dropped: Counter[str] = Counter()
        num_with_alt = 0
        late: list[list[Candidate]] = []
        for node, img in self.imgs:
            alt = clean_text(img.get("alt"))
            num_with_alt += bool(alt)
            place = self._place(node)
            texts: dict[str, str] = {}
            for source in sources:
                text = (
                    alt if source == "alt" else clean_text(img.get("title")) if source == "title"
                    else figcaptions.get(place.figure, "")
                )  # fmt: skip
                if text:
                    texts.setdefault(text, source)
            references = addresses(img, self._sources.get(place.picture or 0, ())) if texts else ()
            pairs = pair_image(img, texts, references, self.resolve, place.lang, licence)
            if isinstance(pairs, str):
                dropped[pairs] += 1
            elif place.is_noscript:
                late.append(pairs)
            else:
                candidates += pairs
        if late:
            # After all others: the copy may come before what it copies.
            known = {(pair.url, pair.caption) for pair in candidates}
            for pairs in late:
                if all((pair.url, pair.caption) in known for pair in pairs):
                    dropped["noscript_copy"] += 1
                else:
                    candidates += pairs
        links, num_nofollow = self._links()
        return Page(
            candidates=candidates, dropped=dropped, links=links, num_nofollow=num_nofollow, title=self.title,
            lang=self.lang, meta_robots=tuple(self.metas), licence=licence,
            canonical_url=self._first_url(self.canonicals), num_img=len(self.imgs), num_img_with_alt=num_with_alt,
        )  # fmt: skip

    def _links(self) -> tuple[list[str], int]:
        resolve, num_nofollow = self.resolve, 0
        found: dict[str, None] = {}
        for attributes in self.links:
            relation = attributes.get("rel")
            if relation and "nofollow" in relation.lower().split():
                num_nofollow += 1
            elif (url := resolve(attributes["href"] or "")) is not None:
                found[url] = None
        return list(found), num_nofollow

    def _first_url(self, references: Iterable[str]) -> str | None:
        return next((url for reference in references if (url := self.resolve(reference)) is not None), None)

    def _figcaptions(self) -> dict[int | None, str]:
        """Figure -> text of its first figcaption."""
        texts: dict[int | None, str] = {}
        for node in self._captions:
            parent = node.parent
            figure = self._place(node).figure if parent is not None else None
            if figure is not None and figure not in texts:
                texts[figure] = element_text(node)
        return texts

    def _place(self, node: LexborNode) -> _Place:
        """What surrounds a node. Each ancestor is looked at once a page, however deep the nesting."""
        own = self._langs.get(node.mem_id)
        outer: list[int] = []
        place = None
        if self._landmarks or self._langs:
            ancestor = node.parent
            while ancestor is not None and (place := self._places.get(ancestor.mem_id)) is None:
                outer.append(ancestor.mem_id)
                ancestor = ancestor.parent
        if place is None:
            place = _Place(self.lang)
        for element in reversed(outer):
            if (lang := self._langs.get(element)) is not None:
                place = place._replace(lang=lang)
            landmark = self._landmarks.get(element)
            if landmark == "figure":
                place = place._replace(figure=element)
            elif landmark == "figcaption":
                place = place._replace(figure=None)  # an image in a caption is not what the caption speaks of
            elif landmark == "picture":
                place = place._replace(picture=element)
            elif landmark == "noscript":
                place = place._replace(is_noscript=True)
            self._places[element] = place
        return place._replace(lang=own) if own is not None else place


def _selector() -> LexborCSSSelector:
    # Making one costs as much as reading a small page; it is not to be shared between threads.
    selector = getattr(_local, "selector", None)
    if selector is None:
        selector = _local.selector = LexborCSSSelector()
    return selector
