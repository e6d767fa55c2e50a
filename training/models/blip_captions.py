"""How BLIP reads a caption: cleaned, cut, as ids whose first one says what the text stack is to do with it."""

# Shapes: B rows, L positions

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from infra.recipe import fingerprint
from training.models.blip_settings import CaptionSettings, SizeSettings
from training.tokenize import END, MAX_CHARACTERS, PAD, START, WordPiece, read_words

READ, JUDGE, WRITE = START, "[ENC]", "[DEC]"  # token 0: a text alone, beside an image, to be written
_DROPPED = re.compile(r"[.!\"()*#:;~]")  # by the released code, from captions
_BLANKS = re.compile(r"\s+")


class BlipTokenizer:
    """Captions to ids, and what the model asks about ids. Cheap to send to a worker."""

    def __init__(self, settings: SizeSettings) -> None:
        self.context, self._max_words = settings.context, settings.max_words
        words = settings.vocab if isinstance(settings.vocab, tuple) else read_words(settings.vocab)
        self.words = WordPiece(words, more=(WRITE, JUDGE))
        self.pad, self.end = self.words.id(PAD), self.words.id(END)

        self.begin_with(settings.prompt if isinstance(settings, CaptionSettings) else "")

    def begin_with(self, prompt: str) -> None:
        """Let every caption begin so."""
        self.prompt = prompt
        self.num_prompt = len(self.words.pieces([prompt])[0])

    def identity(self) -> dict[str, str | int]:
        """What ids depend on, less the prompt, JSON-ready."""
        words = fingerprint(self.words.words)
        return {"words": words, "context": self.context, "max_words": self._max_words}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, context) int64: [CLS], the prompt, the caption, [SEP], padding."""
        return self.words([self.prompt + cleaned(text, self._max_words) for text in texts], self.context)

    def __len__(self) -> int:
        return len(self.words)

    def trimmed(self, ids: Tensor) -> Tensor:
        """(B, L) → (B, L'), less the positions that are padding in every row."""
        used = self.is_text(ids).any(0)
        return ids[:, : max(2, int(used.sum()))]

    def is_text(self, ids: Tensor) -> Tensor:
        """(B, L) bool: no padding."""
        return ids != self.pad

    def begun(self, ids: Tensor, word: str) -> Tensor:
        """The same ids with another first one."""
        first = torch.full_like(ids[:, :1], self.words.id(word))
        return torch.cat([first, ids[:, 1:]], 1)

    def prompts(self, num: int) -> Tensor:
        """(num, 1 + prompt) int64: what a caption to be written begins with."""
        ids = [self.words.id(WRITE), *self.words.pieces([self.prompt])[0]]
        return torch.tensor([ids]).repeat(num, 1)

    def text(self, ids: Sequence[int]) -> str:
        """A written caption, less its prompt."""
        return self.words.text(list(ids)[1 + self.num_prompt :])


def cleaned(text: str, max_words: int) -> str:
    """Lower-cased, less some punctuation, at most so many words. Source: the released `pre_caption`."""
    words = _BLANKS.sub(" ", _DROPPED.sub(" ", text[:MAX_CHARACTERS].lower())).strip().split(" ")
    return " ".join(words[:max_words])
