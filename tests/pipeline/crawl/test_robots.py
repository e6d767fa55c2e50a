"""robots.txt is obeyed as RFC 9309 reads it; sitemaps are read within bounds."""

from __future__ import annotations

import gzip
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.robots import MAX_ROBOTS_BYTES, Robots, parse_sitemap

AGENT = "Pairmill"


def robots(text: str | bytes, status: int = 200) -> Robots:
    return Robots.from_response(status, text.encode() if isinstance(text, str) else text, AGENT)


def allows(rules: Robots, path: str) -> bool:
    return rules.allows(f"http://e.example{path}")


@pytest.mark.parametrize(
    ("status", "is_allowed"),
    [(404, True), (403, True), (410, True), (301, True), (429, False), (500, False), (503, False), (None, False)],
)
def test_the_status_speaks_where_there_is_no_file(status: int | None, is_allowed: bool) -> None:
    rules = Robots.from_response(status, b"User-agent: *\nDisallow: /", AGENT)
    assert allows(rules, "/x") == is_allowed
    assert rules.crawl_delay is None


def test_our_group_beats_everybody_s_and_the_longest_rule_wins() -> None:
    rules = robots(
        "User-agent: *\nDisallow: /\n\nUser-Agent: otherbot\nUSER-AGENT: PAIRMILL/1.0 # us\nDisallow: /a\nAllow: /a/b\n"
        "Disallow: /*.gif$\nCrawl-delay: 2.5\n\nSitemap: http://e.example/s.xml\nSitemap: /relative.xml\n"
    )
    assert [allows(rules, path) for path in ("/", "/a", "/a/b/c", "/x.gif", "/x.gif?y")] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert rules.crawl_delay == 2.5
    assert rules.sitemaps == ["http://e.example/s.xml"]


@pytest.mark.parametrize("name", ["pair", "p", "pairmillbot", "mill", "pairmill-images"])
def test_an_agent_whose_name_is_part_of_ours_is_another(name: str) -> None:
    assert allows(robots(f"User-agent: {name}\nDisallow: /"), "/x")


def test_a_mark_and_wrong_line_ends_do_no_harm() -> None:
    assert not allows(robots("\ufeffUser-agent: *\rDisallow: /x"), "/x")
    assert allows(robots("<!doctype html><p>Disallow: /"), "/x")


def test_only_the_first_500_kib_count_and_no_half_rule() -> None:
    filler = "#" * 99 + "\n"
    head = "User-agent: *\n" + filler * ((MAX_ROBOTS_BYTES - 14) // 100)
    text = head + "Disallow: /private-folder\n" + filler * 9 + "Disallow: /late\n"
    rules = robots(text)
    assert allows(rules, "/late")
    assert allows(rules, "/p")


def test_thousands_of_agents_and_rules_take_bounded_time() -> None:
    agents = "".join(f"User-agent: {at}\n" for at in range(15_000))
    paths = "".join(f"Allow: /{at}*b\n" for at in range(15_000))
    start = time.process_time()
    rules = robots(agents + "User-agent: *\n" + paths + "Disallow: /z")
    assert not allows(rules, "/z")
    assert time.process_time() - start < 5


pieces = st.sampled_from(
    ["User-agent:", "*", "Pairmill", "\n", "Disallow: /", "Allow: ", "#", " ", "$", "\0", "é", "Crawl-delay: nan",
     "Crawl-delay: 9e999", "Sitemap: http://e/", "\x85"]
)  # fmt: skip


@given(st.lists(pieces))
def test_no_file_raises(parts: list[str]) -> None:
    rules = robots("".join(parts))
    allows(rules, "/x?y")
    assert rules.crawl_delay is None or 0 <= rules.crawl_delay < float("inf")


SITEMAP = b"""<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:image="http://www.google.com/schemas/sitemap-image/1.1">
<url><loc> http://e.example/a?x=1&amp;y=2 </loc><image:image><image:loc>http://e.example/i.jpg</image:loc></image:image></url>
<url><loc><![CDATA[http://e.example/b]]></loc></url><url><loc>http://e.example/b#again</loc></url><url><loc>ftp://x</loc></url>
</urlset>"""
INDEX = b"<sitemapindex><sitemap><loc>http://e.example/s1.xml.gz</loc></sitemap></sitemapindex>"


def test_sitemaps_of_every_kind_are_read() -> None:
    pages = ["http://e.example/a?x=1&y=2", "http://e.example/b"]
    for data in (SITEMAP, gzip.compress(SITEMAP), b"\xef\xbb\xbf" + SITEMAP):
        assert parse_sitemap(data) == (pages, [])
    assert parse_sitemap(INDEX) == ([], ["http://e.example/s1.xml.gz"])
    assert parse_sitemap(b"http://e.example/a\r\nnot a url\nhttp://e.example/b\n") == (
        ["http://e.example/a", "http://e.example/b"], [],
    )  # fmt: skip


def test_a_broken_sitemap_gives_what_comes_before_the_damage() -> None:
    assert parse_sitemap(SITEMAP[: SITEMAP.index(b"<url><loc>ftp") - 30])[0][:1] == ["http://e.example/a?x=1&y=2"]
    for data in (b"", b"<", b"\x1f\x8b rubbish", b"<html><body>404</body></html>", b"\0\1\2"):
        assert parse_sitemap(data) == ([], [])


def test_entities_and_lengths_cannot_grow() -> None:
    laughs = "".join(f'<!ENTITY a{at} "{f"&a{at - 1};" * 10}">' for at in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]><urlset><url><loc>http://e.example/&a11;</loc></url></urlset>'
    start = time.process_time()
    assert parse_sitemap(bomb.encode()) == ([], [])
    assert parse_sitemap(gzip.compress(b"<urlset>" + b" " * 100_000_000))[0] == []
    many = (
        b"<urlset>" + b"".join(b"<url><loc>http://e.example/%d</loc></url>" % at for at in range(9_000)) + b"</urlset>"
    )
    assert len(parse_sitemap(many, max_urls=100)[0]) == 100
    assert time.process_time() - start < 5
