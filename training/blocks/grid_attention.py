"""Attention under a grid mask, of which only the blocks that may be looked at are computed.

On a CPU an image row's queries ask the text and the few rows that their mask reaches back to; under a column mask rows
are columns. On a GPU FlexAttention skips the blocks that nobody may look at; there, too, columns are laid side by side,
since in raster order a column mask leaves no block empty. All paths give what dense attention under the mask gives.
"""

# Shapes: B sequences, H heads, L = text + side * side positions, d; R rows (or columns) of a grid, W = R positions each

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.blocks.masks import GridMask

FLEX_WIDTH = 16  # of a head, at least
AT_ONCE = 1 << 21  # scores: 8 MiB, about what a cache holds


def grid_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: GridMask) -> Tensor:
    """(B, H, L, d) each → (B, H, L, d)."""
    if mask.kind == "causal":
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    if queries.is_cuda and queries.shape[3] >= FLEX_WIDTH:
        return flex(queries, keys, values, mask, _compiled())
    if _num_back(mask) + 1 >= mask.side:
        return F.scaled_dot_product_attention(queries, keys, values, mask.dense(queries.device))
    way = _in_blocks_again if torch.is_grad_enabled() else _in_blocks
    num = max(1, AT_ONCE // _num_scores(mask))  # heads, whatever their sequence
    parts = [each.flatten(0, 1)[None].split(num, 1) for each in (queries, keys, values)]
    found = [way(*part, mask) for part in zip(parts[0], parts[1], parts[2], strict=True)]
    return torch.cat(found, 1)[0].unflatten(0, queries.shape[:2])


def _in_blocks_again(queries: Tensor, keys: Tensor, values: Tensor, mask: GridMask) -> Tensor:
    """Backward reckons windows and shares anew: kept, they are more than dense attention keeps."""
    found: Tensor = checkpoint(
        _in_blocks, queries, keys, values, mask, use_reentrant=False, preserve_rng_state=False
    )  # fmt: skip
    return found


def _in_blocks(queries: Tensor, keys: Tensor, values: Tensor, mask: GridMask) -> Tensor:
    text, image = zip(*(_parted(each, mask) for each in (queries, keys, values)), strict=True)
    above = F.scaled_dot_product_attention(text[0], text[1], text[2], is_causal=True)
    rows = [_rows(each, mask) for each in image]  # (B, H, R, W, d) each
    windows = [_windows(each, _num_back(mask)) for each in rows[1:]]  # (B, H, R, (back + 1) * W, d)
    found = _attend(rows[0], (text[1], text[2]), windows, _window_mask(mask).to(queries.device))
    return torch.cat([above, _unrowed(found, mask)], 2)


def flex(queries: Tensor, keys: Tensor, values: Tensor, mask: GridMask, attend: Callable[..., Tensor]) -> Tensor:
    """The same by FlexAttention, compiled or not (arXiv 2412.05496)."""
    there, back = (order.to(queries.device) for order in _orders(mask))
    laid = [each[:, :, there] for each in (queries, keys, values)] if mask.kind == "column" else [queries, keys, values]
    found = attend(*laid, block_mask=_block_mask(mask, queries.device))
    return found[:, :, back] if mask.kind == "column" else found


@cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


@cache
def _block_mask(mask: GridMask, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rule, order = mask.rule(device), _orders(mask)[0].to(device)

    def sees(batch: Tensor, head: Tensor, asking: Tensor, asked: Tensor) -> Tensor:
        return rule(order[asking], order[asked]) if mask.kind == "column" else rule(asking, asked)

    return create_block_mask(sees, None, None, mask.length, mask.length, device=str(device))


@cache
def _orders(mask: GridMask) -> tuple[Tensor, Tensor]:
    """(L,) each: the positions with the grid's columns one behind the other, and the way back."""
    grid = torch.arange(mask.side**2).reshape(mask.side, mask.side).T.flatten() + mask.text
    order = torch.cat([torch.arange(mask.text), grid])
    return order, order.argsort()


def _attend(queries: Tensor, text: tuple[Tensor, Tensor], windows: list[Tensor], may: Tensor) -> Tensor:
    """Softmax over the whole text and a row's window together. may: (R, W, window) bool. Returns (B, H, R, W, d)."""
    num_rows, width, size = queries.shape[2:]
    queries = queries * size**-0.5
    of_text = (queries.flatten(2, 3) @ text[0].transpose(2, 3)).unflatten(2, (num_rows, width))  # (B, H, R, W, text)
    of_image = (queries @ windows[0].transpose(3, 4)).masked_fill(~may, float("-inf"))  # (B, H, R, W, window)
    shares = torch.cat([of_text, of_image], 4).softmax(4)
    to_text, to_image = shares.split([of_text.shape[4], of_image.shape[4]], 4)
    found = to_image @ windows[1]
    return found + (to_text.flatten(2, 3) @ text[1]).unflatten(2, (num_rows, width))


def _num_back(mask: GridMask) -> int:
    """Rows before its own that a query may see a part of."""
    return 0 if mask.kind == "column" else -(-mask.distances[-1] // mask.side)


def _num_scores(mask: GridMask) -> int:
    """Of a head's image queries."""
    return mask.side**2 * (mask.text + (_num_back(mask) + 1) * mask.side)


def _parted(x: Tensor, mask: GridMask) -> tuple[Tensor, Tensor]:
    return x[:, :, : mask.text], x[:, :, mask.text :]


def _rows(image: Tensor, mask: GridMask) -> Tensor:
    """(B, H, side * side, d) → (B, H, R, W, d); under a column mask a row is a column."""
    rows = image.unflatten(2, (mask.side, mask.side))
    return rows.transpose(2, 3) if mask.kind == "column" else rows


def _unrowed(rows: Tensor, mask: GridMask) -> Tensor:
    return (rows.transpose(2, 3) if mask.kind == "column" else rows).flatten(2, 3)


def _windows(rows: Tensor, num_back: int) -> Tensor:
    """Each row behind those before it, nothing before the first: (B, H, R, W, d) → (B, H, R, (num_back + 1) * W, d)."""
    if num_back == 0:
        return rows
    num = rows.shape[2]
    padded = F.pad(rows, (0, 0, 0, 0, num_back, 0))
    return torch.cat([padded[:, :, at : at + num] for at in range(num_back + 1)], 3)


@cache
def _window_mask(mask: GridMask) -> Tensor:
    """(R, W, window) bool, cut out of the dense mask: what lies before the first row is seen by nobody."""
    dense = mask.dense()[mask.text :, mask.text :]
    side, num_back = mask.side, _num_back(mask)
    rows = dense.unflatten(0, (side, side)).unflatten(2, (side, side))  # (R, W, R, W)
    if mask.kind == "column":
        rows = rows.permute(1, 0, 3, 2)
    padded = F.pad(rows, (0, 0, num_back, 0))
    return torch.stack([padded[at, :, at : at + num_back + 1].flatten(1) for at in range(side)])
