"""The records of the small web: what is served at each url, its pages and imgs, and what must become of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.miniweb.pictures import Picture
from infra.miniweb.scenes import Scene

DOMAIN = "miniweb.test"
DEAD_HOST = f"dead.{DOMAIN}"  # its name does not resolve
OUTSIDE_HOST = "outside.test"  # linked to, never part of this web
CDN = f"cdn.{DOMAIN}"

# What the truth table takes for granted of a downloader's settings: --min-image-size 64 --max-aspect-ratio 4. Images
# that are not meant to fail lie far from both limits.
MIN_SIDE = 64
MAX_ASPECT = 4.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says at one url.

    manner: how the bytes go out, a key of `server.MANNERS`. wrap: what is done to the body: gzip | half. first: the
    answer to the first request alone, for what fails once and then is fine.
    """

    body: bytes | Picture = b""
    media_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    manner: str = "plain"
    wrap: str | None = None
    first: Answer | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One img of a page: its caption, its picture, and what a crawl and a download must make of it.

    fate: "pair", or why none comes of it. outcome: what a download of the pair must end with; None where it is no pair.
    alternatives: other urls of the same picture that a crawler may rightly choose (srcset, picture).
    """

    html: str
    url: str | None
    fate: str
    outcome: str | None
    caption: str | None
    caption_from: str | None
    caption_kind: str  # true | wrong_random | wrong_attribute | boilerplate | missing
    lang: str
    markup: str
    image_kind: str
    wrong_attribute: str | None = None
    alternatives: tuple[str, ...] = ()
    duplicate_of: str | None = None
    picture: Picture | None = None

    @property
    def scene(self) -> Scene | None:
        """What the picture shows."""
        return self.picture.scene if self.picture else None


@dataclass(frozen=True, slots=True)
class Page:
    """One url that is linked to as a page, and what must become of it: "ok", or why a crawl takes nothing from it."""

    url: str
    kind: str
    fate: str = "ok"
    status: int | None = 200
    lang: str = "en"
    charset: str = "utf-8"
    charset_from: str = "header"  # header | meta | bom
    via: str = "link"  # seed | link | sitemap: the only way to find it
    licence: str | None = None
    redirect_to: str | None = None
    candidates: tuple[Candidate, ...] = ()


@dataclass(slots=True)
class Site:
    """The whole web: answers by host and path ("cdn.miniweb.test/i/7.jpg"), pages in their order, where to begin."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    pages: list[Page] = field(default_factory=list)
    seeds: list[str] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def url(self, host: str, path: str) -> str:
        """The absolute url of a path; `host` without the domain is one of ours."""
        return f"http://{full_name(host)}:{self.port}{path}"

    def serve(self, host: str, path: str, answer: Answer) -> str:
        """Put an answer at a place that must still be free; returns its url."""
        key = full_name(host) + path
        assert key not in self.answers, key
        self.hosts.add(full_name(host))
        self.answers[key] = answer
        return self.url(host, path)


def full_name(host: str) -> str:
    """garden → garden.miniweb.test; a name with a dot stays."""
    return host if "." in host else f"{host}.{DOMAIN}"
