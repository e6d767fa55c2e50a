"""Whoever asks not to be used is not: by header, meta tag or TDM reservation, addressed to all or to us."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.optout import image_opt_out, links_refused, page_opt_out, tdm_reserved, tdm_rules

AGENT = "Pairmill"
REFUSED = [
    "noai", "NoAI", "noimageai", "noindex", "noimageindex", "none", "max-snippet: 20, noai", " noindex , nofollow",
    "pairmill: noai", "PAIRMILL: nofollow, noimageai", "otherbot: noindex, pairmill: noindex", "*: noai",
    "unavailable_after: 25 Jun 2030 15:00:00 PST, noai", "noai, otherbot: all",
]  # fmt: skip
ALLOWED = [
    "", "all", "nofollow", "nosnippet", "noarchive, notranslate", "otherbot: noindex", "otherbot: nofollow, noai",
    "unavailable_after: Saturday, 25-Jun-30 15:00:00 GMT", "max-image-preview: none", "noaimage", "pairmiller: noai",
]  # fmt: skip


@pytest.mark.parametrize("value", REFUSED)
def test_a_header_that_refuses_is_obeyed(value: str) -> None:
    assert image_opt_out(["all", value], AGENT)
    assert page_opt_out([("x-ROBOTS-tag", value)], (), AGENT)
    assert page_opt_out({"X-Robots-Tag": value}, (), AGENT)
    assert page_opt_out((), [("x-robots-tag", value)], AGENT)  # by http-equiv


@pytest.mark.parametrize("value", ALLOWED)
def test_a_header_that_does_not_is_not(value: str) -> None:
    assert image_opt_out([value, value], AGENT) is None
    assert page_opt_out([("X-Robots-Tag", value)], (), AGENT) is None


@pytest.mark.parametrize(
    ("name", "content", "is_refused"),
    [
        ("robots", "noindex,nofollow", True), ("robots", "NOAI noimageai", True), ("pairmill", "noai", True),
        ("googlebot", "noindex", False), ("robots", "index, follow", False), ("description", "noai", False),
        ("tdm-reservation", "1", True), ("tdm-reservation", "0", False),
    ],
)  # fmt: skip
def test_meta_tags_speak_for_the_page(name: str, content: str, is_refused: bool) -> None:
    assert (page_opt_out((), [("viewport", "x"), (name, content)], AGENT) is not None) == is_refused


def test_the_reason_names_what_was_said() -> None:
    assert page_opt_out([("X-Robots-Tag", "pairmill: noai")], (), AGENT) == "X-Robots-Tag: noai"
    assert page_opt_out([("TDM-Reservation", "1")], (), AGENT) == "tdm-reservation: 1"
    assert page_opt_out((), [("robots", "noindex")], AGENT) == "meta robots: noindex"


def test_links_are_followed_unless_nofollow_says_not() -> None:
    assert not links_refused([("X-Robots-Tag", "noai, noindex")], [("robots", "noimageai")], AGENT)
    assert links_refused([("X-Robots-Tag", "nofollow")], (), AGENT)
    assert links_refused((), [("robots", "none")], AGENT)
    assert links_refused((), [("pairmill", "nofollow")], AGENT)
    assert not links_refused([("X-Robots-Tag", "otherbot: nofollow")], [("googlebot", "nofollow")], AGENT)


def test_the_most_specific_tdm_rule_decides() -> None:
    rules = tdm_rules(
        b'[{"location": "/", "tdm-reservation": 1}, {"location": "/free/", "tdm-reservation": 0},'
        b'{"location": "/free/*.pdf$", "tdm-reservation": 1, "tdm-policy": "x"}, {"location": 5}, "rubbish"]'
    )
    assert rules is not None
    assert [tdm_reserved(rules, path) for path in ("", "/", "/x", "/free/a", "/free/a.pdf", "/free/a.pdf.html")] == [
        True, True, True, False, True, False,
    ]  # fmt: skip
    only = tdm_rules(b'[{"location": "/a$", "tdm-reservation": 1}]')
    assert only is not None
    assert [tdm_reserved(only, path) for path in ("/a", "/ab", "/")] == [True, False, False]


@pytest.mark.parametrize("data", [b"", b"{}", b"<html>", b"[" * 100_000, b"\xff\xfe"])
def test_a_file_that_is_no_tdmrep_has_no_rules(data: bytes) -> None:
    assert tdm_rules(data) is None


words = st.text(st.sampled_from("ab*$/.:"), max_size=12)


@given(words, words)
def test_patterns_and_headers_never_raise(pattern: str, path: str) -> None:
    rules = tdm_rules(f'[{{"location": "{pattern}", "tdm-reservation": 1}}]'.encode())
    assert rules is not None
    tdm_reserved(rules, path)
    image_opt_out([pattern, path], "a")
