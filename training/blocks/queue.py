"""The newest keys of past steps, in a ring: negatives beyond the batch. Source: MoCo, arXiv 1911.05722, section 3.2."""

# Shapes: K places, G keys pushed at once, E embedding

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last K keys, each an image's and a text's embedding with numbers that say which image and which text.

    Places that nothing was pushed to yet are no keys: MoCo and BLIP begin with random ones instead.
    """

    image: Tensor
    text: Tensor
    ids: Tensor
    num_pushed: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("ids", torch.zeros(size, 2, dtype=torch.int64))  # of the image, of the text
        self.register_buffer("num_pushed", torch.zeros((), dtype=torch.int64))

    def is_key(self) -> Tensor:
        """(K,) bool."""
        return torch.arange(self.size, device=self.image.device) < self.num_pushed

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """Add keys, image and text (G, E), ids (G, 2); the oldest go. Of more than K the last K stay."""
        if not self.size:
            return
        if not self.size:
            return
        image, text, ids = image[-self.size :], text[-self.size :], ids[-self.size :]
        start = int(self.num_pushed) % self.size
        places = (start + torch.arange(len(ids), device=ids.device)) % self.size
        for held, new in ((self.image, image), (self.text, text), (self.ids, ids)):
            held[places] = new.to(held.dtype)
        self.num_pushed += len(ids)
