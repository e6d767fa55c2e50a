"""The page of a run: every number of metrics.jsonl is drawn or named, nothing is run as markup, gaps are seen."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from infra.errors import UsageError
from infra.metric_names import is_lower_better
from infra.page.words import plain
from tests.servers.browser import browser  # noqa: F401 - a fixture
from training.report import axes, write_page
from training.report.curves import HEIGHT, WIDTH
from training.report.headline import best, headline, state
from training.report.kinds import kind_of
from training.report.page import MAX_BINS, MAX_CURVES, render
from training.report.runs import BEYOND, Run, series_of
from training.report.thinned import smoothed, thinned

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "--><iframe src=javascript:alert(1)>",
]


def falling(num_lines: int = 30, **numbers: Any) -> list[dict[str, Any]]:
    """Lines of a run whose loss falls from 4 to 2, 64 samples a step."""
    return [
        {"step": at, "samples": 64.0 * at, "loss": 4 - 2 * at / num_lines, "lr": 1e-3 / at, **numbers}
        for at in range(1, num_lines + 1)
    ]


def run_of(lines: list[dict[str, Any]], name: str = "run", recipe: str | None = None) -> Run:
    last = lines[-1] if lines else {"step": 0, "samples": 0}
    return Run(name, last["step"], int(last["samples"]), series_of(lines), recipe)


def page_of(*runs: Run) -> LexborHTMLParser:
    return LexborHTMLParser(render(runs))


def written(folder: Path, lines: list[dict[str, Any]], recipe: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe)
    return folder


def titles_of(page: LexborHTMLParser) -> list[str]:
    return [caption.css_first("span").text(deep=False).strip() for caption in page.css("figcaption")]


def line_of(page: LexborHTMLParser, title: str) -> str:
    figures = dict(zip(titles_of(page), page.css("figure"), strict=True))
    return figures[title].css_first("path.line").attributes["d"]


NAMES = st.sampled_from(["loss", "loss/a", "lr", "grad_norm", "data_wait", "skipped", "r/x", "r/y", "other"])
WILD = st.one_of(
    st.floats(), st.floats(-1e3, 1e3), st.integers(), st.booleans(), st.none(), st.text(max_size=3),
    st.sampled_from([10**400, -(10**400), 5e-324, 1.7e308, -0.0]), st.lists(st.integers(), max_size=1),
)  # fmt: skip
LINES = st.lists(
    st.tuples(st.dictionaries(NAMES | st.text(max_size=5), WILD, max_size=5), WILD, WILD).map(
        lambda told: {"step": told[1], "samples": told[2], **told[0]}
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(LINES, LINES)
def test_every_number_of_the_file_is_drawn_or_named_and_no_place_leaves_the_frame(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    runs = [Run(name, 1, 100, series_of(lines), None) for name, lines in (("a", first), ("b", second))]
    page = page_of(*runs)
    names = {name for line in first + second for name in line} - {"step", "samples"}
    drawn = {name for run in runs for name, series in run.series.items() if len(series.finite)}
    told = {(run.name, name) for run in runs for name, series in run.series.items() if not len(series.finite)}
    assert {name for run in runs for name in run.series} == names
    left = page.css("#undrawn li")
    whole = {one.css_first("code").text() for one in left if "it is the whole loss" in one.text()}
    assert all(name.startswith("loss/") for name in whole)
    titles = titles_of(page)
    in_table = {row.text() for row in page.css("#best tbody th")}
    once = {name for name in drawn - whole if "/" in name and plain(kind_of(name).title, 80) not in titles}
    assert {plain(name, 80) for name in once} <= in_table
    assert all(len(run.series[name].values) == 1 for run in runs for name in once if name in run.series)
    assert sorted(plain(kind_of(name).title, 80) for name in drawn - whole - once) == sorted(titles)
    assert len(left) == len(told) + len(whole)
    for path in page.css("svg path"):
        assert re.fullmatch(r"[MLHVZhv\d. -]+", path.attributes["d"])
    for point in page.css("circle"):
        assert 0 <= float(point.attributes["cx"]) <= WIDTH
        assert 0 <= float(point.attributes["cy"]) <= HEIGHT


def test_names_values_and_recipes_never_become_markup(tmp_path: Path) -> None:
    numbers = dict.fromkeys(ATTACKS, 1.0) | {f"retrieval/{attack}": 0.5 for attack in ATTACKS}
    texts = {f"text {at}": attack for at, attack in enumerate(ATTACKS)}
    names = [attack.replace("/", "∕") for attack in ATTACKS]
    recipe = json.dumps({"data": {attack: attack for attack in ATTACKS}})
    runs = [written(tmp_path / name, falling(3, **numbers, **texts), recipe + f"\nseed: {name}") for name in names]
    text = write_page(runs).read_text()
    page = LexborHTMLParser(text)
    assert not page.css("script, iframe, img, object, svg:not(.chart), [onerror], [onload], [src]")
    assert len(page.css("style")) == 1
    assert "{{ 7 * 7 }}" in text
    assert recipe in page.css_first("#recipe pre").text()
    assert len(page.css("#undrawn li")) == len(texts) * len(runs)


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    lines = [*falling(900), {"step": 900, "samples": 57600.0, "r/x": 0.3, "r/x/low": 0.2, "r/x/high": 0.4}]
    first = written(tmp_path / "here" / "run", lines, "seed: 1")
    second = Path(shutil.copytree(first, tmp_path / "there" / "run"))
    assert write_page(first) == first / "report.html"
    assert write_page(str(second)).read_bytes() == write_page(first).read_bytes()
    assert sorted(path.name for path in first.iterdir()) == ["metrics.jsonl", "recipe.yaml", "report.html"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    whole, torn = written(tmp_path / "a" / "run", falling()), written(tmp_path / "b" / "run", falling())
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "samples": 1984.0, "lo')
    assert write_page(torn).read_bytes() == write_page(whole).read_bytes()


@pytest.mark.parametrize("lines", [None, []])
def test_a_run_without_numbers_says_so(tmp_path: Path, lines: list[dict[str, Any]] | None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if lines is not None:
        (folder / "metrics.jsonl").write_text("")
    page = LexborHTMLParser(write_page(folder).read_text())
    assert "measured nothing yet" in page.css_first(".nothing").text()
    assert not page.css("svg")


def test_a_folder_that_is_not_there_is_an_error_with_a_mend(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the folder of a run"):
        write_page(tmp_path / "absent")
    with pytest.raises(UsageError, match="one run or several"):
        write_page([])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, 2 * BEYOND])
def test_what_is_not_finite_is_a_gap_with_a_mark(bad: float | None) -> None:
    lines = falling(9)
    lines[4]["loss"] = bad
    page = page_of(run_of(lines))
    figure = page.css_first("figure")
    assert line_of(page, "Loss").count("M") == 2
    assert [mark.text() for mark in figure.css(".mark title")] == ["run, step 5: not finite"]
    assert "1 value not finite" in figure.css_first(".note").text()
    assert state([run_of(lines)]) is None
    assert state([run_of(lines[:5])]) == ("bad", "the last loss is not finite")


@given(
    st.lists(st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=200),
    st.integers(1, 50),
)
def test_a_thinned_curve_holds_every_value_in_its_band(values: list[float], num_bins: int) -> None:
    series = series_of([{"step": at, "samples": at, "x": value} for at, value in enumerate(values)])["x"]
    curve = thinned(series, num_bins)
    there = np.isfinite(curve.values)
    assert len(curve.values) <= num_bins
    assert np.all((curve.low <= curve.values)[there] & (curve.values <= curve.high)[there])
    assert np.isfinite(series.finite).all()
    if len(series.finite):
        assert (np.nanmin(curve.low), np.nanmax(curve.high)) == (series.finite.min(), series.finite.max())
    if len(values) <= num_bins:
        assert np.array_equal(curve.values[there], series.finite)
    assert bool(curve.marks) == (len(series.finite) < len(values))


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), max_size=300))
def test_smoothing_stays_between_the_values_and_keeps_gaps(values: list[float]) -> None:
    given_ = np.array(values)
    smooth = smoothed(given_)
    assert np.array_equal(np.isnan(smooth), np.isnan(given_))
    if np.isfinite(given_).any():
        assert np.nanmin(given_) - 1e-9 <= np.nanmin(smooth)
        assert np.nanmax(smooth) <= np.nanmax(given_) + 1e-9


def test_smoothing_does_not_bend_a_straight_line() -> None:
    line = np.linspace(3.0, 7.0, 401)
    assert np.allclose(smoothed(line), line, atol=1e-12)  # float64 sums


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_a_linear_axis_holds_its_range_between_ticks_that_can_be_told_apart(low: float, span: float) -> None:
    axis = axes.linear(low, low + span)
    values, labels = zip(*axis.ticks, strict=True)
    assert axis.low <= low + 1e-6 * span
    assert axis.high >= (low + span) * (1 - 1e-9) - 1e-6 * span
    assert len(set(labels)) == len(labels) <= 9
    assert list(values) == sorted(values)


@given(st.floats(-150, 150), st.floats(2.01, 40))
def test_a_logarithmic_axis_has_ticks_inside_its_range(exponent: float, decades: float) -> None:
    low, high = 10.0**exponent, 10.0 ** (exponent + decades)
    axis = axes.logarithmic(low, high)
    values, labels = zip(*axis.ticks, strict=True)
    assert axis.low <= low * (1 + 1e-9)
    assert axis.high >= high * (1 - 1e-9)
    assert 2 <= len(set(labels)) == len(labels) <= 9
    assert list(values) == sorted(values)
    assert 0 <= axis.share(low) < 0.35
    assert 0.65 < axis.share(high) <= 1


@pytest.mark.parametrize(
    ("name", "values", "is_log"),
    [
        ("grad_norm", [0.01, 2.0], True), ("grad_norm", [0.1, 2.0], False), ("grad_norm", [0.0, 2e3], False),
        ("loss", [1e-3, 9.0], True), ("lr", [1e-8, 1e-3], False), ("data_wait", [1e-4, 0.5], False),
        ("retrieval/r1", [1e-3, 0.5], False),
    ],
)  # fmt: skip
def test_more_than_two_decades_are_drawn_by_decades(name: str, values: list[float], is_log: bool) -> None:
    lines = [{"step": at, "samples": at, name: value} for at, value in enumerate(values)]
    assert ("by decades" in page_of(run_of(lines)).css_first("figcaption").text()) is is_log


def test_an_interval_is_a_band_around_its_metric_and_no_chart_of_its_own() -> None:
    lines = [
        {"step": at, "samples": at, "r/x": 0.1 * at, "r/x/low": 0.1 * at - 0.02, "r/x/high": 0.1 * at + 0.02}
        for at in range(1, 6)
    ]
    page = page_of(run_of([*lines, *({"step": at, "samples": at, "r/y/low": 1.0} for at in (6, 7))]))
    assert titles_of(page) == ["r/x", "r/y/low"]
    first = page.css_first("figure")
    assert len(first.css("path.band")) == 1
    assert "0.3 (0.28 to 0.32)" in first.css("circle title")[2].text()


def test_several_runs_share_the_axis_and_are_named_in_every_legend(tmp_path: Path) -> None:
    first = written(tmp_path / "x" / "clip", falling(), "seed: 1\nsamples: 3840\ndata: {selection: all}")
    second = written(tmp_path / "y" / "clip", falling(60), "seed: 1\nsamples: 3840\ndata: {selection: best}")
    path = write_page([first, second])
    page = LexborHTMLParser(path.read_text())
    assert path == tmp_path / "x" / "report.html"
    for legend in page.css(".legend"):
        assert [re.sub(r" [\d.e-]+$", "", item.text()) for item in legend.css("span > span")] == ["x/clip", "y/clip"]
    lines = [path.attributes["d"] for path in page.css_first("figure").css("path.line")]
    assert [path.attributes["class"] for path in page.css_first("figure").css("path.line")] == ["line c0", "line c1"]
    half, whole = (float(line.split()[-2]) for line in lines)
    assert half - 34 == pytest.approx((whole - 34) / 2, abs=0.2)  # places are written to a tenth
    assert page.css_first(".state").text() == "x/clip: unfinished: 50.0 % of the samples seen"
    differing = [row.text(separator=" ").split() for row in page.css("#runs table")[1].css("tbody tr")]
    assert differing == [["data.selection", "all", "best"]]


def test_the_best_is_the_first_of_the_highest_or_of_the_lowest_ranks() -> None:
    told = [(1, 0.2, 9), (2, 0.4, 3), (3, 0.4, 3), (4, math.nan, math.nan)]
    lines = [{"step": at, "samples": at, "r/r1": high, "r/median_rank": rank} for at, high, rank in told]
    found = best(run_of(lines))
    assert {name: (one.value, one.step) for name, one in found.items()} == {"r/r1": (0.4, 2), "r/median_rank": (3, 2)}


def test_recall_at_5_stands_before_recall_at_10() -> None:
    names = ["r/r1", "r/r5", "r/r10"]
    page = page_of(run_of([{"step": at, "samples": at, **dict.fromkeys(reversed(names), 0.5)} for at in (1, 2)]))
    assert titles_of(page) == names
    assert [row.text() for row in page.css("#best tbody th")] == names


def test_a_metric_that_is_measured_once_stands_in_the_table_and_is_no_dot_of_a_chart() -> None:
    once = [{**line, "r/r1": 0.5} if line["step"] == 30 else line for line in falling()]
    twice = [{**line, "r/r1": 0.5} if line["step"] in (15, 30) else line for line in falling()]
    page = page_of(run_of(once))
    assert "r/r1" not in titles_of(page)
    assert [row.text() for row in page.css("#best tbody th")] == ["r/r1"]
    assert not page_of(run_of([{"step": 1, "samples": 1, "r/r1": 0.5}])).css(".nothing")
    assert "r/r1" in titles_of(page_of(run_of(once), run_of(twice, "other")))


def test_the_figures_tell_the_run() -> None:
    lines = falling(10, samples_per_s=128.0, data_wait=0.25, of_peak=0.4)
    figures = headline(run_of(lines, recipe="samples: 640"))
    assert {name: value for name, (value, _) in figures.items()} == {
        "last loss": "2", "steps": "10", "samples seen": "640", "samples/s": "128", "waiting for data": "25.0 %",
        "of training": "5.0 s",
    }  # fmt: skip
    assert state([run_of(lines, recipe="samples: 640")]) == ("good", "finished")


def test_a_recipe_that_is_no_yaml_is_shown_all_the_same() -> None:
    page = page_of(run_of(falling(), recipe="{: ["), run_of(falling(), "other", recipe="- 1"))
    assert [shown.text() for shown in page.css("#recipe pre")] == ["{: [", "- 1"]


def test_a_page_of_many_long_curves_stays_small() -> None:
    chance = np.random.default_rng(0)
    noise = chance.lognormal(size=(800, 24))
    lines = [
        {"step": at, "samples": 64.0 * at, **{f"loss/{name}": value for name, value in enumerate(row)}}
        for at, row in enumerate(noise.tolist())
    ]
    runs = [run_of(lines, name) for name in "abcdef"]
    text = render(runs)
    assert len(text.encode()) < 1_000_000
    longest = max(path.attributes["d"].count(" ") for path in LexborHTMLParser(text).css("path.line"))
    assert longest <= 2 * MAX_BINS


def test_the_only_term_of_a_loss_is_not_drawn_a_second_time() -> None:
    alone = run_of([{"step": n, "samples": n, "loss": 1 / n, "loss/softmax": 1 / n} for n in (1, 2, 3)])
    page = page_of(alone)
    assert titles_of(page) == ["Loss"]
    assert "it is the whole loss" in page.css_first("#undrawn").text()
    beside = run_of([{"step": n, "samples": n, "loss": 2 / n, "loss/softmax": 1 / n} for n in (1, 2, 3)], "other")
    assert titles_of(page_of(alone, beside)) == ["Loss", "Loss: softmax"]


def test_what_a_full_page_has_no_room_for_is_named() -> None:
    names = [f"r/{at:03d}" for at in range(MAX_CURVES + 2)]
    page = page_of(run_of([{"step": at, "samples": at, **dict.fromkeys(names, 0.5)} for at in (1, 2)]))
    assert titles_of(page) == names[:-2]
    assert [one.text() for one in page.css("#undrawn code")] == names[-2:]


CLASHING = """
[...document.querySelectorAll("svg")].flatMap(svg => {
  const labels = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBBox()]);
  const apart = (a, b) => a.x + a.width <= b.x || b.x + b.width <= a.x;
  const above = (a, b) => a.y + a.height * .8 <= b.y || b.y + b.height * .8 <= a.y;  // a box has room for descenders
  const outside = labels.filter(([_, box]) => box.x < 0 || box.x + box.width > %d || box.y + box.height > %d);
  const over = labels.filter(([_, a], at) => labels.slice(at + 1).some(([_, b]) => !apart(a, b) && !above(a, b)));
  return [...outside, ...over].map(([text, _]) => svg.getAttribute("aria-label").slice(0, 20) + ": " + text);
})
"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_opens_without_errors_network_or_labels_over_each_other(
    tmp_path: Path,
    browser: Any,  # noqa: F811
    width: int,
) -> None:
    numbers = {"grad_norm": 1.0, "scale": 123_456.7, "tiny": 1.2345e-7, "retrieval/x": 0.5, "<script>": 2.0}
    lines = falling(500, **numbers)
    for at, line in enumerate(lines):
        line |= {"grad_norm": 10 ** (at % 7 - 3), "scale": 123_456 + at / 100, "data_wait": at / 600}
    runs = [written(tmp_path / name, lines) for name in ("a" * 80, "selection")]
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    browser.open(write_page(runs).as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(CLASHING % (WIDTH, HEIGHT)) == []
    assert browser.of("Log.entryAdded") == []
    assert browser.of("Runtime.exceptionThrown") == []
    asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []


@pytest.mark.parametrize(
    ("metric", "is_lower"),
    [
        ("retrieval/reranked_image_to_text_r1", False),
        ("retrieval/median_rank", True),
        ("loss/match", False),
        ("held_out/loss", True),
        ("caption/CIDEr", False),
        ("reading/word_error", True),
        ("generation/clip_frechet@16/blur2", True),
        ("generation/fid@4", True),
        ("generation/r_precision@4", False),
    ],
)
def test_the_least_is_the_best_of_losses_ranks_and_errors_alone(metric: str, is_lower: bool) -> None:
    assert is_lower_better(metric) == is_lower
