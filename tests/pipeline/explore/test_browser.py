"""The page in a real browser: keys move the cut, the counts follow, and hostile text stays text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.browser

HELP = """
const line = (name) => [...document.querySelectorAll('.scores-list button')].find((each) =>
    each.querySelector('.name').textContent === name);
const number = (id) => Number(document.getElementById(id).textContent.replaceAll(',', ''));
const control = (label) => document.querySelector(`input[aria-label="${label}"]`);
const captions = (side) => [...document.querySelectorAll(`#pane-${side} .caption`)].map((each) => each.textContent);
const shown = (side, name) => [...document.querySelectorAll(`#pane-${side} .score`)]
    .filter((each) => each.textContent.startsWith(name + ' ')).map((each) => each.querySelector('b').textContent);
"""
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "PageUp": 33, " ": 32, "Enter": 13, "s": 83, ".": 190}


class Page:
    """The explorer's page in a browser."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        # A reload and an address with a hash find the same tab.
        browser.open("about:blank")
        browser.open(url)
        self.until("document.documentElement.dataset.ready === 'true'")
        self.rest()

    def __call__(self, expression: str) -> Any:
        """The value of an expression."""
        return self.browser.evaluate(f"(async () => {{ {HELP} return {expression}; }})()")

    def do(self, statements: str) -> None:
        """Run statements, then let the page come to rest."""
        self.browser.evaluate(f"(async () => {{ {HELP} {statements} }})()")
        self.rest()

    def press(self, key: str, times: int = 1) -> None:
        """A key on what has the focus."""
        for _ in range(times):
            facts = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            self.browser.call("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
            self.browser.call("Input.dispatchKeyEvent", type="keyUp", **facts)
        self.rest()

    def until(self, condition: str) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + 30
        while not self.browser.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, condition
            time.sleep(0.03)

    def rest(self) -> None:
        """Wait until nothing is waiting for an answer."""
        time.sleep(0.25)  # the page asks for rows when nothing has moved for a moment
        self.until("!document.querySelector('.waiting')")

    @property
    def recipe(self) -> list[dict[str, Any]]:
        """The rules of the shown recipe."""
        return yaml.safe_load(self("document.getElementById('recipe').textContent"))["rules"]

    def troubles(self) -> list[Any]:
        """What the console would say."""
        found = [
            self.browser.of(kind) for kind in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        ]
        return [event for events in found for event in events]


@pytest.fixture
def page(browser: Any, scored: Any, serve: Callable[..., Any]) -> Page:
    return Page(browser, serve(scored).url)


def counted(builder: Any, condition: str) -> int:
    """Rows of the score tables for which a condition holds, asked of the files themselves."""
    names = ("text", "language", "image")
    tables = [f"read_parquet('{builder.storage.path(f'scores/{name}/*.parquet')}') {name}" for name in names]
    found = duckdb.execute(
        f"SELECT count(*) FROM {tables[0]} JOIN {tables[1]} USING (uid) JOIN {tables[2]} USING (uid) WHERE {condition}"
    ).fetchone()
    assert found is not None
    return int(found[0])


def test_keys_move_a_cut_and_counts_recipe_and_pictures_follow(page, scored):
    page.do("line('words').click()")
    assert page("number('kept')") == 120
    assert page("document.activeElement.getAttribute('aria-label')") == "words at least"
    page.press("ArrowRight", 3)
    assert page("number('kept')") == counted(scored, "words >= 4")
    assert page.recipe == [{"where": "words >= 4"}]
    assert set(page("shown('dropped', 'words')")) <= {"1", "2", "3"}
    assert page("shown('dropped', 'words')")[0] == "3"
    assert page("shown('kept', 'words')")[0] == "4"
    assert page("document.getElementById('cut').selectedOptions[0].textContent") == "words ≥ 4"
    page.do("control('words at most').focus()")
    page.press("ArrowLeft", 2)
    assert page.recipe == [{"where": "words >= 4 and words <= 10"}]
    assert page("number('kept')") == counted(scored, "words BETWEEN 4 AND 10")
    assert set(page("shown('dropped', 'words')")) <= {"11", "12"}
    page.do("control('words at least').focus()")
    page.press("Home")
    assert page.recipe == [{"where": "words <= 10"}]
    assert page.troubles() == []


def test_several_rules_are_counted_in_their_order(page, scored):
    page.do("line('sharpness').click()")
    page.do(
        "const box = control('sharpness at least, exactly'); box.value = '2.5'; box.dispatchEvent(new Event('input'))"
    )
    page.do("line('language').click()")
    page.press(" ")  # the first value has the focus
    assert page.recipe == [{"where": "sharpness >= 2.5"}, {"where": "language = 'en'"}]
    sharp = "sharpness >= 2.5::FLOAT AND NOT isnan(sharpness)"
    assert page("number('kept')") == counted(scored, f"{sharp} AND language = 'en'")
    dropped = "[...document.querySelectorAll('.facts')].map((each) => Number(each.querySelector('b').textContent))"
    first, second = 120 - counted(scored, sharp), counted(scored, f"{sharp} AND (language <> 'en' OR language IS NULL)")
    assert page(dropped) == [first, second]
    page.do("document.querySelectorAll('[aria-label^=\"ask earlier\"]')[1].click()")
    assert [rule["where"] for rule in page.recipe] == ["language = 'en'", "sharpness >= 2.5"]
    assert sum(page(dropped)) == first + second
    assert page(dropped) != [first, second]
    page.do("document.querySelector('[aria-label^=\"remove\"]').click()")
    assert page.recipe == [{"where": "sharpness >= 2.5"}]
    assert page("number('kept')") == 120 - first


def test_a_share_has_its_threshold_from_the_server(page, scored):
    page.do("line('sharpness').click()")
    page.do(
        "[...document.querySelectorAll('.choices button')].find((each) => each.textContent === 'top share').click()"
    )
    assert page.recipe == [{"top": "sharpness", "fraction": 0.3, "of": "survivors"}]
    values = sorted((value for value in sharpness(scored) if value is not None), reverse=True)
    threshold = values[int(len(values) * 0.3)]
    assert page("number('kept')") == sum(value >= threshold for value in values)
    assert page("document.querySelector('.boxes:not([hidden]) .soft').textContent") == f"≥ {threshold:.4g}"
    page.do("control('sharpness: share kept, in tenths of a per cent').focus()")
    page.press("ArrowRight", 5)
    assert page.recipe == [{"top": "sharpness", "fraction": 0.305, "of": "survivors"}]


def sharpness(builder: Any) -> list[float | None]:
    """The score of every row."""
    names = builder.storage.list("scores/image", ".parquet")
    found = [value for name in names for value in pq.read_table(builder.storage.path(name))["sharpness"].to_pylist()]
    return [None if value != value else value for value in found]


def test_doubtful_pictures_are_blurred_until_they_are_asked_for(page):
    blurred = "[...document.querySelectorAll('.frame.doubtful img')].map((image) => getComputedStyle(image).filter)"
    before = page(blurred)
    assert before
    assert all("blur" in filter for filter in before)
    page.do("document.querySelector('.frame.doubtful').click()")
    assert len(page(blurred)) == len(before) - 1
    assert page("document.getElementById('closer').open") is False
    page.do("document.querySelector('.frame.uncovered').click()")
    assert page("document.getElementById('closer').open") is True
    assert page("document.querySelectorAll('#closer tr').length") == 7


def test_pages_and_the_shuffle_work_by_key(page):
    first = page("captions('kept')")
    assert len(first) == 24
    page.press(".")
    second = page("captions('kept')")
    assert not set(first) & set(second)
    page.press("s")
    assert page("captions('kept')") not in (first, second)


def test_a_reload_brings_the_rules_back_and_no_address_keeps_the_token(page):
    page.do("line('words').click()")
    page.press("ArrowRight", 3)
    address, kept = page("location.href"), page("number('kept')")
    assert "token" not in address
    again = Page(page.browser, address)  # the cookie opens it now
    assert again.recipe == [{"where": "words >= 4"}]
    assert again("number('kept')") == kept


def test_hostile_texts_do_nothing(browser, builder, serve):
    attacks = [
        "<img src=x onerror=\"document.title='broken'\">",
        "<script>document.title='broken'</script>",
        "</figcaption><svg onload=\"document.title='broken'\">",
        '"><iframe srcdoc="<script>parent.document.title=1</script>">',
        "{{constructor.constructor('document.title=1')()}}",
    ]
    rows = [{"caption": text, "url": f"http://evil.test/{at}?{text}"} for at, text in enumerate(attacks)]
    rows += [{"caption": "plain", "url": "javascript:document.title='broken'"}] * 1
    rows += [{"caption": "picture", "image": b"<svg xmlns='http://www.w3.org/2000/svg' onload='document.title=1'/>"}]
    uids = builder.shard("00000", rows)
    builder.scores("a", "00000", uids, **{"<b onclick=x>": pa.array(range(len(uids)), pa.int32())},
                   kind=pa.array([*attacks, None, "' OR 1=1 --"]))  # fmt: skip
    page = Page(browser, serve(builder).url)
    assert set(page("captions('kept')")) == {*attacks, "plain", "picture"}
    page.do("line('kind').click()")
    page.do("for (const box of [...document.querySelectorAll('.values input')].slice(0, 6)) box.click()")
    page.do("line('<b onclick=x>').click()")
    page.press("ArrowRight")
    page.do("document.querySelector('.frame').click()")
    assert page("document.title") == "dataset · explore"
    assert page("document.querySelectorAll('iframe, figure svg, figure script, [onclick], [onerror]').length") == 0
    assert page("number('kept')") == 5
    (chosen, cut) = page.recipe
    assert all(json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "''") in chosen["where"] for text in attacks)
    assert cut == {"where": '"<b onclick=x>" >= 1'}
    asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "about:", "data:"))] == []
    assert browser.of("Runtime.exceptionThrown") == []


