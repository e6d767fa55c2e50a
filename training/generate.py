"""Text that goes on from a prompt, by greedy search, beam search or sampling, with any decoder.

Greedy and beam search give the tokens that transformers' `generate` gives (5.23, early_stopping=False). What is sampled
hangs on the model's logits and on numbers that are a function of (uid, seed, n, position) alone: neither worker, batch
nor shard layout enters, so only rounding of the model's own arithmetic could change a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from infra.errors import RecipeError
from infra.recipe import Config
from training.next_token import draw, penalised, probabilities, uniform_numbers

# Shapes: N inputs (those that still go on), W rows of each, V vocabulary, M max_length

Texts = tuple[Tensor, Tensor, Tensor]  # tokens, lengths, scores: the fields of Generated
NEVER = float("-inf")


class Decoding(Protocol):
    """Rows of tokens that grow, W for each of N inputs, and what was read of each (a key-value cache)."""

    def read(self, tokens: Tensor) -> Tensor:
        """(N * W, T) further tokens → (N * W, V) logits of what follows the last. Rows of an input stand together."""

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what row rows[r] had read; both are of one input. rows: (N * W,) int64"""

    def keep(self, inputs: Tensor) -> None:
        """Only these inputs go on; the others have ended. inputs: (N',) int64, places among the N, ascending"""


Begin = Callable[[int, int], Decoding]  # rows of each input, most tokens that a row will have


class GenerationSettings(Config):
    """How text is generated. A row's length counts its prompt."""

    method: Literal["greedy", "beam", "sample"] = Field("beam", description="how the next token is chosen")
    num_beams: int = Field(3, ge=1, description="beam: rows that are followed at once")
    num: int = Field(1, ge=1, description="texts for each input: the best ones of beam, or as many samples")
    max_length: int = Field(20, ge=1, description="most tokens of a row, the prompt and the end token among them")
    min_length: int = Field(5, ge=0, description="fewest tokens before the end token, the prompt among them")
    temperature: float = Field(1.0, gt=0, description="sample: divides the logits; less is likelier text")
    top_k: int | None = Field(None, ge=1, description="sample: from so many likeliest tokens")
    top_p: float | None = Field(0.9, gt=0, le=1, description="sample: from the likeliest tokens that hold this share")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1, tokens that the row has already are less likely")
    length_penalty: float = Field(1.0, description="beam: scores are divided by length to this power; more is longer")
    seed: int = Field(0, ge=0, lt=2**64, description="sample: of the numbers that are drawn")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} is beyond max_length={self.max_length}; lower min_length")
        if self.method == "greedy" and self.num > 1:
            raise ValueError(f"num={self.num}: greedy search finds one text; set method: beam or sample")
        if self.method == "beam" and self.num_beams == 1:
            raise ValueError("num_beams=1 is greedy search; set method: greedy, or num_beams: 2 or more")
        if self.method == "beam" and self.num > self.num_beams:
            raise ValueError(f"num={self.num} texts of num_beams={self.num_beams}; set num_beams: {self.num} or more")
        return self


