"""The section on models that were trained: made by the room of training, which this one does not import."""

from __future__ import annotations

import sys

from markupsafe import Markup

from infra.child import run_child
from infra.errors import PairmillError
from pipeline.report.sections import Overview, Section
from pipeline.report.source import Source


def models(source: Source, seen: Overview) -> Section | None:
    """Results and curves of the runs beside each other. Raises PairmillError where a run's folder cannot be shown."""
    if not source.runs:
        return None
    code, html = run_child([sys.executable, "-m", "training", "report", *source.runs, "--section"])
    if code:
        raise PairmillError(f"report: the runs {', '.join(source.runs)} cannot be shown; why stands above")
    intro = "Trained on this dataset. Each run has a page of its own, with more curves: report.html in its folder."
    return Section("Models", "models", intro, {"html": Markup(html)})  # escaped where it was made
