"""Sections on scores and selections: what was measured, what was decided, and what fell by it, to be argued with."""

from __future__ import annotations

from typing import Any

from infra.page.words import share_text
from infra.selection import Selection
from pipeline.judge import ALL_RULES, Judgement, Tally, judge, unguarded
from pipeline.report import charts
from pipeline.report.chosen import NUM_PER_REASON, album, chosen, duplicates, overlaps
from pipeline.report.funnel import Flow, Stage
from pipeline.report.scored import score_columns, value_text
from pipeline.report.sections import SEED, Overview, Section
from pipeline.report.source import Source
from pipeline.truth import truth_of


def scores(source: Source, seen: Overview) -> Section | None:
    """A histogram for each column, with the cuts of all selections."""
    columns = score_columns(source)
    if not columns:
        return None
    figures = [
        {"column": column, "chart": charts.cut_histogram(f"{column.table} {column.name}", column.bins, column.cuts,
                                                         value_text) if column.bins else None,
         "cuts": [f"{cut.selection}: {cut.op} {value_text(cut.value)}" for cut in column.cuts]}
        for column in columns
    ]  # fmt: skip
    intro = "Each column of each score table. A line is a rule's cut; what it drops is shaded."
    return Section("Scores", "scores", intro, {"figures": figures})


def selected(source: Source, seen: Overview) -> Section | None:
    """Each selection's rules in their order."""
    found = chosen(source)
    if not found:
        return None
    told = [
        {"name": one.name, "flow": _flow(one), "rules": one.summary["rules"], "rows_in": one.summary["rows_in"],
         "rows_out": one.summary["rows_out"], "datasets": one.summary["datasets"]}
        for one in found
    ]  # fmt: skip
    intro = "Rules are asked in their order; the first one that a caption fails is its reason."
    return Section("Selections", "selections", intro, {"selections": told, "overlaps": overlaps(source, found)})


def verdicts(source: Source, seen: Overview) -> Section | None:
    """Pictures that were kept, and those that fell, by reason."""
    albums = [album(source, one, SEED) for one in chosen(source)] if source.has_rows else []
    albums = [one for one in albums if any(group.shown for group in one.groups)]
    if not albums:
        return None
    intro = (
        f"Up to {NUM_PER_REASON} of each, drawn at random with a fixed seed. Pictures of denied rows are not shown; "
        "those that a safety score doubts, or does not know, are blurred."
    )
    return Section("Kept and dropped", "verdicts", intro, {"albums": albums})


def duplicate_groups(source: Source, seen: Overview) -> Section | None:
    """Kept pictures beside those that fell because of them."""
    groups = [group for one in chosen(source) for group in duplicates(source, one)] if source.has_rows else []
    if not groups:
        return None
    intro = "The kept picture first; under the others, how many of 64 bits differ. The largest groups of each rule."
    return Section("Duplicates, side by side", "duplicates", intro, {"groups": groups})


def against_truth(source: Source, seen: Overview) -> Section | None:
    """On the small web: how often each rule was right."""
    found = chosen(source)
    truth = truth_of(source.dataset) if found else None
    if truth is None:
        return None
    tables = [_judged(one, judge(source.dataset, one.name, truth)) for one in found]
    intro = (
        "This dataset was drawn from the small web, which knows what is wrong with each pair. Precision: of what a "
        "rule dropped, the share that is bad in the way it looks for. Recall: of the bad ones that it saw, the share "
        "that it dropped."
    )
    return Section("Rules against the truth", "truth", intro, {"tables": tables})


def _flow(selection: Selection) -> Flow:
    summary = selection.summary
    stages = [Stage("Captions of stored images", summary["rows_in"])]
    stages += [Stage(rule["text"], rule["rows_out"], rule["dropped"]) for rule in summary["rules"]]
    return Flow("caption", tuple(stages))


def _judged(selection: Selection, judgements: list[Judgement]) -> dict[str, Any]:
    kinds = sorted({kind for one in judgements for kind in (*one.captions, *one.images)} - {"true", "plain"})
    wrong = [kind for kind in ("wrong_random", "boilerplate", "wrong_attribute") if kind in kinds]
    copies = [kind for kind in kinds if kind.startswith(("near_", "exact_", "shared_"))]
    return {
        "name": selection.name,
        "kinds": [*wrong, *copies],
        "rows": [
            {"rule": one.rule, "is_whole": one.rule == ALL_RULES, "meant_for": ", ".join(one.meant_for),
             "saw": one.rows.seen, "dropped": one.rows.dropped, "precision": _share(one.precision),
             "recall": _share(one.recall), "bad": one.bad,
             "kinds": [_tally(one.captions.get(kind) or one.images.get(kind)) for kind in [*wrong, *copies]]}
            for one in judgements
        ],
        "unguarded": {kind: tally.seen - tally.dropped for kind, tally in unguarded(judgements).items()},
    }  # fmt: skip


def _share(value: float | None) -> str:
    return "–" if value is None else share_text(value)


def _tally(tally: Tally | None) -> str:
    return f"{tally.dropped:,} of {tally.seen:,}" if tally is not None and tally.seen else "–"
