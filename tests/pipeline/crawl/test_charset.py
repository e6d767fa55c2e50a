"""A page's encoding is found as browsers find it, and a wrong label is survived."""

from __future__ import annotations

import encodings.aliases

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.charset import codec_of, detect, to_utf8


def test_mark_beats_header_beats_meta_beats_guess() -> None:
    meta = b"<meta charset=windows-1251>"
    assert detect(b"\xef\xbb\xbf" + meta, "text/html; charset=koi8-r") == "utf-8"
    assert detect(meta, "text/html; charset=koi8-r") == "koi8-r"
    assert detect(meta) == "cp1251"
    assert detect(b"<meta http-equiv=content-type content='text/html; charset=big5'>") == "big5hkscs"
    assert detect("é".encode()) == "utf-8"
    assert detect("é".encode("latin-1")) == "cp1252"


def test_labels_mean_what_they_mean_on_the_web() -> None:
    assert codec_of("ISO-8859-1") == codec_of("ascii") == "cp1252"
    assert codec_of("gb2312") == codec_of("GBK") == "gb18030"
    assert codec_of("Shift_JIS") == "cp932"
    assert codec_of("utf-16") == "utf-8"  # in a meta that could be read as ASCII
    assert detect(b"a\0b\0", "text/html; charset=utf-16") == "utf-16-le"


@pytest.mark.parametrize("label", ["rot13", "base64", "hex", "utf-7", "unicode_escape", "nonsense", "\0", "x" * 9999])
def test_a_label_that_names_no_encoding_of_the_web_is_passed_over(label: str) -> None:
    assert codec_of(label) is None
    assert detect(b"<p>", f"text/html; charset={label}") == "utf-8"


def test_text_arrives_whole_in_utf8() -> None:
    assert to_utf8("<p>Привет".encode("cp1251"), "text/html; charset=windows-1251") == "<p>Привет".encode()
    assert to_utf8("<p>ö".encode("utf-16")) == "<p>ö".encode()
    assert to_utf8("\ufeffö".encode()) == "ö".encode()


@given(st.binary(max_size=200), st.sampled_from(sorted(set(encodings.aliases.aliases) | {"", '"', "utf-8;", "=x"})))
def test_no_label_and_no_bytes_raise(body: bytes, label: str) -> None:
    to_utf8(body, f"text/html; charset={label}")
    to_utf8(f"<meta charset='{label}'>".encode() + body)
