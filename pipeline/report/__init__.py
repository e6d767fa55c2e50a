"""The page a person looks at after a run: one self-contained HTML file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from infra.page import publish_page
from pipeline.report import curation, sections
from pipeline.report.models import models
from pipeline.report.page import render
from pipeline.report.sections import Overview, Section, overview
from pipeline.report.source import Source

SECTIONS: tuple[Callable[[Source, Overview], Section | None], ...] = (
    sections.funnel, curation.selected, models, sections.pictures, curation.captions, curation.verdicts,
    curation.duplicate_groups, curation.against_truth, curation.scores, sections.reasons, sections.failures,
    sections.hosts, sections.statuses, sections.shapes, sections.crawl, sections.run,
)  # fmt: skip


def write_report(
    dataset_url: str | os.PathLike[str], out: str | os.PathLike[str], runs: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the report of a dataset (path or fsspec url) to the file `out`; published whole or not at all.

    runs: folders of training runs, whose results and curves the page shows, too.
    Returns facts for --json: rows_in, rows_out, dropped (of the download, or else of the last step that counts rows),
    faults (sentences; empty where every row has one fate), num_quarantined, page_bytes, paths.
    Raises DatasetError where there is no such folder, or a table in it cannot be read.
    """
    source = Source(os.fspath(dataset_url), runs)
    try:
        seen = overview(source)
        made = [section for make in SECTIONS if (section := make(source, seen)) is not None]
        html = render(source, seen, made)
    finally:
        source.close()
    return _facts(seen) | {"page_bytes": publish_page(out, html), "paths": [os.fspath(out)]}


def _facts(seen: Overview) -> dict[str, Any]:
    last = seen.step("download") or (seen.steps[-1] if seen.steps else None)
    if seen.downloaded is not None:
        rows_in, rows_out, dropped = seen.downloaded.num_rows, seen.downloaded.num_stored, seen.fell
    elif last is not None:
        rows_in, rows_out, dropped = last.counts.rows_in, last.counts.rows_out, dict(last.counts.dropped)
    else:
        rows_in, rows_out, dropped = 0, 0, {}
    return {
        "rows_in": rows_in,
        "rows_out": rows_out,
        "dropped": dropped,
        "faults": list(seen.faults),
        "num_quarantined": sum(len(step.quarantined) for step in seen.steps),
    }
