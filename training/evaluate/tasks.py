"""The tasks: samples of the asked kind through the encoder, and what is counted on the way."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice

import torch

from infra.errors import UsageError
from infra.storage import Storage
from training.evaluate.embed import Encoder
from training.evaluate.matching import reranked
from training.evaluate.retrieval import Right, pair_up, recall
from training.evaluate.settings import EvaluationSettings
from training.evaluate.sheet import draw_sheet
from training.evaluate.task import Found, Result, Trial, counts_of, only
from training.evaluate.zero_shot import accuracy, classifier, read_prompts


def zero_shot(encoder: Encoder, settings: EvaluationSettings) -> Result:
    """Images with a class, against the names of all classes. Raises UsageError, DatasetError or EvaluationError."""
    trial = Trial(encoder, settings, labelled=True)
    prompts = read_prompts(Storage(settings.data), settings.classes, settings.templates)
    without: Counter[str] = Counter()
    samples = islice(trial.samples, settings.limit)
    images = trial.embed_images(only(samples, without, "class"))
    class_emb = classifier(trial.embed_texts, prompts)
    labels = torch.tensor([sample.label for sample in images.samples], dtype=torch.int64)
    found = accuracy(images.emb, labels, class_emb)
    counts = {
        **counts_of(images.num_seen, images.unreadable, without),
        "classes": len(prompts.classes),
        "classes_without_image": int((found.num_images == 0).sum()),
        "classes_of_one_name": len(prompts.classes) - len(set(prompts.classes)),
        "templates": len(prompts.templates),
    }
    right = Right(prompts.classes, torch.arange(len(labels)), labels)
    details = {"classes": found.by_class(prompts.classes), "templates": list(prompts.templates)}
    sheet = partial(draw_sheet, Found(trial, images, class_emb, right))
    return Result(trial, found.metrics, counts, details, images.digest, sheet)


def retrieval(encoder: Encoder, settings: EvaluationSettings) -> Result:
    """Images and all of their captions, both ways. Raises UsageError, DatasetError or EvaluationError."""
    if settings.classes or settings.templates:
        raise UsageError("--classes and --templates are for zero_shot; retrieval takes the captions of the images")
    if isinstance(settings.rerank, str):
        raise UsageError(
            f"--rerank {settings.rerank}: retrieval takes a number: so many of the nearest are ordered anew"
        )
    trial = Trial(encoder, settings, labelled=False)
    without: Counter[str] = Counter()
    samples = islice(trial.samples, settings.limit)
    images = trial.embed_images(only(samples, without, "caption"))
    right = pair_up([sample.captions for sample in images.samples])
    text_emb = trial.embed_texts(right.texts)
    counts = {
        **counts_of(images.num_seen, images.unreadable, without),
        "captions": len(right.text),
        "texts": len(right.texts),
        "shared_texts": right.num_shared,
    }
    metrics = recall(images.emb, text_emb, right)
    if settings.rerank:
        metrics |= reranked(trial, images, text_emb, right, settings.rerank)
    found = Found(trial, images, text_emb, right)
    return Result(trial, metrics, counts, {}, images.digest, partial(draw_sheet, found))
