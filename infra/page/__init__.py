"""What the pages of all rooms share: templates that escape everything, one style sheet, values as people read them."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from infra.page import words


def templates_of(package: str) -> Environment:
    """The templates of a package, and beside them the shared ones: head.html.j2, style.css.

    Names and texts come from strangers: everything is escaped unless it was built as Markup here.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("infra.page")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "count": words.count_text, "share": words.share_text, "size": words.size_text, "duration": words.duration_text,
        "time": words.time_text, "plain": words.plain, "link": words.link,
    }  # fmt: skip
    return templates
