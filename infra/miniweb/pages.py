"""Writes the pages: img markup in the ways of the real web, and the documents around it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

PLACEHOLDER = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
STYLE = b"""body { font: 16px/1.5 Georgia, serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #333 }
img { max-width: 100%; border-radius: 6px } figure { margin: 1rem 0 } nav a { margin-right: .8rem }
"""

# How an img may be written: name to template. {src} points at the image, {small} at a smaller one, {webp} at the same
# one as WebP, {alt} is the caption, all escaped.
MARKUPS: dict[str, str] = {
    "img": '<p><img src="{src}" alt="{alt}"></p>',
    "sized": '<a href="{page}"><img alt="{alt}" src="{src}" width="{width}" height="{height}"></a>',
    "upper_case": "<P><IMG ALT='{alt}' SRC='{src}'></P>",
    "figcaption": '<figure><img src="{src}"><figcaption>\n  <b>{alt}</b>\n</figcaption></figure>',
    "figcaption_empty_alt": '<figure><img src="{src}" alt=""><figcaption>{alt}</figcaption></figure>',
    "title": '<p><img src="{src}" title="{alt}"></p>',
    "srcset": '<p><img src="{small}" srcset="{small} 160w, {src} {width}w" sizes="100vw" alt="{alt}"></p>',
    "srcset_density": '<p><img src="{small}" srcset="{small} 1x, {src} 2x" alt="{alt}"></p>',
    "picture": '<p><picture><source type="image/webp" srcset="{webp}"><img src="{src}" alt="{alt}"></picture></p>',
    "lazy": '<p><img class="lazyload" src="{blank}" data-src="{src}" alt="{alt}"></p>',
    "lazy_srcset": '<p><img loading="lazy" src="{blank}" data-srcset="{small} 160w, {src} {width}w" alt="{alt}"></p>',
    "no_alt": '<p><img src="{src}"></p>',
    "empty_alt": '<p><img src="{src}" alt=""></p>',
    "blank_alt": '<p><img src="{src}" alt="  \n "></p>',
    "data_url": '<p><img src="{blank}" alt="{alt}"></p>',
    "no_url": '<p><img alt="{alt}"></p>',
    "empty_url": '<p><img src="" alt="{alt}"></p>',
    "bad_url": '<p><img src="http://[fe80::bad/{id}.jpg" alt="{alt}"></p>',
}
CAPTION_FROM = {"figcaption": "figcaption", "figcaption_empty_alt": "figcaption", "title": "title"}
NO_PAIR = {
    "no_alt": "no_caption",
    "empty_alt": "no_caption",
    "blank_alt": "no_caption",
    "data_url": "data_url",
    "no_url": "no_url",
    "empty_url": "no_url",
    "bad_url": "bad_url",
}


def image_html(markup: str, caption: str, numeric_entities: bool = False, **values: str | int) -> str:
    """One img, written as `markup` says."""
    escaped = {name: html.escape(str(value)) for name, value in values.items()}
    alt = html.escape(caption)
    if numeric_entities:
        alt = alt.encode("ascii", "xmlcharrefreplace").decode()
    return MARKUPS[markup].format(alt=alt, blank=PLACEHOLDER, **escaped)


def document(
    title: str,
    body: Iterable[str],
    *,
    lang: str = "en",
    links: Sequence[tuple[str, str]] = (),
    head: Sequence[str] = (),
    licence: str | None = None,
) -> str:
    """A page: its parts in order, then its links as (href, text)."""
    navigation = "\n".join(f'<a href="{html.escape(href)}">{html.escape(text)}</a>' for href, text in links)
    foot = f'<p>Licence: <a rel="license" href="{html.escape(licence)}">terms</a></p>' if licence else ""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="{lang}">',
            f"<head><title>{html.escape(title)}</title>",
            *head,
            '<link rel="stylesheet" href="/style.css"></head>',
            "<body>",
            f"<h1>{html.escape(title)}</h1>",
            *body,
            f"<nav>{navigation}</nav>",
            foot,
            "</body></html>\n",
        ]
    )


def encode(text: str, charset: str) -> bytes:
    """The document's bytes; signs that the charset lacks become character references. utf-16 has a byte order mark."""
    return text.encode(charset, "xmlcharrefreplace")
