"""Retrieval: is one of an image's captions among the k texts nearest to it, and one of a caption's images likewise?

Texts are told apart by their words: a caption that two images have is right for both, where the papers count one of
them as wrong; `Right.num_shared` says how many captions that is, and where it is none the numbers are the papers'.
A tie counts against the model: one that says the same of everything finds nothing.
Source: CLIP, arXiv 2103.00020, section 3.1 and table 13: recall@k, any right one counts, in both directions.
"""

# Shapes: N images, T distinct texts, P pairs of an image and a text of its own, E embedding, K cuts

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infra.errors import DatasetError
from training.evaluate.confidence import Share, share_of_hits

CUTS = (1, 5, 10)
CHUNK = 2048  # images, and texts, whose similarities are held at once
TIE = 1e-6  # cosines that differ by less are equal: float32 sums of another order differ by about that


@dataclass(frozen=True)
class Right:
    """Who belongs to whom: pair p is image[p] with text[p], sorted by image; both (P,) int64. texts: the T texts."""

    texts: Sequence[str]
    image: Tensor
    text: Tensor

    @property
    def num_shared(self) -> int:
        """Texts that more than one image has."""
        return int((torch.bincount(self.text) > 1).sum())


def pair_up(captions: Sequence[Sequence[str]]) -> Right:
    """captions: of each image; a caption that an image has twice counts once."""
    number: dict[str, int] = {}
    pairs = [
        (image, number.setdefault(text, len(number)))
        for image, own in enumerate(captions)
        for text in dict.fromkeys(own)
    ]
    image, text = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return Right(list(number), image.contiguous(), text.contiguous())


def recall(image_emb: Tensor, text_emb: Tensor, right: Right, chunk: int = CHUNK) -> dict[str, Share]:
    """image_emb: (N, E), text_emb: (T, E), unit length. Metrics by name: in image_to_text_r5 an image with a
    text is a trial, in text_to_image_r5 each caption of each image is one, and an image is a cluster of them.

    Memory: similarities of chunk × chunk, and a few numbers for each image, text and pair.
    Raises DatasetError where there is nothing to retrieve.
    """
    if not len(right.image):
        raise DatasetError("no image with a caption could be read; retrieval needs at least one")
    return shares(*ranks(image_emb, text_emb, right, chunk), right)


def shares(of_image: Tensor, of_text: Tensor, right: Right) -> dict[str, Share]:
    """Recall by name. of_image: (N,), of_text: (T,): wrong ones before the first right one, as `ranks` gives them."""
    trials = torch.bincount(right.image, minlength=len(of_image))
    found = {f"image_to_text_r{cut}": share_of_hits((of_image < cut) & (trials > 0), trials > 0) for cut in CUTS}
    for cut in CUTS:
        hits = torch.zeros_like(trials).index_add(0, right.image, (of_text[right.text] < cut).long())
        found[f"text_to_image_r{cut}"] = share_of_hits(hits, trials)
    return {name: share for name, share in found.items() if share is not None}


def ranks(image_emb: Tensor, text_emb: Tensor, right: Right, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """How many wrong ones are at least as near as the nearest right one: (N,) of images, (T,) of texts, on the CPU."""
    best_text = torch.full((len(image_emb),), torch.inf)  # of images: the similarity of the nearest right text
    best_image = torch.full((len(text_emb),), torch.inf)
    own = torch.cat([
        (image_emb[right.image[at : at + chunk]] * text_emb[right.text[at : at + chunk]]).sum(1).cpu()
        for at in range(0, len(right.image), chunk)
    ])  # fmt: skip
    best_text.scatter_reduce_(0, right.image, own, "amax", include_self=False)
    best_image.scatter_reduce_(0, right.text, own, "amax", include_self=False)
    best_text, best_image = (best.to(image_emb.device) - TIE for best in (best_text, best_image))
    of_image = torch.zeros(len(image_emb), dtype=torch.int64, device=image_emb.device)
    of_text = torch.zeros(len(text_emb), dtype=torch.int64, device=image_emb.device)
    for i in range(0, len(image_emb), chunk):
        first, last = torch.searchsorted(right.image, torch.tensor([i, i + chunk])).tolist()
        rows, columns = right.image[first:last] - i, right.text[first:last]
        for t in range(0, len(text_emb), chunk):
            near = image_emb[i : i + chunk] @ text_emb[t : t + chunk].T  # (≤ chunk, ≤ chunk)
            here = (columns >= t) & (columns < t + chunk)
            near[rows[here].to(near.device), columns[here].to(near.device) - t] = -torch.inf
            of_image[i : i + chunk] += (near >= best_text[i : i + chunk, None]).sum(1)
            of_text[t : t + chunk] += (near >= best_image[t : t + chunk]).sum(0)
    return of_image.cpu(), of_text.cpu()
