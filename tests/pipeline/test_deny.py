"""Deny lists and takedown lists: a thing is known however it is written; what cannot be meant is told."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.rules import MAX_DISTANCE
from infra.errors import UsageError
from pipeline.download.deny import DenyList, one_spelling
from pipeline.urls import Resolver

URL = "http://cdn.site.test/a~b/kätzchen (1).jpg?q=1&r=a%2Fb"
SPELLINGS = [
    URL,
    "HTTP://CDN.Site.Test/a~b/kätzchen (1).jpg?q=1&r=a%2Fb",
    "http://cdn.site.test:80/a~b/kätzchen (1).jpg?q=1&r=a%2Fb",
    "http://cdn.site.test/a%7Eb/k%C3%A4tzchen%20%281%29.jpg?q=1&r=a%2Fb",
    "http://cdn.site.test/a%7eb/k%c3%a4tzchen%20(1).jpg?q=1&r=a%2fb#top",
    "http://cdn.site.test/x/../%61~b/kätzchen (1).jpg?q=%31&r=a%2Fb#",
]
OTHERS = [
    "https://cdn.site.test/a~b/kätzchen (1).jpg?q=1&r=a%2Fb",
    "http://cdn.site.test/a~b/kätzchen (1).jpg?q=1&r=a/b",
    "http://cdn.site.test/a~b/kätzchen (1).jpg%3Fq=1&r=a%2Fb",
    "http://cdn.site.test/a~b/Kätzchen (1).jpg?q=1&r=a%2Fb",
    "http://cdn.site.test:8080/a~b/kätzchen (1).jpg?q=1&r=a%2Fb",
]


def listed(tmp_path: Path, text: str, encoding: str = "utf-8") -> DenyList:
    (tmp_path / "list.txt").write_text(text, encoding=encoding)
    return DenyList.load(str(tmp_path / "list.txt"), "--list")


@pytest.mark.parametrize("written", SPELLINGS)
def test_an_address_is_denied_however_list_and_table_spell_it(tmp_path: Path, written: str) -> None:
    deny = listed(tmp_path, f"url:{written}\n")
    assert [url for url in SPELLINGS if deny.denies_url(url) != "denied_url"] == []
    assert [url for url in OTHERS if deny.denies_url(url)] == []


@given(st.text(max_size=30), st.text(st.characters(codec="utf-8"), max_size=12))
def test_one_spelling_is_its_own_spelling_and_that_of_the_escaped_address(wild: str, path: str) -> None:
    assert one_spelling(one_spelling(wild)) == one_spelling(wild)
    url = f"http://a.test/{quote(path, safe='')}"
    lower = Resolver("")("http://a.test/" + "".join(f"%{byte:02x}" for byte in path.encode()))
    assert lower is not None
    assert one_spelling(lower) == one_spelling(url)


def test_a_domain_has_its_subdomains_in_any_script_and_case(tmp_path: Path) -> None:
    deny = listed(tmp_path, "domain:Example.ORG.\ndomain:bücher.test\ndomain:127.0.0.1\n")
    for url in ("http://a.EXAMPLE.org:8970/x", "http://example.org./x", "http://user@example.org/x",
                "http://www.xn--bcher-kva.test/", "http://BÜCHER.test/", "http://127.0.0.1:99/"):  # fmt: skip
        assert deny.denies_url(url) == "denied_domain", url
    for url in ("http://notexample.org/", "http://example.org.evil.test/", "http://[/", "nothing", ""):
        assert deny.denies_url(url) is None, url


ZEROS = "0" * 16
DOMAINS = ["*.site.test", "cdn.site.test:8970", "http://a.test", "a.test/x", "", "a b.test", "*"]
HASHES = [f"{ZEROS}/99", f"{ZEROS}/-1", f"{ZEROS}/{MAX_DISTANCE + 1}", f"{ZEROS}/", "0" * 15]


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        *((f"domain:{word}", "subdomains") for word in DOMAINS),
        *((f"phash:{word}", f"at most {MAX_DISTANCE} bits") for word in HASHES),
        ("uid:12", "32 hex"),
        ("sha256:zz", "64 hex"),
        ("url:", "url:https://"),
        ("ftp://a.test/x.jpg", "url:…"),
        (ZEROS, "phash:…"),
        ("word", "url:…"),
    ],
)
def test_a_line_that_can_match_nothing_or_nearly_all_is_refused_with_its_mend(
    tmp_path: Path, line: str, mend: str
) -> None:
    with pytest.raises(UsageError, match=r"list\.txt:2: cannot read") as raised:
        listed(tmp_path, f"url:http://a.test/\n{line}\n")
    assert mend in str(raised.value)


def test_what_can_only_be_one_thing_needs_no_word_before_it(tmp_path: Path) -> None:
    plain = ["HTTPS://a.test/x.jpg?b#c", "0" * 32, "AB" * 32, "b.test", "bücher.test"]
    named = [f"{kind}:{value}" for kind, value in zip(("url", "uid", "sha256", "domain", "domain"), plain, strict=True)]
    (plainly, by_word) = (listed(tmp_path, "\n".join(lines)) for lines in (plain, named))
    for kind in ("urls", "uids", "sha256s", "domains"):
        assert getattr(plainly, kind) == getattr(by_word, kind) != {}


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_line(tmp_path: Path) -> None:
    deny = listed(tmp_path, f"uid:{'0' * 32}\r\ndomain:a.test\r\n", "utf-8-sig")
    assert (set(deny.uids), set(deny.domains)) == ({bytes(16)}, {"a.test"})


def test_what_two_lines_name_is_one_line(tmp_path: Path) -> None:
    deny = listed(tmp_path, "url:http://a.test/x\nurl:HTTP://A.test/x#y\nphash:0123456789abcdef/3\ndomain:a.test\n")
    assert deny.lines == {1: "url:http://a.test/x", 3: "phash:0123456789abcdef/3", 4: "domain:a.test"}
    assert list(deny.of_url("http://a.test/x")) == [("url", 1), ("domain", 4)]
    assert list(deny.of_pixels(0x0123456789ABCDE8)) == [("phash", 3)]
    assert list(deny.of_pixels(0x0123456789ABCDE0)) == []
