"""Language identification of real captions in 48 languages: share right, by language and by length, and captions/s.

    python -m benchmarks.languages CAPTIONS.tsv [--model lid.176.bin] [--peer]

CAPTIONS.tsv has columns lang and caption (the translations of Tux Paint's stamps: most are of two words). A code with a
region counts as its language (pt_BR as pt), and Bokmål as Norwegian, since lid.176 tells them no further apart.
--peer: py3langid beside it (pip install -c constraints.txt py3langid), asked as its documentation says.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from filters.base import Batch
from filters.language import Language, LanguageSettings
from infra.sample import Caption, Pair

LENGTHS = (10, 20, 40, 80)  # characters
BATCH = 64
MOJIBAKE = "ta"  # these translations are in a font's private encoding, which is no Tamil

Identify = Callable[[Sequence[str]], list[str | None]]


def read_captions(path: Path) -> list[tuple[str, str]]:
    """(language as lid.176 names it, caption) of each row."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["lang"].partition("_")[0], row["caption"]) for row in csv.DictReader(file, delimiter="\t")]
    return [({"nb": "no"}.get(lang, lang), caption) for lang, caption in rows if lang != MOJIBAKE]


def fasttext_guesses(model: str | None = None) -> Identify:
    """Our scorer, batch by batch, as the engine calls it."""
    scorer = Language(LanguageSettings(model=model))
    scorer.setup()

    def identify(texts: Sequence[str]) -> list[str | None]:
        found: list[str | None] = []
        for start in range(0, len(texts), BATCH):
            pairs = [Pair(bytes(16), "", "", (Caption(text),)) for text in texts[start : start + BATCH]]
            found += scorer.score(Batch(pairs))["language"].to_pylist()
        return found

    return identify


def peer_guesses() -> Identify:
    """py3langid's classify, of one text after the other."""
    import py3langid

    return lambda texts: [py3langid.classify(text)[0] for text in texts]


def length_of(caption: str) -> str:
    """Which of the rows by length a caption counts in."""
    return next((f"under {limit} characters" for limit in LENGTHS if len(caption) < limit), f"{LENGTHS[-1]} and more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--peer", action="store_true")
    given = parser.parse_args()
    rows = read_captions(given.captions)
    ways = {"ours": fasttext_guesses(given.model)} | ({"py3langid": peer_guesses()} if given.peer else {})
    right: dict[str, Counter[str]] = {}
    wrong: dict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    for lang, caption in rows:
        total.update(("all", length_of(caption), lang))
    for way, identify in ways.items():
        started = time.process_time()
        found = identify([caption for _, caption in rows])
        print(f"{way}: {len(rows) / (time.process_time() - started):,.0f} captions/s of one core")
        right[way] = Counter()
        for (lang, caption), guess in zip(rows, found, strict=True):
            if guess == lang:
                right[way].update(("all", length_of(caption), lang))
            elif way == "ours":
                wrong[lang][str(guess)] += 1
    print(f"| captions | n | {' | '.join(ways)} | taken for |\n|---|---|{'---|' * len(ways)}---|")
    heads = ["all", *(length_of("x" * (limit - 1)) for limit in LENGTHS), f"{LENGTHS[-1]} and more"]
    for name in [*heads, *sorted(set(total) - set(heads))]:
        shares = " | ".join(f"{right[way][name] / total[name]:.3f}" for way in ways)
        taken = ", ".join(f"{guess} {number}" for guess, number in wrong[name].most_common(3))
        print(f"| {name} | {total[name]} | {shares} | {taken} |")


if __name__ == "__main__":
    main()
