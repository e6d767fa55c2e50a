"""Drawn pictures: of N candidates a CLIP chooses the best, and what was chosen is compared with real pictures.

Each caption's candidates are drawn once, as many as the largest N; for a smaller N one of the first so many is chosen.
Metrics are told at each N; at the largest N also with drawn and real pictures both blurred, as the paper does since
its pictures come from coarse tokens.
Sources: DALL-E, arXiv 2102.12092, section 3 and figures 9 and 10; R-precision, arXiv 1711.10485.
"""

# Shapes: P captions, N candidates, H x W pixels, E embedding, D features, K classes

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from infra.errors import DatasetError, UsageError
from training.evaluate.confidence import Share, mean_of, share_of_hits
from training.evaluate.contact import contact
from training.evaluate.distances import SPLITS, frechet, inception_score, kernel
from training.evaluate.embed import Encoder, embed_texts
from training.evaluate.generation_sheet import PICTURES, Row, draw_sheet, strips
from training.evaluate.inception import Inception
from training.evaluate.rerank import BATCH, picture_emb
from training.evaluate.retrieval import TIE
from training.evaluate.samples import Sample
from training.evaluate.settings import EvaluationSettings
from training.evaluate.task import Result, Trial, counts_of, finite, only
from training.models.encoder import fit
from training.models.load import load_encoder
from training.models.painter import Painter, as_bytes
from training.sample_settings import SampleSettings

OTHERS = 99  # wrong captions that a picture's own must stand before: R-precision of 100


@dataclass(frozen=True)
class Studio:
    """Who draws, who chooses, and who measures: a CLIP, and where its weights are given Inception-v3."""

    painter: Painter
    chooser: Encoder
    judge: Encoder
    inception: Inception | None = None

    def identity(self) -> Mapping[str, Any]:
        """What made the numbers, JSON-ready."""
        told = {"chooser": self.chooser, "judge": self.judge}
        measured = {} if self.inception is None else {"inception": self.inception.identity}
        return {
            **self.painter.identity(), **{name: dict(encoder.identity()) for name, encoder in told.items()}, **measured,
        }  # fmt: skip


def studio_of(painter: Painter, settings: EvaluationSettings, device: str, pretrained: str | None = None) -> Studio:
    """Painter and judges, as the settings name these. pretrained: weights of the chooser, where it is a mere name.

    Raises UsageError where one is missing, or not what it should be.
    """
    if not isinstance(settings.rerank, str):
        raise UsageError("generation: who chooses among candidates? Give --rerank: a CLIP's run, checkpoint or name")
    chooser = load_encoder(settings.rerank, pretrained, device)
    judge = chooser if settings.features is None else load_encoder(settings.features, None, device)
    return Studio(painter, chooser, judge, Inception(settings.inception, device) if settings.inception else None)


@dataclass
class _Seen:
    """What is kept of a set of pictures: embeddings by the judge, and by Inception where there is one; a row each."""

    emb: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def see(self, studio: Studio, pictures: Tensor, *, is_drawn: bool) -> None:
        """(B, 3, H, W) uint8."""
        self.emb.append(finite(picture_emb(studio.judge, pictures), "pictures"))
        if studio.inception is not None:
            features, logits = studio.inception(pictures)
            self.features.append(features)
            if is_drawn:
                self.logits.append(logits)


def generation(studio: Studio, settings: EvaluationSettings) -> Result:
    """Pictures of the first caption of each image, against the images. Raises UsageError, DatasetError or
    EvaluationError.
    """
    trial = Trial(studio, settings, labelled=False)
    sizes = sorted(set(settings.num_candidates))
    asked = _asked(settings, sizes[-1])
    without: Counter[str] = Counter()
    samples = _readable(only(trial.samples, without, "caption"), studio.painter, without)
    pictures = trial.pictures(studio.painter.maker.ops, islice(samples, settings.limit))
    texts: list[str] = []
    times: Counter[str] = Counter()
    shown: list[tuple[Sample, Row]] = []
    radii = sorted({0.0, *settings.blur})
    real: dict[float, _Seen] = defaultdict(_Seen)
    drawn: dict[tuple[int, float], _Seen] = defaultdict(_Seen)
    for group, images in pictures:
        own = [sample.captions[0] for sample in group]
        rows = [*_chosen(studio, own, asked, sizes, times)]
        texts += own
        shown += [*zip(group, rows, strict=True)][: max(0, settings.queries - len(shown))]
        originals = as_bytes(images)
        for radius in radii:
            real[radius].see(studio, _blurred(originals, radius), is_drawn=False)
        for size in sizes:
            best = torch.stack([row.pictures[size] for row in rows])
            for radius in radii if size == sizes[-1] else (0.0,):
                drawn[size, radius].see(studio, _blurred(best, radius), is_drawn=True)
    if len(texts) < 2:
        raise DatasetError("fewer than two images with a caption could be read; there is nothing to compare")
    text_emb = finite(embed_texts(studio.judge, texts, settings.batch).cpu(), "texts")
    metrics: dict[str, Share] = {}
    for (size, radius), seen in drawn.items():
        suffix = f"@{size}" + (f"/blur{radius:g}" if radius else "")
        told = _measured(seen, real[radius], text_emb, texts, settings.seed, is_blurred=bool(radius))
        metrics |= {f"{name}{suffix}": share for name, share in told.items()}
    counts = counts_of(pictures.num_seen, dict(sorted(pictures.unreadable.items())), without)
    details = {"num_candidates": sizes, "blur": radii, "sampling": asked.model_dump(mode="json"),
               "texts_of_r_precision": min(OTHERS + 1, len(set(texts)))}  # fmt: skip
    return Result(
        trial, metrics, counts, details, pictures.digest, partial(draw_sheet, shown),
        pictures={PICTURES: contact(strips(shown))} if shown else {},
    )  # fmt: skip


