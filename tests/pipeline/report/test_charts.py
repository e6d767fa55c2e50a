"""Charts: every value is in a bar whose edges hold it, and nothing is drawn outside the frame."""

from __future__ import annotations

import math
import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from infra.page.words import compact, duration_text, share_text, size_text
from pipeline.report.charts import HEIGHT, WIDTH, Series, _edges, histogram
from pipeline.report.gather import Histogram


def binned(values: list[float], per_octave: int, is_centred: bool) -> Histogram:
    """As the query bins them."""
    place = round if is_centred else math.floor
    return Histogram(per_octave, is_centred, Counter(place(math.log2(value) * per_octave) for value in values))


VALUES = st.lists(st.floats(0.01, 1e9), min_size=1, max_size=30)


@given(VALUES, VALUES, st.sampled_from([1, 2, 4]), st.booleans())
def test_bars_hold_all_values_and_stay_inside_the_frame(
    first: list[float], second: list[float], per_octave: int, is_centred: bool
) -> None:
    series = [Series(name, binned(found, per_octave, is_centred)) for name, found in (("a", first), ("b", second))]
    page = LexborHTMLParser(str(histogram("T", series, str)))
    bars = [{name: float(bar.attributes[name]) for name in ("x", "y", "width", "height")} for bar in page.css("rect")]
    hints = [bar.css_first("title").text() for bar in page.css("rect")]
    assert sum(int(hint.rpartition(":")[2].replace(",", "")) for hint in hints) == len(first)
    assert all(bar["x"] >= 0 and bar["x"] + bar["width"] <= WIDTH + 1 for bar in bars)
    assert all(bar["y"] >= 0 and bar["y"] + bar["height"] <= HEIGHT for bar in bars)
    outline = page.css_first("path.outline").attributes["d"]
    assert all(-1 <= float(number) <= WIDTH + 1 for number in re.findall(r"-?[\d.]+", outline))


@given(st.floats(0.01, 1e9), st.sampled_from([1, 2, 4]), st.booleans())
def test_a_bin_holds_its_values(value: float, per_octave: int, is_centred: bool) -> None:
    shape = binned([value], per_octave, is_centred)
    (at,) = shape.bins
    low, high = _edges(shape, at)
    assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)  # log2 and 2** round in the last place


def test_no_values_draw_no_chart() -> None:
    assert histogram("T", [Series("a", Histogram(1, False, {}))], str) == ""


def test_numbers_read_as_people_write_them() -> None:
    assert [compact(number) for number in (0, 950, 12_000, 3_400_000)] == ["0", "950", "12k", "3.4M"]
    assert [share_text(share) for share in (0, 0.00001, 0.123, 0.99999, 1)] == [
        "0 %", "< 0.1 %", "12.3 %", "> 99.9 %", "100 %",
    ]  # fmt: skip
    assert [size_text(size) for size in (0, 512, 12_800, 3 << 30)] == ["0 B", "512 B", "12.5 KB", "3 GB"]
    assert [duration_text(time) for time in (0.84, 42, 200, 18_720)] == ["0.8 s", "42 s", "3 min 20 s", "5 h 12 min"]
