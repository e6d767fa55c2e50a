"""Sections on scores and selections: what was measured, what was decided, and what fell by it, to be argued with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.page.words import share_text
from infra.selection import Selection
from pipeline.judge import ALL_RULES, Judgement, Tally, judge, unguarded
from pipeline.report import charts
from pipeline.report.captions import FATES, NUM_PER_FATE, Contest, contest
from pipeline.report.chosen import NUM_PER_REASON, album, chosen, duplicates, overlaps
from pipeline.report.funnel import Flow, Stage
from pipeline.report.scored import score_columns, value_text
from pipeline.report.sections import SEED, Overview, Section
from pipeline.report.source import Source
from pipeline.truth import UNKNOWN

# Kinds of the small web's captions, in words.
KIND_WORDS = {
    "wrong_random": "of another picture",
    "wrong_attribute": "one attribute wrong",
    "boilerplate": "boilerplate",
    "true": "true",
}


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


def captions(source: Source, seen: Overview) -> Section | None:
    """Web and synthetic captions of the same images, side by side."""
    made = (contest(source, one, SEED) for one in chosen(source)) if source.has_rows else ()
    found = [one for one in made if one is not None]
    if not found:
        return None
    contests = [_contest(one, _judgements(source, one.selection)) for one in found]
    intro = (
        f"Up to {NUM_PER_FATE} images of each of {len(FATES)} fates, drawn at random with a fixed seed among those "
        "that have captions of both kinds. Pictures that a safety score doubts, or does not know, are blurred."
    )
    return Section("Web and synthetic captions", "captions", intro, {"contests": contests})


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
    if not found or source.truth is None:
        return None
    tables = [_judged(one, _judgements(source, one)) for one in found]
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


def _contest(one: Contest, judged: list[Judgement]) -> dict[str, Any]:
    """What the page shows of it beside its figures: cuts of each score, which rule gives a reason, the truth."""
    rules = one.selection.summary["rules"]
    return {
        "contest": one,
        "fates": {fate.words: fate.num_images for fate in one.fates},
        "cuts": [[cut for rule in rules for cut in rule["cuts"]
                  if f"{cut['table']}.{cut['column']}" == name and isinstance(cut["value"], int | float)]
                 for name in one.columns],
        "rules": {reason: rule["text"] for rule in rules for reason in rule["dropped"]},
        "kinds": _kinds(judged[-1].captions) if judged else [],
    }  # fmt: skip


def _judgements(source: Source, selection: Selection) -> list[Judgement]:
    """Each rule and all of them against the small web's truth; none where there is no truth."""
    return [] if source.truth is None else judge(source.dataset, selection.name, source.truth)


def _kinds(captions: Mapping[str, Tally]) -> list[dict[str, Any]]:
    """Right and wrong captions of the web, of all that the truth knows and of those that are kept."""
    known = {kind: tally for kind, tally in captions.items() if kind != UNKNOWN}
    wrong = sum((tally for kind, tally in known.items() if kind != "true"), Tally())
    whole = wrong + known.get("true", Tally())
    num_kept = whole.seen - whole.dropped
    told = {"wrong": wrong} | {kind: known[kind] for kind in KIND_WORDS if kind in known}
    return [
        {"words": KIND_WORDS.get(kind, "wrong, of any kind"), "is_whole": kind == "wrong", "before": tally.seen,
         "share_before": tally.seen / whole.seen, "after": tally.seen - tally.dropped,
         "share_after": (tally.seen - tally.dropped) / num_kept if num_kept else None}
        for kind, tally in told.items() if whole.seen
    ]  # fmt: skip


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