def _asked(settings: EvaluationSettings, num: int) -> SampleSettings:
    told = {"num_candidates": num, "seed": settings.seed, "temperature": settings.temperature,
            "top_k": settings.top_k, "top_p": settings.top_p, "guidance": settings.guidance}  # fmt: skip
    return SampleSettings.parse({name: value for name, value in told.items() if value is not None}, "evaluate")


def _readable(samples: Iterable[Sample], painter: Painter, without: Counter[str]) -> Iterator[Sample]:
    """Those whose first caption the model can read whole; the others are counted."""
    for sample in samples:
        try:
            painter.sampler.tokenizer.asked(sample.captions[0])
        except UsageError:
            without["without_readable_caption"] += 1
        else:
            yield sample


def _chosen(
    studio: Studio, texts: Sequence[str], asked: SampleSettings, sizes: Sequence[int], times: Counter[str]
) -> Iterator[Row]:
    """Of each text the picture that fits best, among the first so many. times: how often each was drawn; it counts."""
    together = max(1, BATCH // asked.num_candidates)  # texts whose candidates are held at once
    for first in range(0, len(texts), together):
        group = texts[first : first + together]
        before = []
        for text in group:
            before.append(times[text])
            times[text] += 1
        painted = [pictures for _, pictures in studio.painter.paint(group, asked, times=before)]
        emb = finite(picture_emb(studio.chooser, torch.cat(painted)), "candidates")
        emb = emb.unflatten(0, (len(group), asked.num_candidates))
        scores = fit(emb, studio.chooser.texts(group).cpu()[:, None])  # (texts, N)
        for pictures, own in zip(painted, scores, strict=True):
            best = {size: int(own[:size].argmax()) for size in sizes}
            yield Row(
                {size: pictures[at].clone() for size, at in best.items()},  # a view would hold all candidates
                {size: own[at].item() for size, at in best.items()},
            )


def _blurred(pictures: Tensor, radius: float) -> Tensor:
    """(B, 3, H, W) uint8, under a Gaussian of that many pixels."""
    if not radius:
        return pictures
    planes = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(np.stack([cv2.GaussianBlur(each, (0, 0), radius) for each in planes])).permute(0, 3, 1, 2)


def _measured(
    drawn: _Seen, real: _Seen, text_emb: Tensor, texts: Sequence[str], seed: int, *, is_blurred: bool
) -> dict[str, Share]:  # fmt: skip
    """Metrics by name; whether a picture fits its text is asked of unblurred ones alone."""
    emb, real_emb, num = torch.cat(drawn.emb), torch.cat(real.emb), len(texts)
    found: dict[str, Share | None] = {}
    if not is_blurred:
        found["clip_score"] = mean_of(fit(emb, text_emb).tolist())
        hits = r_precision_hits(emb, text_emb, texts, seed)
        found["r_precision"] = share_of_hits(hits, torch.ones(num))
    found["clip_frechet"] = Share(frechet(real_emb, emb), None, None, num)
    found["clip_kernel"] = Share(kernel(real_emb, emb), None, None, num)
    if drawn.features:
        found["fid"] = Share(frechet(torch.cat(real.features), torch.cat(drawn.features)), None, None, num)
        if num >= SPLITS:
            found["inception_score"] = Share(inception_score(torch.cat(drawn.logits)), None, None, num)
    return {name: share for name, share in found.items() if share is not None}


def r_precision_hits(emb: Tensor, text_emb: Tensor, texts: Sequence[str], seed: int) -> Tensor:
    """(P,) bool: is a picture nearer to its own text than to each of OTHERS others, drawn for it? A tie is a miss.

    emb, text_emb: (P, E), unit length. A text that stands twice is no other one.
    """
    where = {text: at for at, text in reversed([*enumerate(texts)])}  # first place of each distinct text
    number, first = {text: at for at, text in enumerate(where)}, torch.tensor([*where.values()])
    hits = torch.zeros(len(texts), dtype=torch.bool)
    for at, text in enumerate(texts):
        chance = np.random.default_rng((seed, at))
        others = chance.choice(len(number) - 1, min(OTHERS, len(number) - 1), replace=False)
        drawn = first[torch.from_numpy(others + (others >= number[text]))]
        near = text_emb[drawn] @ emb[at]
        hits[at] = bool((near < text_emb[at] @ emb[at] - TIE).all())
    return hits
