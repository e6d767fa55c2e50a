"""WordPiece: texts to token ids and back, by BERT's vocabulary or one learnt from captions.

Splitting, normalising and learning are the `tokenizers` library's; here stand the form of our batches and the files.
"""

# Shapes: B texts, L tokens

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from infra.errors import UsageError
from infra.storage import Storage

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, START, END, MASK)
MAX_CHARACTERS = 10_000  # of a text that are looked at: no context is so long, and the web has texts of megabytes
ENDING = ".txt"  # of a vocabulary's file: a token a line, its number is its id


class WordPiece:
    """Words to ids, lower-cased and without accents, as bert-base-uncased has it. Cheap to send to a worker.

    words: the vocabulary in the order of ids. more: tokens that are appended to it where it lacks them.
    """

    def __init__(self, words: Sequence[str], more: Sequence[str] = ()) -> None:
        self.words = (*words, *(word for word in more if word not in words))
        if missing := [word for word in SPECIAL[:4] if word not in self.words]:
            raise UsageError(f"the vocabulary lacks {', '.join(missing)}; give one in BERT's form, a token a line")

    def __len__(self) -> int:
        return len(self.words)

    def __reduce__(self) -> tuple[type[WordPiece], tuple[Sequence[str]]]:
        return WordPiece, (self.words,)  # the library's part is made anew in each process

    def id(self, word: str) -> int:
        """A token's id. Raises KeyError."""
        return self._ids[word]

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        """(B, length) int64: [CLS], the text, [SEP], padding; a text that is too long is cut before its [SEP]."""
        start, end, pad = self.id(START), self.id(END), self.id(PAD)
        found = torch.full((len(texts), length), pad)
        for row, ids in enumerate(self.pieces(texts)):
            filled = [start, *ids[: length - 2], end]
            found[row, : len(filled)] = torch.tensor(filled)
        return found

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids, without any special token."""
        # A lone surrogate is no text that the library could be handed.
        clean = [text[:MAX_CHARACTERS].encode("utf-8", "replace").decode() for text in texts]
        return [each.ids for each in self._made.encode_batch_fast(clean, add_special_tokens=False)]

    def text(self, ids: Sequence[int]) -> str:
        """Ids back to words, special tokens left out: lower-cased, blanks around punctuation drawn together."""
        decoded: str = self._made.decode([one for one in ids if one not in self._special], skip_special_tokens=False)
        return decoded

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def _special(self) -> set[int]:
        return {number for word, number in self._ids.items() if len(word) > 2 and word[0] == "[" and word[-1] == "]"}

    @cached_property
    def _made(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        made = Tokenizer(models.WordPiece(vocab=self._ids, unk_token=UNKNOWN))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        return made


def read_words(place: str) -> tuple[str, ...]:
    """A vocabulary: a .txt file, or a name on the Hugging Face hub such as bert-base-uncased. Raises UsageError."""
    if not place.endswith(ENDING):
        return _words_of_hub(place)
    return tuple(line.rstrip("\r") for line in read_vocabulary(place).rstrip("\n").split("\n"))


def read_vocabulary(place: str) -> str:
    """The text of a vocabulary's file, of words or of merges. Raises UsageError."""
    storage, name = Storage.of_file(place)
    try:
        return storage.read(name).decode("utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{place}: no such vocabulary; python -m training tokenizer DATASET --out {place} learns one"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: not a vocabulary: {error}") from None


def learn_words(captions: Iterable[str], size: int) -> tuple[str, ...]:
    """A vocabulary of at most `size` tokens, special ones among them: the same from the same captions, in any order.

    Held in memory are the captions' different words. Of letters the commonest are kept, so many that they fit as a
    first and as a later one of a word.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in captions:
        clean = tokenizer.normalizer.normalize_str(text[:MAX_CHARACTERS].encode("utf-8", "replace").decode())
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(clean))
    letters: Counter[str] = Counter()
    for word, num in words.items():
        letters.update(dict.fromkeys(word, num))
    kept = sorted(letters, key=lambda letter: (-letters[letter], letter))[: (size - len(SPECIAL)) // 2]
    read = sorted(word for word in words if {*word} <= {*kept})
    # Named as special, they are numbered in this order; the trainer's own is a hash's, and ties are broken by number.
    later = sorted({f"##{letter}" for word in read for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *later], limit_alphabet=len(kept), show_progress=False
    )
    tokenizer.train_from_iterator((word for word in read for _ in range(words[word])), trainer)
    found = tokenizer.get_vocab()
    return tuple(sorted(found, key=lambda word: found[word]))


def _words_of_hub(name: str) -> tuple[str, ...]:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, "vocab.txt")
    except Exception as error:  # noqa: BLE001 - the hub's client raises its own, its transport's and the system's
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"vocabulary {name} comes from the Hugging Face hub: {reason} Fetch its vocab.txt once where there is a "
            "network, and give the path of that file"
        ) from None
    return read_words(path)
