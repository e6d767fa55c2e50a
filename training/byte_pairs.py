"""Byte pairs: texts to token ids and back, by merges that were learnt from captions. No character is unknown.

Learning, splitting and plain encoding are the `tokenizers` library's. Its dropout draws from a generator that nobody
can seed, so encoding with dropout stands here.
Sources: arXiv 1508.07909; over bytes, GPT-2; dropout, arXiv 1910.13267.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from infra.errors import UsageError
from training.tokenize import MAX_CHARACTERS, read_vocabulary

ENDING = ".bpe"  # of a file of merges: two tokens a line, in the order in which they were learnt
NUM_BYTES = 256
Pair = tuple[str, str]


class BytePairs:
    """Lower-cased texts to ids: the bytes' are 0 to 255, in the order of the signs that stand for them, then merges'.

    merges: "left right" each, in the order in which they were learnt. Cheap to send to a worker.
    """

    def __init__(self, merges: Sequence[str]) -> None:
        self.merges = tuple(merges)

    def __len__(self) -> int:
        return NUM_BYTES + len(self.merges)

    def __reduce__(self) -> tuple[type[BytePairs], tuple[Sequence[str]]]:
        return BytePairs, (self.merges,)  # the library's part is made anew in each process

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids."""
        return [each.ids for each in self._made.encode_batch_fast([_clean(text) for text in texts])]

    def drawn(self, text: str, dropout: float, chance: np.random.Generator) -> list[int]:
        """The text's ids where every merge that could be made is left out, this time, with that probability."""
        return [
            self._ids[sign] for word in _words(_parts(), _clean(text)) for sign in self._merged(word, dropout, chance)
        ]

    def _merged(self, word: str, dropout: float, chance: np.random.Generator) -> list[str]:
        """Signs of a word. Of those left out each may be made again once another is: draws are made when asked for.

        Source: BPE-dropout, arXiv 1910.13267, algorithm 1.
        """
        signs: list[str] = list(word)
        after, before = [*range(1, len(word) + 1)], [*range(-1, len(word) - 1)]  # places of the neighbours

        def found(at: int) -> list[tuple[int, int]]:
            """Rank and place of the merge that begins there, if any."""
            rank = None
            if at >= 0 and after[at] < len(signs):
                rank = self._ranks.get((signs[at], signs[after[at]]))
            return [] if rank is None else [(rank, at)]

        waiting = [merge for at in range(len(signs)) for merge in found(at)]
        heapify(waiting)
        left_out: list[tuple[int, int]] = []
        while waiting:
            merge = heappop(waiting)
            at = merge[1]
            if not signs[at] or found(at) != [merge]:
                continue  # one of its halves has gone into another
            if chance.random() < dropout:
                left_out.append(merge)
                continue
            gone = after[at]
            signs[at], signs[gone], after[at] = signs[at] + signs[gone], "", after[gone]
            if after[at] < len(signs):
                before[after[at]] = at
            for again in (*left_out, *found(at), *found(before[at])):
                heappush(waiting, again)
            left_out.clear()
        return [sign for sign in signs if sign]

    def text(self, ids: Sequence[int]) -> str:
        """Ids back to text; bytes that are no text become replacement signs."""
        decoded: str = self._made.decode(list(ids))
        return decoded

    @cached_property
    def _ids(self) -> dict[str, int]:
        joined = (merge.replace(" ", "") for merge in self.merges)
        return {sign: number for number, sign in enumerate((*_alphabet(), *joined))}

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {_pair(merge): rank for rank, merge in enumerate(self.merges)}

    @cached_property
    def _made(self) -> Any:
        from tokenizers import Tokenizer, decoders, models

        made = Tokenizer(models.BPE(vocab=self._ids, merges=[_pair(merge) for merge in self.merges]))
        made.normalizer, made.pre_tokenizer = _parts()
        made.decoder = decoders.ByteLevel()
        return made


def read_merges(place: str) -> tuple[str, ...]:
    """A vocabulary's file. Raises UsageError."""
    merges = tuple(read_vocabulary(place).splitlines())
    known = set(_alphabet())
    for number, merge in enumerate(merges, 1):
        parts = merge.split(" ")
        if len(parts) != 2 or not known.issuperset(parts):
            raise UsageError(f"{place}:{number}: {merge!r} is no merge of two tokens that stand before it")
        known.add("".join(parts))
    if len(known) != NUM_BYTES + len(merges):
        raise UsageError(f"{place}: two merges give the same token")
    return merges


def learn_merges(captions: Iterable[str], size: int) -> tuple[str, ...]:
    """Merges for at most `size` tokens, bytes among them: the same from the same captions, in any order.

    Raises UsageError where there is no room beside the bytes.
    """
    from tokenizers import Tokenizer, models, trainers

    if size <= NUM_BYTES:
        raise UsageError(f"{size} tokens: {NUM_BYTES} are the bytes themselves; give more")
    parts = _parts()
    words = Counter(word for text in captions for word in _words(parts, _clean(text)))
    made = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=_alphabet(), show_progress=False)
    # Words are signs of bytes already, so nothing splits them again; each comes as often as it was counted.
    made.train_from_iterator((word for word in sorted(words) for _ in range(words[word])), trainer)
    ids, found = made.get_vocab(), []
    for merge in json.loads(made.to_str())["model"]["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if left + right in ids:
            found.append(f"{left} {right}")
    return tuple(found)


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _parts() -> tuple[Any, Any]:
    from tokenizers import normalizers, pre_tokenizers

    return (normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
            pre_tokenizers.ByteLevel(add_prefix_space=False))  # fmt: skip


def _words(parts: tuple[Any, Any], text: str) -> list[str]:
    normalizer, splitter = parts
    return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]


def _clean(text: str) -> str:
    """What the library can be handed: no lone surrogate, no text of megabytes."""
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()


def _pair(merge: str) -> Pair:
    left, right = merge.split(" ")
    return left, right