@dataclass(frozen=True)
class Generated:
    """Texts of each input. They are inference tensors: clone what autograd is to see.

    tokens: (N, num, M) int64, prompt first, after the end token nothing but padding.
    lengths: (N, num) int64, tokens before the padding, the prompt and the end token (where there is one) among them.
    scores: (N, num) float32. greedy, sample: nats that the model gives to the text after the prompt, end included,
      before penalties, temperature and cuts. beam: these nats after the repetition penalty, divided by the number of
      tokens after the prompt to the power length_penalty; best first.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor

    def put(self, inputs: Tensor, texts: Texts) -> None:
        """Write what was found for these inputs in its place."""
        for whole, part in zip((self.tokens, self.lengths, self.scores), texts, strict=True):
            whole[inputs] = part


@torch.inference_mode()
def generate(
    begin: Begin, prompt: Tensor, settings: GenerationSettings, *, end: int, pad: int, uids: Sequence[bytes],
    drop_at: float = 0.125,
) -> Generated:  # fmt: skip
    """Text for each input, batched; an input is done when all its rows have ended.

    prompt: (N, L) int64 on the model's device; L ≥ 1, one for all. uids: N, what chance is keyed by.
    drop_at: share of the inputs that must be done before the batch is cut to the others; tunes speed alone. Measured
      on a CPU with caches of 197 patches, 32 samples of 11 tokens: 0.54 s at 1/8, 0.60 s at once, 0.82 s never.
    Raises RecipeError where the prompt leaves no place for a token.
    """
    num_inputs, length = prompt.shape
    assert len(uids) == num_inputs and length > 0  # noqa: PT018
    if length >= settings.max_length:
        raise RecipeError(
            f"max_length={settings.max_length} leaves nothing after a prompt of {length} tokens; raise it"
        )
    if not num_inputs:
        return Generated(*_Rows(prompt, settings, end, pad, uids).texts())
    search = (
        _Beams(prompt, settings, end, pad) if settings.method == "beam" else _Rows(prompt, settings, end, pad, uids)
    )
    found = Generated(*(values.clone() for values in search.texts()))
    present = torch.arange(num_inputs, device=prompt.device)  # places among all inputs
    decoding, tokens = begin(search.width, settings.max_length), prompt.repeat_interleave(search.width, 0)
    while True:
        sources = search.step(decoding.read(tokens).float(), length)
        length += 1
        # The one wait for the device in a step.
        num_done = len(present) if length == settings.max_length else int(search.done.sum())
        if num_done == len(present):
            found.put(present, search.texts())
            return found
        if sources is not None:
            decoding.reorder(sources)
        if num_done >= drop_at * len(present):
            found.put(present, search.texts())
            going = (~search.done).nonzero().flatten()
            present = present[going]
            search.keep(going)
            decoding.keep(going)
        tokens = search.rows[:, :, length - 1].reshape(-1, 1)


class _Search:
    """What the ways to search share. Of its tensors, each has one row for an input that is present."""

    def __init__(self, prompt: Tensor, settings: GenerationSettings, end: int, pad: int, width: int) -> None:
        self.settings, self.end, self.pad, self.width, self.prompt_length = settings, end, pad, width, prompt.shape[1]
        self.rows = prompt.new_full((len(prompt), width, settings.max_length), pad)  # (N, W, M)
        self.rows[:, :, : self.prompt_length] = prompt[:, None]
        self.row_scores = prompt.new_zeros((len(prompt), width), dtype=torch.float32)
        self.done = prompt.new_zeros(len(prompt), dtype=torch.bool)

    def step(self, logits: Tensor, length: int) -> Tensor | None:
        """Give each row its token at place `length`, from (N * W, V) float32 logits.

        Returns which row each row goes on from, (N * W,); None: each from itself.
        """
        raise NotImplementedError

    def texts(self) -> Texts:
        """What is found so far, for each input that is present."""
        raise NotImplementedError

    def keep(self, inputs: Tensor) -> None:
        """Only these inputs stay. (N',) int64"""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[inputs])

    def _penalised(self, scores: Tensor, length: int) -> Tensor:
        barred = self.end if length < self.settings.min_length else None
        return penalised(scores, self.rows[:, :, :length].flatten(0, 1), self.settings.repetition_penalty, barred)


class _Rows(_Search):
    """Greedy search and sampling: each row goes its own way."""

    def __init__(self, prompt: Tensor, settings: GenerationSettings, end: int, pad: int, uids: Sequence[bytes]) -> None:
        super().__init__(prompt, settings, end, pad, settings.num)
        self.ended = torch.zeros_like(self.row_scores, dtype=torch.bool)  # (N, W)
        self.lengths = torch.full_like(self.row_scores, self.prompt_length, dtype=torch.int64)  # (N, W)
        if settings.method == "sample":
            uniform = uniform_numbers(uids, settings.num, settings.max_length, settings.seed)
            self.uniform = uniform.to(prompt.device)  # (N, W, M)

    def step(self, logits: Tensor, length: int) -> None:
        chosen = self._chosen(self._penalised(logits, length), length)  # (N * W,)
        nats = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        chosen, nats = chosen.view_as(self.ended), nats.view_as(self.row_scores)
        self.rows[:, :, length] = chosen.masked_fill(self.ended, self.pad)
        self.row_scores += nats.masked_fill(self.ended, 0.0)
        self.lengths += ~self.ended
        self.ended |= chosen == self.end
        self.done = self.ended.all(1)

    def texts(self) -> Texts:
        return self.rows, self.lengths, self.row_scores

    def _chosen(self, scores: Tensor, length: int) -> Tensor:
        if self.settings.method == "greedy":
            return scores.argmax(-1)
        settings = self.settings
        shares = probabilities(scores, settings.temperature, settings.top_k, settings.top_p)
        return draw(shares, self.uniform[:, :, length].flatten())


class _Beams(_Search):
    """Beam search: the likeliest rows of an input go on, the best ended ones are kept, until no row can better them."""

    def __init__(self, prompt: Tensor, settings: GenerationSettings, end: int, pad: int) -> None:
        super().__init__(prompt, settings, end, pad, settings.num_beams)
        self.row_scores[:, 1:] = NEVER  # the rows of an input begin alike: one of them is enough
        self.best = self.rows.clone()  # (N, W, M)
        self.best_lengths = torch.zeros_like(self.row_scores, dtype=torch.int64)  # (N, W)
        self.best_scores = torch.full_like(self.row_scores, NEVER)  # (N, W), falling; NEVER: no row yet

    def step(self, logits: Tensor, length: int) -> Tensor:
        vocabulary, of_length = (
            logits.shape[1],
            float((length + 1 - self.prompt_length) ** self.settings.length_penalty),
        )
        nats = self._penalised(logits.log_softmax(-1), length)  # not scaled to a sum of 1 again, as in transformers
        totals = self.row_scores[:, :, None] + nats.view(*self.row_scores.shape, -1)  # (N, W, V)
        # Each row can end in one way, so that of twice as many candidates as rows, enough go on.
        scores, flat = totals.flatten(1).topk(2 * self.width)  # (N, 2 W), falling
        source, token = flat // vocabulary, flat % vocabulary
        candidates = _of_each(self.rows, source)  # (N, 2 W, M)
        candidates[:, :, length] = token
        ends = token == self.end
        self._end(candidates, scores / of_length, ends | (length + 1 == self.settings.max_length), length + 1)
        self.row_scores, chosen = scores.masked_fill(ends, NEVER).topk(self.width)  # (N, W)
        self.rows = _of_each(candidates, chosen)
        # A guess, as in transformers: that a row's score per length only falls from here.
        self.done |= self.row_scores[:, 0] / of_length <= self.best_scores[:, -1]
        first = torch.arange(len(flat), device=flat.device)[:, None] * self.width
        return (source.gather(1, chosen) + first).flatten()

    def texts(self) -> Texts:
        num = self.settings.num
        return self.best[:, :num], self.best_lengths[:, :num], self.best_scores[:, :num]

    def _end(self, candidates: Tensor, scores: Tensor, ends: Tensor, length: int) -> None:
        """Let candidates that end take the places of worse ones; only the better half of them may."""
        may = ends & ~self.done[:, None]
        may[:, self.width :] = False
        scores = torch.cat([self.best_scores, scores.masked_fill(~may, NEVER)], 1)  # (N, 3 W)
        self.best_scores, places = scores.topk(self.width)
        self.best = _of_each(torch.cat([self.best, candidates], 1), places)
        lengths = torch.cat([self.best_lengths, torch.full_like(ends, length, dtype=torch.int64)], 1)
        self.best_lengths = lengths.gather(1, places)


def _of_each(rows: Tensor, places: Tensor) -> Tensor:
    """(N, A, M) rows, (N, B) places among the A → (N, B, M)."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))
