"""Pages that are merely large pass; pages whose tree would explode do not."""

from __future__ import annotations

import pytest

from pipeline.crawl.guard import MAX_ERRORS, MAX_TAGS, is_too_complex

ROW = b"<tr><td><b>x</b><td><font color=red>y</font><td><a href=z><i class=k>w</i></a></tr>"
LARGE = {
    "table": b"<table>" + ROW * 8_000 + b"</table>",
    "paragraphs": b"<p>never closed " * 50_000 + b"<li>item <br>" * 50_000,
    "nested": (b"<div>" * 60 + b"<span>x</span><img src=a>" * 40 + b"</div>" * 60) * 200,
    "script": b"<script>" + b"if(a<b&&c<d) { x = '<div>' } " * 1_000 + b"</script>" + b"<p>y" * 9_000,
    "attributes": b"<div " + b" ".join(b"data-%d=1" % at for at in range(300)) + b">" + b"text " * 50_000,
    "text": b"words and \xff\xfe words " * 100_000,
    "comparisons": b"<script>" + b"a < b;" * 500_000 + b"</script>",
    "nothing": b"",
}
EXPLODING = {
    "elements": b"<b></b>" * (MAX_TAGS + 1),
    "depth": b"<div>" * 20_000,
    "depth_by_any_name": b"".join(b"<x%d>" % at for at in range(20_000)),
    "wrong_ends": b"<section></div>" * 20_000,
    "upper_case": b"<DIV>" * 20_000,
    "ends_first": b"</div>" * 20_000 + b"<div>" * 20_000,
    "formatting": b"".join(b"<p><FONT color=%d>" % at for at in range(2_000)),
    "formatting_in_cells": b"".join(b"<b x=%d><table><td></b></table>" % at for at in range(2_000)),
    "attributes": b"<a " + b" ".join(b"b%d" % at for at in range(60_000)) + b">",
    "attributes_quoted": b"<a x='<' " + b" ".join(b"b%d='>'" % at for at in range(60_000)) + b">",
    "nulls": b"\0" * (MAX_ERRORS + 1),
    "openings": b"<" * (MAX_ERRORS + 1),
    "errors_of_both_kinds": b"<\0" * (MAX_ERRORS // 2 + 1),
    "attributes_open": b"<a " + b"/b" * 60_000,
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_page_passes(name: str) -> None:
    assert not is_too_complex(LARGE[name])


@pytest.mark.parametrize("name", EXPLODING)
def test_an_exploding_page_does_not(name: str) -> None:
    assert is_too_complex(EXPLODING[name])
