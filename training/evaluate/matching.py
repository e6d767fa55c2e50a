"""Re-ranking: of the nearest by their points, which match? The slow judgement orders what the fast one has found.

Source: BLIP, arXiv 2201.12086, section 5.1: k nearest by contrast, ordered by the matching score. The released code
adds the cosine to that score; we follow the paper.
"""

# Shapes: N images, T distinct texts, K nearest, P pairs to judge

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.errors import UsageError
from training.evaluate.confidence import Share
from training.evaluate.embed import Images
from training.evaluate.retrieval import CHUNK, TIE, Right, shares
from training.evaluate.task import Trial

PAIRS = 256  # judged at once
NEVER = -np.inf

Ints = npt.NDArray[np.int64]


def reranked(trial: Trial, images: Images, text_emb: Tensor, right: Right, nearest: int) -> Mapping[str, Share]:
    """Recall after re-ranking, named reranked_image_to_text_r1 and so on; what is not among the nearest is not found.

    Raises UsageError where the model cannot judge pairs.
    """
    if not hasattr(trial.model, "match"):
        raise UsageError("rerank: this model cannot say whether a text matches an image; a blip or blip.retrieval can")
    of_images = _nearest(images.emb, text_emb, nearest)  # (N, K)
    of_texts = _nearest(text_emb, images.emb, nearest)  # (T, K)
    keys = _keys(of_images, of_texts, len(right.texts))
    odds = _judged(trial, images, right, keys)
    own = set(zip(right.image.tolist(), right.text.tolist(), strict=True))

    def place(candidates: Ints, pair: Ints, is_own: npt.NDArray[np.bool_]) -> Tensor:
        """How many wrong candidates are judged at least as well as the best right one; without one, all the others."""
        found = odds[np.searchsorted(keys, pair)]  # (rows, K)
        best = np.where(is_own, found, NEVER).max(1)
        ahead = (~is_own & (found >= best[:, None] - TIE)).sum(1)
        return torch.from_numpy(np.where(np.isneginf(best), np.iinfo(np.int64).max, ahead))

    def is_own(image: Ints, text: Ints) -> npt.NDArray[np.bool_]:
        pairs = zip(image.ravel().tolist(), text.ravel().tolist(), strict=True)
        return np.fromiter((pair in own for pair in pairs), bool, image.size).reshape(image.shape)

    num = len(right.texts)
    image, text = np.broadcast_to(np.arange(len(of_images))[:, None], of_images.shape), of_images
    of_image = place(of_images, image * num + text, is_own(image, text))
    image, text = of_texts, np.broadcast_to(np.arange(len(of_texts))[:, None], of_texts.shape)
    of_text = place(of_texts, image * num + text, is_own(image, text))
    return {f"reranked_{name}": share for name, share in shares(of_image, of_text, right).items()}


def _nearest(asked: Tensor, answers: Tensor, nearest: int) -> Ints:
    """(rows, K) of each row the nearest, the nearest first."""
    parts = [
        (asked[at : at + CHUNK] @ answers.T).topk(min(nearest, len(answers))).indices.cpu()
        for at in range(0, len(asked), CHUNK)
    ]
    found: Ints = torch.cat(parts).numpy()
    return found


def _keys(of_images: Ints, of_texts: Ints, num_texts: int) -> Ints:
    """Pairs that some query asks for, image * T + text, sorted: those of an image stand together."""
    by_image = np.arange(len(of_images))[:, None] * num_texts + of_images
    by_text = of_texts * num_texts + np.arange(len(of_texts))[:, None]
    return np.unique(np.concatenate([by_image.ravel(), by_text.ravel()]))


def _judged(trial: Trial, images: Images, right: Right, keys: Ints) -> npt.NDArray[np.float32]:
    """(P,) log odds of each pair. Every image is decoded and encoded once more, none is kept."""
    model, found = trial.model, np.empty(len(keys), np.float32)
    tokens = model.tokens(right.texts)  # (T, L)
    image, text = keys // len(right.texts), keys % len(right.texts)
    start = 0
    for samples, pixels in trial.pictures(model.ops, images.samples):
        first, last = np.searchsorted(image, [start, start + len(samples)])
        which = torch.from_numpy(image[first:last] - start)
        found[first:last] = model.match(model.look(pixels), which, tokens[text[first:last]], PAIRS).numpy()
        start += len(samples)
    return found
