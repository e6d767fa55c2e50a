"""Addresses are resolved as a browser does; what it would not fetch over http(s) is none."""

from __future__ import annotations

from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.urls import MAX_URL_CHARS, Resolver, clean_url

BASE = "http://Host.example:80/a/b/c.html?q=1#f"

RESOLVED = {
    "x.jpg": "http://host.example/a/b/x.jpg",
    "/x.jpg": "http://host.example/x.jpg",
    "//cdn.example/y.png": "http://cdn.example/y.png",
    "../z": "http://host.example/a/z",
    "../../../z": "http://host.example/z",
    ".": "http://host.example/a/b/",
    "..": "http://host.example/a/",
    "a/%2e%2e/b": "http://host.example/a/b/b",
    "a/.%2E": "http://host.example/a/b/",
    "?n=2": "http://host.example/a/b/c.html?n=2",
    "": "http://host.example/a/b/c.html?q=1",
    "#part": "http://host.example/a/b/c.html?q=1",
    "x.jpg#part": "http://host.example/a/b/x.jpg",
    "http:x.jpg": "http://host.example/a/b/x.jpg",
    "https:x.example": "https://x.example/",
    "HTTP://EX.example": "http://ex.example/",
    "http:\\\\h.example\\p\\q": "http://h.example/p/q",
    "\\x\\y": "http://host.example/x/y",
    "http:///h.example/x": "http://h.example/x",
    " a b.jpg ": "http://host.example/a/b/a%20b.jpg",
    "a\n\tb.jpg": "http://host.example/a/b/ab.jpg",
    "é.jpg?ü=ö x": "http://host.example/a/b/%C3%A9.jpg?%C3%BC=%C3%B6%20x",
    "a%20b%zz.jpg": "http://host.example/a/b/a%20b%zz.jpg",
    "a|b^c{d}": "http://host.example/a/b/a|b%5Ec%7Bd%7D",
    "http://bücher.example/ä": "http://xn--bcher-kva.example/%C3%A4",
    "http://h%41.example/": "http://ha.example/",
    "http://h.example:8080/": "http://h.example:8080/",
    "http://h.example:/x": "http://h.example/x",
    "https://h.example:443/x": "https://h.example/x",
    "http://[::1]:80/": "http://[::1]/",
    "http://0x7f000001/": "http://127.0.0.1/",
    "http://127.1/": "http://127.0.0.1/",
    "1:2": "http://host.example/a/b/1:2",
}
REFUSED = [
    "javascript:alert(1)", "data:image/png;base64,xx", "mailto:a@b", "ftp://h.example/x", "file:///etc/passwd", "http://",
    "//", "http://u:p@h.example/", "http://u@h.example/", "http://h.example:99999/", "http://h.example:+80/",
    "http://ho st/", "http://[::1%25eth0]/", "http://[::g]/", "http://1.2.3.256/", "a:b/c", "x" * (MAX_URL_CHARS + 1),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "url"), RESOLVED.items())
def test_a_reference_is_resolved_as_a_browser_does(reference: str, url: str) -> None:
    assert clean_url(reference, BASE) == url


@pytest.mark.parametrize("reference", REFUSED)
def test_what_is_no_valid_http_url_is_none(reference: str) -> None:
    assert clean_url(reference, BASE) is None


def test_without_a_usable_base_only_absolute_urls_hold() -> None:
    resolve = Resolver("metadata://tool/log.txt")
    assert resolve("http://h.example/x") == "http://h.example/x"
    assert resolve("x.jpg") is None
    assert resolve("//h.example/x") is None


wild = st.text(st.sampled_from("ab./\\:?#%2eE@[] \t\n\x00é☃-_~'\"<>|&=;,+\ud800"), max_size=40)


@given(st.sampled_from(["", "http://", "https://", "//", "/", "http:", "../", "http://h.example/"]), wild)
def test_a_clean_url_is_ascii_bounded_and_its_own_clean_form(prefix: str, rest: str) -> None:
    url = clean_url(prefix + rest, BASE)
    if url is not None:
        assert url.isascii()
        assert len(url) <= MAX_URL_CHARS
        assert not set(url) & set(' #\t\n<>"\x00')
        assert url.startswith(("http://", "https://"))
        assert clean_url(url, BASE) == url
        assert clean_url(url, url) == url


safe = st.text(st.sampled_from("abcXYZ019-_~"), min_size=1, max_size=8)
path = st.lists(st.one_of(safe, st.sampled_from([".", ".."])), min_size=1, max_size=6).map("/".join)


@given(st.sampled_from(["", "/", "../"]), path, st.sampled_from(["", "?q=1&r=/.."]))
def test_on_plain_references_it_agrees_with_the_rfc(prefix: str, rest: str, query: str) -> None:
    reference = prefix + rest + query
    expected = urljoin("http://host.example/a/b/c.html", reference)
    assert clean_url(reference, "http://host.example/a/b/c.html") == expected
