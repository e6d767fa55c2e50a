"""Urls and Location headers: any text at all is an http(s) url in normal form, or a FetchError."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from pipeline.fetch.errors import REASONS, FetchError, matches_retry
from pipeline.fetch.targets import BAD_PORTS, parse_target, redirect_target

BASE = URL("https://example.org/a/b.jpg?c", encoded=True)
PARTS = ["http", "https", "ftp", "file", ":", "//", "/", "\\", "@", "?", "#", "%", "%2e", "..", ".", "[", "]", "::1",
         "127.0.0.1", "0x7f000001", "2130706433", "127.1", "example.org", ":80", ":99999", ":-1", " ", "\t", "\n", "\0",
         "ä", "\udcff", "xn--", "xn--a", "a" * 64, "。", "%00", "%zz", "é.test", "1", "0", "javascript"]  # fmt: skip
WILD = st.text(max_size=60) | st.lists(st.sampled_from(PARTS), max_size=9).map("".join)


@given(WILD)
@example("http://[::1")
@example("http://1.2.3.4.5/")
@example("http://\udcff/")
@example("http://xn--/")
@example("http:///a")
@example("http://a:b:80/")
@example("//example.org")
@example("http://example.org:0/")
@example("http://" + "a." * 200)
def test_any_text_is_a_url_or_a_fetch_error(text: str) -> None:
    reasons: list[str] = []
    for read in (parse_target, lambda location: redirect_target(BASE, location)):
        try:
            target = read(text)
        except FetchError as error:
            reasons.append(error.reason)
            continue
        assert target.scheme in ("http", "https")
        assert target.raw_host
        assert not target.raw_user
        assert not target.raw_password
        assert not target.raw_fragment
        assert target.port not in BAD_PORTS
        str(target).encode("ascii")
        assert parse_target(str(target)) == target
    assert set(reasons) <= set(REASONS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "bad_url"),
        ("a.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http://me:secret@example.org/", "bad_url"),
        ("http://example.org:99999/", "bad_url"),
        ("file:///etc/passwd", "blocked_scheme"),
        ("FTP://example.org/a.jpg", "blocked_scheme"),
        ("  data:image/png;base64,AAAA", "blocked_scheme"),
        ("javascript:alert(1)", "blocked_scheme"),
        ("http://example.org:25/", "blocked_port"),
        ("https://example.org:22/", "blocked_port"),
    ],
)
def test_what_is_not_fetched_says_why(text: str, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse_target(text)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "text", ["http://0x7f000001/", "http://2130706433/", "http://127.1/", "http://0177.0.0.1/", "http://①②⑦.0.0.1/"]
)
def test_number_tricks_become_the_address_that_they_mean(text: str) -> None:
    assert parse_target(text).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/c.jpg", "https://example.org/c.jpg"),
        ("c.jpg", "https://example.org/a/c.jpg"),
        ("?d", "https://example.org/a/b.jpg?d"),
        ("//other.test/", "https://other.test/"),
        ("http://other.test/\u00e9 b", "http://other.test/%C3%A9%20b"),
        ("/caf\udce9.jpg", "https://example.org/caf%E9.jpg"),
    ],
)
def test_a_redirect_is_read_as_browsers_read_it(location: str, url: str) -> None:
    assert str(redirect_target(BASE, location)) == url


@given(WILD, WILD)
def test_any_words_of_retry_match_or_not(word: str, reason: str) -> None:
    assert matches_retry([word, word], reason) in (True, False)


@pytest.mark.parametrize(
    ("words", "reason", "means"),
    [
        ("timeout,dns,5xx", "http_503", True),
        ("timeout, DNS", "dns", True),
        ("http_5xx", "http_599", True),
        ("503", "http_503", True),
        ("5xx", "http_404", False),
        ("5xx", "timeout", False),
        ("", "timeout", False),
    ],
)
def test_retry_names_reasons_statuses_and_families(words: str, reason: str, means: bool) -> None:
    assert matches_retry(words, reason) is means
    assert matches_retry(words.split(","), reason) is means
