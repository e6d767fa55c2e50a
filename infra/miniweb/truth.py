"""The truth table: one row for each page and one for each img of a page, with what must become of it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from infra.miniweb.pages import NO_PAIR
from infra.miniweb.site import Candidate, Page, Site

SCHEMA = pa.schema(
    [
        ("row", pa.string()),  # page | candidate
        ("page_url", pa.string()),
        ("page_host", pa.string()),
        ("page_kind", pa.string()),
        ("via", pa.string()),  # seed | link | sitemap: the only way to the page
        ("fate", pa.string()),  # page: ok or why nothing is taken; candidate: pair or why none comes of it
        ("status", pa.int32()),  # page: of the final answer; null where none comes
        ("redirect_to", pa.string()),
        ("charset", pa.string()),
        ("charset_from", pa.string()),
        ("licence", pa.string()),
        ("lang", pa.string()),  # page: of the document; candidate: of the caption
        ("position", pa.int32()),  # of the img on its page
        ("url", pa.string()),
        ("alternatives", pa.list_(pa.string())),  # other urls of the picture that may rightly be chosen
        ("caption", pa.string()),
        ("caption_from", pa.string()),  # alt | figcaption | title
        ("caption_kind", pa.string()),  # true | wrong_random | wrong_attribute | boilerplate | missing
        ("wrong_attribute", pa.string()),
        ("markup", pa.string()),
        ("image_kind", pa.string()),
        ("duplicate_of", pa.string()),
        ("outcome", pa.string()),  # of a download of the pair: success or the reason
        ("format", pa.string()),
        ("width", pa.int32()),  # as shown: EXIF applied
        ("height", pa.int32()),
        ("facts", pa.string()),  # JSON of what the picture shows
    ]
)


def truth_table(site: Site) -> pa.Table:
    """The table of a planned web, pages in their order, each followed by its imgs."""
    rows: list[dict[str, Any]] = []
    for page in site.pages:
        rows.append(_page_row(page))
        rows += [_candidate_row(page, candidate, n) for n, candidate in enumerate(page.candidates)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _page_row(page: Page) -> dict[str, Any]:
    return _about_page(page) | {
        "row": "page",
        "fate": page.fate,
        "status": page.status,
        "redirect_to": page.redirect_to,
        "lang": page.lang,
    }


def _about_page(page: Page) -> dict[str, Any]:
    return {
        "page_url": page.url,
        "page_host": urlsplit(page.url).hostname,
        "page_kind": page.kind,
        "via": page.via,
        "charset": page.charset,
        "charset_from": page.charset_from,
        "licence": page.licence,
    }


def _candidate_row(page: Page, candidate: Candidate, position: int) -> dict[str, Any]:
    assert candidate.fate in {"pair", "duplicate", "opt_out", *NO_PAIR.values()}, candidate
    about: dict[str, Any] = {}
    if candidate.picture is not None:
        width, height = candidate.picture.shown_size()
        facts = json.dumps(candidate.picture.scene.facts(), sort_keys=True)
        about = {"format": candidate.picture.format, "width": width, "height": height, "facts": facts}
    return (
        _about_page(page)
        | about
        | {
            "row": "candidate",
            "position": position,
            "alternatives": list(candidate.alternatives),
            **{
                name: getattr(candidate, name)
                for name in (
                    *("fate", "url", "caption", "caption_from", "caption_kind", "wrong_attribute", "lang"),
                    *("markup", "image_kind", "duplicate_of", "outcome"),
                )
            },
        }
    )
