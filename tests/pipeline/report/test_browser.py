"""The report in a real browser: nothing on the console, no network asked, every picture of the gallery there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.report import write_report

PICTURES = """
Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth, () => 0)))
"""


def local(urls: list[str]) -> list[str]:
    """The addresses that lie outside the page and its file."""
    return [url for url in urls if not url.startswith(("data:", "file:"))]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 375])
def test_page_opens_without_errors_network_or_empty_frames(
    finished: Any, browser: Any, tmp_path: Path, width: int
) -> None:
    attack = {
        "url": 'http://evil.test/"><img src=http://evil.test/x>',
        "caption": "<script>fetch('http://evil.test')</script>",
    }
    finished.shard("00002", [attack | {"size": (90, 60)}])
    out = tmp_path / "report.html"
    write_report(finished.storage.url, out)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    browser.open(out.as_uri())
    widths = browser.evaluate(PICTURES)
    assert len(widths) == 46
    assert min(widths) > 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.of("Log.entryAdded") == []
    assert browser.of("Runtime.consoleAPICalled") == []
    assert browser.of("Runtime.exceptionThrown") == []
    assert local([event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]) == []


@pytest.mark.browser
def test_the_content_policy_stops_a_script_and_a_foreign_image(finished: Any, browser: Any, tmp_path: Path) -> None:
    """What if escaping failed? The policy is the second wall; this also shows that the test above can fail."""
    out = tmp_path / "report.html"
    write_report(finished.storage.url, out)
    hole = "<script>document.title = 'broken'</script><img src='http://127.0.0.1:9/x.png'></body>"
    out.write_text(out.read_text(encoding="utf-8").replace("</body>", hole), encoding="utf-8")
    browser.open(out.as_uri())
    assert browser.evaluate("document.title") != "broken"
    assert len(browser.of("Log.entryAdded")) >= 2
