"""What the pages of all rooms share: templates that escape everything, one style sheet, values as people read them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from infra.page import words
from infra.storage import TEMPORARY, Storage


def templates_of(*packages: str) -> Environment:
    """The templates of some packages, and beside them the shared ones: head.html.j2, style.css.

    Names and texts come from strangers: everything is escaped unless it was built as Markup here.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "infra.page")]),
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


def publish_page(out: str | os.PathLike[str], html: str) -> int:
    """Publish a page under its name, a path or an fsspec url, whole or not at all. Returns its bytes."""
    name = os.fspath(out).rpartition("/")[2]
    folder = Storage(os.fspath(out).removesuffix(name) or ".")
    data = html.encode("utf-8", "replace")
    folder.commit_bytes(name, data)
    with suppress(OSError):  # no empty folder of ours is left where a person works
        Path(folder.path(TEMPORARY)).rmdir()
    return len(data)
