"""Captions: a captioner writes one for each image, and they are compared with what people wrote.

Images with no caption of their own are written to as well, and shown, but nothing is counted of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

from jinja2 import Environment

from infra.errors import DatasetError
from infra.page import templates_of
from training.evaluate.caption_metrics import CaptionScores, score
from training.evaluate.confidence import Share, mean_of
from training.evaluate.samples import Sample
from training.evaluate.settings import EvaluationSettings
from training.evaluate.sheet import thumbnail
from training.evaluate.task import Result, Trial, counts_of
from training.generate import GenerationSettings
from training.models.captioner import Captioner

MEANS = ("CIDEr", "ROUGE_L")  # corpus scores that are means over images, so their intervals can be told
CANDIDATES, REFERENCES = "candidates.json", "references.json"


@dataclass(frozen=True)
class Card:
    """An image of the sheet: what was written, what people wrote, and its own scores by metric."""

    thumbnail: str | None
    written: str
    references: Sequence[str]
    scores: Mapping[str, float]


def caption(captioner: Captioner, settings: EvaluationSettings) -> Result:
    """One caption for each image, by beams as the paper does. Raises UsageError, DatasetError or JavaError.

    Writes both sides in COCO's form: candidates.json, [{image_id, caption}], and references.json.
    """
    trial = Trial(captioner, settings, labelled=False)
    generation = generation_of(settings)
    captioner.check(generation)
    pictures = trial.pictures(captioner.ops, islice(trial.samples, settings.limit))
    shown: list[Sample] = []
    written: dict[str, str] = {}
    for samples, pixels in pictures:
        found = captioner.write(pixels, [sample.name.encode() for sample in samples], generation)
        written |= {sample.name: each[0].text for sample, each in zip(samples, found, strict=True)}
        shown += samples
    references = {sample.name: list(sample.captions) for sample in shown if sample.captions}
    if not references:
        raise DatasetError("no image with a caption could be read; there is nothing to compare with")
    scores = score(references, {name: written[name] for name in references})
    without = Counter(without_caption=len(shown) - len(references)) + Counter[str]()
    counts = counts_of(pictures.num_seen - without.total(), pictures.unreadable, without) | dict(scores.counts)
    details = {"absent": dict(scores.absent), "generation": generation.model_dump(mode="json")}
    files = {
        CANDIDATES: [{"image_id": name, "caption": text} for name, text in written.items()],
        REFERENCES: {
            "images": [{"id": name} for name in references],
            "annotations": [
                {"id": number, "image_id": name, "caption": text}
                for number, (name, text) in enumerate((name, text) for name, own in references.items() for text in own)
            ],
        },
    }
    sheet = partial(_sheet, shown, written, scores)
    return Result(trial, _metrics(scores), counts, details, pictures.digest, sheet, files)


def generation_of(settings: EvaluationSettings) -> GenerationSettings:
    """How captions are written to be compared: by beams, or greedily where there is one."""
    way = {"method": "beam", "num_beams": settings.num_beams} if settings.num_beams > 1 else {"method": "greedy"}
    lengths = {"max_length": settings.max_length, "min_length": settings.min_length}
    return GenerationSettings.parse({**way, **lengths}, "evaluate")


def _metrics(scores: CaptionScores) -> dict[str, Share]:
    """Each with its number of images; an interval where it is a mean over them."""
    number = scores.counts["candidates"]
    found = {name: Share(value, None, None, number) for name, value in scores.corpus.items()}
    for name in MEANS:
        mean = mean_of(list(scores.by_id[name].values()))
        assert mean is not None
        found[name] = Share(found[name].value, mean.low, mean.high, number)
    return found


def _sheet(
    samples: Sequence[Sample], written: Mapping[str, str], scores: CaptionScores, result: Result, num: int,
    rng: random.Random,
) -> str:  # fmt: skip
    """Images drawn by chance, good captions and bad ones as they come."""
    chosen = sorted(rng.sample(range(len(samples)), min(num, len(samples))))
    cards = [_card(result.trial, samples[number], written, scores) for number in chosen]
    page = _templates().get_template("captions.html.j2")
    return page.render(data=result.trial.settings.data, result=result, cards=cards)


def _card(trial: Trial, sample: Sample, written: Mapping[str, str], scores: CaptionScores) -> Card:
    own = {name: scores.by_id[name][sample.name] for name in MEANS if sample.name in scores.by_id[name]}
    return Card(thumbnail(trial, sample), written[sample.name], sample.captions, own)


@cache
def _templates() -> Environment:
    return templates_of("training.evaluate")
