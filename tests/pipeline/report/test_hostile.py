"""The web is hostile: captions, urls and images from strangers stay text, and never break the page."""

from __future__ import annotations

import io
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from infra.page.words import link, plain
from pipeline.report import write_report
from pipeline.report.gallery import SIDE, thumbnail
from pipeline.report.page import _templates

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% include 'page.html.j2' %}",
    "--><iframe src=javascript:alert(1)>",
    "\u202egnp.exe\u0000\u0007" + "x" * 5000,
]
SCHEMES = [
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "file:///etc/passwd",
    "http://[broken",
    "",
]


def page_of(builder: Any) -> LexborHTMLParser:
    """The report, parsed."""
    out = Path(builder.storage.path()).parent / "report.html"
    write_report(builder.storage.url, out)
    return LexborHTMLParser(out.read_text(encoding="utf-8"))


def test_captions_urls_and_messages_never_become_markup(builder: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"url": f"http://a.test/{at}?{attack}", "caption": attack, "size": (30, 20)}
        for at, attack in enumerate(ATTACKS)
    ]
    rows += [{"url": url, "caption": "stored", "size": (30, 20)} for url in SCHEMES]
    rows += [
        {"url": url, "caption": attack, "status": "failed_to_download", "reason": "dns", "error_message": attack}
        for url, attack in zip(SCHEMES, ATTACKS, strict=False)
    ]
    builder.shard("00000", rows)
    page = page_of(builder)
    assert not page.css("script, iframe, object, svg:not(.chart), [onerror], [onload], [onclick]")
    assert len(page.css("style")) == 1
    assert all(node.attributes["src"].startswith("data:image/jpeg") for node in page.css("img"))
    links = [node.attributes for node in page.css("main a")]
    assert links
    assert all(attributes["href"].startswith(("http://", "https://")) for attributes in links)
    assert all({"noopener", "noreferrer"} <= set(attributes["rel"].split()) for attributes in links)
    texts = " ".join(node.text() for node in page.css(".caption"))
    assert "<script>alert(1)</script>" in texts
    assert "{{ 7 * 7 }}" in texts
    assert "\u202e" not in texts


def test_hostile_reasons_hosts_and_settings_never_become_markup(builder: Any) -> None:
    rows = [
        {"url": f"http://{at}.test", "caption": "x", "status": word, "reason": word} for at, word in enumerate(ATTACKS)
    ]
    builder.shard("00000", rows)
    builder.storage.commit_bytes("recipe.yaml", ATTACKS[3].encode())
    builder.dataset.ledger.quarantine("download", "00009", ATTACKS[0], 1)
    builder.plan("download", ["00000", "00009"], user_agent=ATTACKS[1])
    page = page_of(builder)
    assert not page.css("script, iframe, img[onerror]")
    assert ATTACKS[3] in [node.text() for node in page.css("pre")]


@given(st.text() | st.sampled_from(SCHEMES) | st.builds("http://{}".format, st.text()))
@settings(max_examples=200)
def test_only_plain_web_addresses_become_links(url: str) -> None:
    macros = _templates().get_template("macros.html.j2").module
    page = LexborHTMLParser(str(macros.link_to(url)))  # type: ignore[attr-defined]
    anchors = page.css("a")
    assert len(anchors) == (link(url) is not None)
    assert all(node.attributes["href"] == url for node in anchors)
    assert {node.tag for node in page.css("body *")} <= {"a", "span"}


@given(st.text(), st.integers(2, 50))
def test_shown_text_is_one_bounded_line_without_control_signs(text: str, limit: int) -> None:
    shown = plain(text, limit)
    assert len(shown) <= limit
    assert not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs") for sign in shown)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    """Encoded bytes."""
    out = io.BytesIO()
    image.save(out, options.pop("format", "JPEG"), **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_kind_of_image_gives_a_small_thumbnail(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "F", "PA", "LA") else "PNG"
    image = Image.new(mode, (700, 300)) if mode != "PA" else Image.new("LA", (700, 300))
    assert thumbnail(jpeg(image, format=kind)).startswith("data:image/jpeg;base64,")


def test_a_thumbnail_stands_upright() -> None:
    import base64

    exif = Image.Exif()
    exif[0x0112] = 6
    data = base64.b64decode(thumbnail(jpeg(Image.new("RGB", (300, 100)), exif=exif)).partition(",")[2])
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.height == SIDE > shown.width


def test_images_that_cannot_be_shown_say_why(builder: Any) -> None:
    whole = jpeg(Image.new("RGB", (64, 64), "red"))
    bomb = jpeg(Image.new("1", (20_000, 20_000)), format="PNG")
    bad = [b"", b"not an image", whole[:100], bomb]
    rows = [
        {"url": f"http://a.test/{at}", "caption": "x", "size": (64, 64), "data": data}
        for at, data in enumerate(bad)
        if data
    ]
    builder.shard("00000", rows)
    builder.shard("00001", [{"url": "http://a.test/cut", "caption": "cut", "size": (64, 64)}])
    path = Path(builder.storage.path("00001.tar"))
    path.write_bytes(path.read_bytes()[:600])
    page = page_of(builder)
    reasons = [" ".join(node.text().split()) for node in page.css(".broken")]
    assert len(reasons) == 4
    assert not any("0x" in reason for reason in reasons)
    assert any("too many to show" in reason or "exceeds limit" in reason for reason in reasons)
    assert any("ends before byte" in reason for reason in reasons)


def test_an_index_of_another_shard_shows_no_foreign_image(builder: Any) -> None:
    rows = [{"url": f"http://a.test/{at}", "caption": "x", "size": (40, 40)} for at in range(3)]
    builder.shard("00000", rows)
    index = builder.storage.read("index/00000.parquet")
    builder.shard("00000", [{**row, "caption": "y"} for row in rows])
    builder.storage.commit_bytes("index/00000.parquet", index)
    page = page_of(builder)
    assert not page.css(".gallery img")
    assert {" ".join(node.text().split()) for node in page.css(".broken")} == {"the index disagrees about its uid"}


def test_the_worst_page_stays_below_its_bound(builder: Any) -> None:
    rng = random.Random(1)
    rows: list[dict[str, Any]] = []
    for at in range(60):
        noise = jpeg(Image.frombytes("RGB", (160, 160), rng.randbytes(160 * 160 * 3)), quality=95)
        rows.append(
            {"url": f"http://a.test/{at}?" + "&" * 4000, "caption": "<" * 4000, "size": (160, 160), "data": noise}
        )
    for at in range(300):
        url = f"http://{at}.test/?" + '"' * 4000
        rows.append(
            {
                "url": url,
                "caption": "&" * 4000,
                "status": "failed_to_download",
                "reason": f"r{at % 60}",
                "error_message": ">" * 4000,
            }
        )
    builder.shard("00000", rows)
    out = Path(builder.storage.path()).parent / "report.html"
    assert write_report(builder.storage.url, out)["page_bytes"] < 3 << 20