def test_addresses_that_browsers_cannot_read_are_shown_with_their_rows(browser, builder, serve):
    urls = ["http://foo:99999/x", "http://%zz/x", "http://@/x", "http://:80/x", "http://h.test/x"]
    builder.shard("00000", [{"caption": url, "url": url} for url in urls])
    page = Page(browser, serve(builder).url)
    assert set(page("captions('kept')")) == set(urls)
    shown = page("[...document.querySelectorAll('#pane-kept .address')].map((each) => each.textContent)")
    assert sorted(shown) == sorted(["foo", "%zz", "http://@/x", "http://:80/x", "h.test"])
    page.do("document.querySelector('.frame').click()")
    assert page("document.querySelector('#closer').open")
    assert browser.of("Runtime.exceptionThrown") == []


def test_the_policy_stops_what_escaping_would_let_through(page):
    """The second wall; and a sign that the test above can fail."""
    page.do("""
        try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="document.title=1">'); } catch {}
        try { const script = document.createElement('script'); script.textContent = 'document.title=1';
              document.body.append(script); } catch {}
        const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/x.png';
        document.body.append(image); await fetch('http://127.0.0.1:9/').catch(() => null);""")
    assert page("document.title") == "dataset · explore"
    assert len(page.troubles()) >= 2


@pytest.mark.parametrize("width", [1000, 1900])
def test_the_page_fits_its_window(browser, scored, serve, width):
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    page = Page(browser, serve(scored).url)
    page.do("line('words').click(); line('sharpness').click(); line('language').click()")
    assert page("document.documentElement.scrollWidth") == width
    assert page("document.documentElement.scrollHeight") == 800
    too_wide = (
        "[...document.querySelectorAll('.scroll, .pane')].filter((each) => each.scrollWidth > each.clientWidth).length"
    )
    assert page(too_wide) == 0
    assert page.troubles() == []
