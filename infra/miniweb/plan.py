"""Plans the web: which host holds which page, what its images show and say, and what ails them. Nothing is drawn here.

The same (pages, seed, port) give the same plan. Every content page has its own source of chance, so another number of
pages leaves the scenes of the first ones as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from infra.miniweb import pages
from infra.miniweb.captions import describe, true_of_another, wrong_in_one
from infra.miniweb.illpages import add_ill_pages, add_robots_and_sitemaps
from infra.miniweb.kinds import COPIES, KINDS, Kind, image_answer, place_image
from infra.miniweb.pictures import COLOURLESS, Picture
from infra.miniweb.scenes import Scene, random_scene
from infra.miniweb.site import Answer, Candidate, Page, Site
from infra.miniweb.words import LANGUAGES

# Hosts take turns in this order; each speaks a language, the trusted one all of them.
TURNS = (
    *("trusted", "garden", "gallery", "wiese", "trusted", "garden", "jardin", "gallery"),
    *("trusted", "garden", "playa", "gallery", "trusted", "mercato", "garden", "wiese"),
    *("trusted", "niwa", "gallery", "jardin", "trusted", "huayuan", "garden", "archive"),
)
HOST_LANGUAGE = {"wiese": "de", "jardin": "fr", "playa": "es", "mercato": "it", "niwa": "ja", "huayuan": "zh"}
# What every other page of these hosts is written in, and how it says so. "iso-8859-1" means windows-1252 on the web.
HOST_CHARSET = {
    "gallery": ("utf-16", "bom"),
    "wiese": ("windows-1252", "header"),
    "jardin": ("iso-8859-1", "meta"),
    "mercato": ("utf-8-sig", "bom"),
    "niwa": ("shift_jis", "meta"),
    "huayuan": ("gb18030", "meta"),
}
CAPTION_KINDS = ("true", "wrong_random", "wrong_attribute", "boilerplate", "missing")
CAPTION_WEIGHTS = (50, 13, 15, 14, 8)
BOILERPLATE = (
    *("click to enlarge", "IMG_1234.jpg", "image", "logo", "DSC00042.JPG", "photo"),
    *("Photo © Müller & Söhne", "thumbnail", "zum Vergrößern klicken", "cliquez pour agrandir"),
    *("haga clic para ampliar", "画像", "图片", "untitled", "share"),
)
PLAIN_FORMATS = ("jpeg",) * 16 + ("progressive_jpeg", "png", "webp", "gif", "avif")
TRUSTED_FORMATS = ("jpeg",) * 10 + ("webp", "png")
PLAIN_MARKUPS = ("img", "sized", "upper_case")
LICENCE = "https://creativecommons.org/licenses/by/4.0/"
RARE_EVERY = 10  # rounds through the kinds: a client loses whole deadlines to the rare ones


def plan_site(num_pages: int, seed: int, port: int) -> Site:
    """The web of `num_pages` content pages, their hosts' home pages, and a fixed set of ill pages for each hundred."""
    site = Site(port)
    planner = _Planner(site, seed)
    for index in range(num_pages):
        planner.add_content_page(index)
    add_ill_pages(site, planner.simple_candidates, sets=max(1, num_pages // 100))
    add_robots_and_sitemaps(site)
    for host in sorted(site.hosts):
        site.serve(host, "/style.css", Answer(pages.STYLE, "text/css"))
    return site


class _Planner:
    """Deals scenes, captions and ills to pages, one page after the other."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.seed = seed
        self.num_images = 0
        self.kinds = self._rounds([*KINDS, *COPIES])
        self.markups = self._rounds([name for name in pages.MARKUPS if name not in PLAIN_MARKUPS])
        self.shown: list[Candidate] = []  # plain pairs of earlier pages: what copies are made of
        self.pairs: set[tuple[str | None, str | None]] = set()  # (url, caption) so far

    def add_content_page(self, index: int) -> None:
        """Deal the next page: its images, how they are written, its charset and links."""
        rng = random.Random(f"{self.seed}/page/{index}")
        host = TURNS[index % len(TURNS)]
        turn = index // len(TURNS)
        lang = rng.choice(LANGUAGES) if host == "trusted" and turn % 2 else HOST_LANGUAGE.get(host, "en")
        path = f"/p/{index}.html"
        base = host == "gallery" and index % 5 == 2
        candidates = self._candidates(rng, host, path, lang, base)
        self.pairs |= {(c.url, c.caption) for c in candidates if c.fate == "pair"}
        if host != "archive":  # which a crawl without sitemaps sees only half of
            good = [c for c in candidates if c.fate == "pair" and c.image_kind == "plain"]
            self.shown += [c for c in good if c.caption_kind == "true"]
        charset, charset_from = HOST_CHARSET.get(host, ("utf-8", "header"))
        if turn % 2 or host not in HOST_CHARSET:
            charset, charset_from = "utf-8", "header"
        licence = LICENCE if rng.random() < 0.2 else None
        page = Page(
            self.site.url(host, path), "content", lang=lang, charset=charset, charset_from=charset_from,
            licence=licence, candidates=tuple(candidates),
            via="sitemap" if host == "archive" and turn % 2 == 0 else "link",
        )  # fmt: skip
        self._serve(page, host, path, self._links(rng, host, index), base)

    def simple_candidates(self, name: str, host: str, path: str) -> list[Candidate]:
        """Two well-behaved images for a page whose ill is another one."""
        rng = random.Random(f"{self.seed}/{name}")
        return [self._plain(rng, host, path, "en", "img", "true", False) for _ in range(2)]

    def _candidates(self, rng: random.Random, host: str, path: str, lang: str, base: bool) -> list[Candidate]:
        if host == "trusted":
            markups = [rng.choice((*PLAIN_MARKUPS, "figcaption")) for _ in range(3)]
            return [self._plain(rng, host, path, lang, markup, "true", base) for markup in markups]
        dealt = [self._of_kind(rng, host, path, lang, next(self.kinds)) for _ in range(2)]
        markups = [next(self.markups) for _ in range(2)] + rng.choices(PLAIN_MARKUPS, k=rng.randint(0, 2))
        dealt += [self._plain(rng, host, path, lang, markup, self._caption_kind(rng), base) for markup in markups]
        rng.shuffle(dealt)
        return dealt

    def _plain(
        self, rng: random.Random, host: str, path: str, lang: str, markup: str, caption_kind: str, base: bool
    ) -> Candidate:
        """A picture that comes down right, written in any of the ways."""
        trusted = host == "trusted"
        kind = Kind(format=rng.choice(TRUSTED_FORMATS if trusted else PLAIN_FORMATS), host=self._image_host(rng, host))
        picture = self._picture(rng, kind)
        if caption_kind == "missing":
            markup = "empty_alt" if markup in PLAIN_MARKUPS else "no_alt"
        caption, wrong_attribute = self._caption(rng, picture.scene, lang, caption_kind)
        fate = pages.NO_PAIR.get(markup, "pair")
        url, alternatives, src, values = None, [], "", {}
        image_id = self._next_id()
        if fate in ("pair", "no_caption"):
            query = f"?w={picture.width}&v={image_id % 9}" if rng.random() < 0.1 else ""
            url = place_image(self.site, kind, image_id, picture, query)
            src = self._written(rng, url, host, base)
        if "{small}" in pages.MARKUPS[markup]:
            width, height = 160, round(160 * picture.height / picture.width)
            small = image_answer(replace(picture, width=width, height=height, format="jpeg"), "jpg")
            alternatives.append(self.site.serve(kind.host, f"/i/{image_id}-small.jpg", small))
            values["small"] = alternatives[-1]
        if "{webp}" in pages.MARKUPS[markup]:
            modern = image_answer(replace(picture, format="webp"), "webp")
            alternatives.append(self.site.serve(kind.host, f"/i/{image_id}-modern.webp", modern))
            values["webp"] = alternatives[-1]
        text = pages.image_html(
            markup, caption or "", rng.random() < 0.1, src=src, id=image_id, page=self.site.url(host, path),
            width=picture.width, height=picture.height, **values,
        )  # fmt: skip
        # Without alt nothing is said, whatever the picture shows.
        silent = fate == "no_caption"
        return Candidate(
            text, url, fate, "success" if fate == "pair" else None, None if silent else caption,
            None if silent else pages.CAPTION_FROM.get(markup, "alt"), "missing" if silent else caption_kind, lang,
            markup, "plain", None if silent else wrong_attribute, tuple(alternatives), None, picture if url else None,
        )  # fmt: skip

    def _of_kind(self, rng: random.Random, host: str, path: str, lang: str, name: str) -> Candidate:
        """A picture served in a given way, or a copy of one that was shown before."""
        image_id = self._next_id()
        said = rng.choices(CAPTION_KINDS[:4], CAPTION_WEIGHTS[:4])[0]
        original = rng.choice(self.shown) if name in COPIES and self.shown else None
        if original is not None and original.picture is not None:
            picture = original.picture
            if name.startswith("near_"):
                picture = replace(picture, edit=name.removeprefix("near_"), format="jpeg")
            kind = Kind(format=picture.format, host="mirror")
            own = name not in ("shared_image", "repeated_pair")
            url = place_image(self.site, kind, image_id, picture) if own else original.url
        else:
            name = "jpeg" if name in COPIES else name
            kind = KINDS.get(name, Kind())
            picture = self._picture(rng, kind)
            url = place_image(self.site, kind, image_id, picture)
        said = "boilerplate" if name in ("icon", "tracking_pixel") else said
        caption, wrong_attribute = self._caption(rng, picture.scene, lang, said)
        while (url, caption) in self.pairs:
            caption, wrong_attribute = self._caption(rng, picture.scene, lang, said)
        fate = "pair"
        if name == "repeated_pair" and original is not None:
            caption, wrong_attribute, said, lang, fate = original.caption, None, "true", original.lang, "duplicate"
        assert url is not None
        return Candidate(
            pages.image_html("img", caption or "", src=url), url, fate, kind.outcome if fate == "pair" else None,
            caption, "alt", said, lang, "img", name, wrong_attribute,
            duplicate_of=original.url if original else None, picture=picture,
        )  # fmt: skip

    def _picture(self, rng: random.Random, kind: Kind) -> Picture:
        scene = random_scene(rng)
        if kind.format in COLOURLESS:
            things = tuple(replace(thing, colour=rng.choice(("black", "white"))) for thing in scene.things)
            scene = replace(scene, things=things, background=rng.choice(("room", "paper", "beach")))
        width = rng.choice((192, 224, 256, 288, 320, 320, 400, 480, 640))
        height = round(width / rng.choice((0.75, 0.8, 1, 1, 1.25, 4 / 3, 4 / 3, 1.5)))
        size = kind.size or ((width, height) if height <= 640 else (480, 640))
        orientation = rng.choice((3, 6, 8)) if kind.format == "exif_jpeg" else 1
        return Picture(scene, *size, kind.format, rng.choice((75, 85, 90, 95)), None, orientation)

    def _caption(self, rng: random.Random, scene: Scene, lang: str, kind: str) -> tuple[str | None, str | None]:
        if kind == "missing":
            return None, None
        if kind == "boilerplate":
            return rng.choice(BOILERPLATE), None
        if kind == "true":
            return describe(scene, lang, rng), None
        wrong = (true_of_another if kind == "wrong_random" else wrong_in_one)(scene, lang, rng)
        return wrong.text, wrong.attribute

    def _caption_kind(self, rng: random.Random) -> str:
        return rng.choices(CAPTION_KINDS, CAPTION_WEIGHTS)[0]

    def _image_host(self, rng: random.Random, host: str) -> str:
        return host if host == "trusted" or rng.random() < 0.6 else "cdn"

    def _written(self, rng: random.Random, url: str, host: str, base: bool) -> str:
        """A url as a page may write it: in full, without the scheme, from the root, or relative."""
        rest = url.removeprefix(self.site.url(host, ""))
        if base:
            # <base href> points at the cdn's folder of images.
            return url.removeprefix(self.site.url("cdn", "/i/"))
        if rest == url:
            return rng.choice((url, url.removeprefix("http:")))
        return rng.choice((url, url.removeprefix("http:"), rest, f"..{rest}", f"./..{rest}"))

    def _links(self, rng: random.Random, host: str, index: int) -> list[tuple[str, str]]:
        other = rng.randrange(max(1, index))
        links = [
            (self.site.url(host, "/"), "home"),
            (self.site.url(TURNS[other % len(TURNS)], f"/p/{other}.html#top"), "another page"),
            ("mailto:web@miniweb.test", "mail"),
            ("javascript:void(0)", "menu"),
        ]
        # A page of the archive that only the sitemap tells of must not be linked to.
        if TURNS[other % len(TURNS)] == "archive":
            del links[1]
        return links + ([(f"http://outside.test:{self.site.port}/", "elsewhere")] if rng.random() < 0.2 else [])

    def _serve(self, page: Page, host: str, path: str, links: list[tuple[str, str]], base: bool) -> None:
        head = [f'<base href="{self.site.url("cdn", "/i/")}">'] if base else []
        if page.charset_from == "meta":
            head.insert(0, f'<meta charset="{page.charset}">')
        # The base changes what links mean, too: they are all in full.
        text = pages.document(
            f"Page {path.split('/')[-1].removesuffix('.html')}", [c.html for c in page.candidates], lang=page.lang,
            links=links, head=head, licence=page.licence,
        )  # fmt: skip
        media_type = f"text/html; charset={page.charset}" if page.charset_from == "header" else "text/html"
        # What the web calls iso-8859-1 is windows-1252.
        codec = "windows-1252" if page.charset == "iso-8859-1" else page.charset
        self.site.serve(host, path, Answer(pages.encode(text, codec), media_type))
        self.site.pages.append(page)

    def _rounds(self, names: list[str]) -> Iterator[str]:
        """Each name once a round, in another order every time, without end."""
        number = 0
        while True:
            rng = random.Random(f"{self.seed}/round/{number}")
            dealt = [n for n in names if number % RARE_EVERY == 0 or not (n in KINDS and KINDS[n].rare)]
            rng.shuffle(dealt)
            yield from dealt
            number += 1

    def _next_id(self) -> int:
        self.num_images += 1
        return self.num_images
