"""What others wrote cannot steer the terminal that it is shown on."""

from hypothesis import given
from hypothesis import strategies as st

from infra.log import one_line


@given(st.text())
def test_one_line_holds_nothing_but_printable_characters(text: str) -> None:
    assert one_line(text).isprintable()


def test_plain_words_pass_as_they_are() -> None:
    assert one_line("step failed:\n  größe 図\x1b[2J") == "step failed: größe 図?[2J"
