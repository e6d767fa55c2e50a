"""Caption metrics: how near is a caption to what people wrote? CIDEr in [0, 10], the others in [0, 1]; higher: nearer.

Names, jars and arithmetic are pycocoevalcap's. What feeds its two Java programs is ours: the library's own feeder
writes into its package folder, waits without end, and lets a caption spoil the ones beside it.
Sources: BLEU, Papineni 2002; METEOR 1.5, Denkowski 2014; ROUGE-L, Lin 2004; CIDEr, arXiv 1411.5726; SPICE,
arXiv 1607.08822.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from infra.errors import UsageError
from infra.storage import Storage
from training.evaluate.java import Java, JavaError

BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
MAX_WORDS = 256  # of a caption; METEOR takes 1 s for 256 times the same word, 60 s for 1,000, and dies of 2,000
MAX_LETTERS = 50  # of a word; more count as another
SPICE_S = 3600.0  # longest wait for all of SPICE
NAMED = 3  # ids in a message

# Line ends would move every later caption to another id; half characters have no UTF-8.
_SPACE = "\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff"
_WORD = re.compile(rf"[^\W_]{{1,{MAX_LETTERS}}}|[^{_SPACE}]")  # METEOR parts words at each sign, so a sign is one, too
# A tag that one caption opens and another closes makes one word of all between. The library keeps <a href="x"> whole;
# we take apart all but plain tags such as <unk>.
_OPEN_TAG = re.compile(r"<(?!/?[A-Za-z][A-Za-z0-9]*>)")
_GUARD = "x"  # between captions: how "p.m." at an end is parted hangs on the line below


@dataclass(frozen=True)
class CaptionScores:
    """corpus: score by metric. by_id: of each metric the score by id. absent: metrics left out, and why and the mend.

    counts: candidates, references; cut: texts longer than MAX_WORDS; empty: candidates without a word.
    """

    corpus: Mapping[str, float]
    by_id: Mapping[str, Mapping[str, float]]
    absent: Mapping[str, str]
    counts: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """JSON-ready, metrics at the top level; without the scores by id."""
        return {**self.corpus, "absent": dict(self.absent), "counts": dict(self.counts)}

    def told(self) -> list[str]:
        """What a person reads of it: a line a metric, and what was counted."""
        lines = [f"{name}: {value:.4f}" for name, value in self.corpus.items()]
        lines += [f"{name}: absent; {reason}" for name, reason in self.absent.items()]
        return [*lines, "; ".join(f"{number:,} {name}" for name, number in self.counts.items())]


def score_files(references: str, candidates: str) -> CaptionScores:
    """`score` of two files that `read_captions` reads; each id has one candidate. Raises as these two do."""
    one = read_captions(candidates)
    if several := [key for key, captions in one.items() if len(captions) != 1]:
        raise UsageError(f"{candidates}: {_some(several)} with other than one caption; a candidate is one for each id")
    return score(read_captions(references), {key: captions[0] for key, captions in one.items()})


def score(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> CaptionScores:
    """The candidate of each id against all references of the same id. Their order changes no bit.

    Texts may hold anything. Bleu is of the corpus, as METEOR is: not the mean of the scores by id, as the others are.
    Raises UsageError for ids on one side alone, ids without a reference, nothing at all, and where there is no Java;
    JavaError where Java fails, within ANSWER_S of its last line.
    """
    _check(references, candidates)
    ids = sorted(candidates)
    raw = [text for key in ids for text in (candidates[key], *references[key])]
    short = [shorten(text) for text in raw]
    parts = iter(_tokenize([text for text, _ in short]))
    said: dict[str, list[str]] = {}
    right: dict[str, list[str]] = {}
    for key in ids:
        said[key] = [next(parts)]
        right[key] = list(islice(parts, len(references[key])))
    corpus: dict[str, float] = {}
    by_id: dict[str, dict[str, float]] = {}
    for name, (whole, each) in _scores(right, said).items():
        corpus[name] = float(whole)
        by_id[name] = dict(zip(ids, map(float, each), strict=True))
    absent = {}
    try:
        by_id["SPICE"] = _spice(right, said)
        corpus["SPICE"] = sum(by_id["SPICE"].values()) / len(ids)
    except (UsageError, JavaError) as error:
        absent["SPICE"] = str(error)
    counts = {
        "candidates": len(ids),
        "references": len(raw) - len(ids),
        "cut": sum(is_cut for _, is_cut in short),
        "empty": sum(not text for (text,) in said.values()),
    }
    return CaptionScores(corpus, by_id, absent, counts)


def shorten(text: str) -> tuple[str, bool]:
    """A caption in one line of at most MAX_WORDS words, and whether that cut it. Signs count as words do."""
    ends = [word.end() for word in islice(_WORD.finditer(text), MAX_WORDS + 1)]
    is_cut = len(ends) > MAX_WORDS
    return re.sub(f"[{_SPACE}]+", " ", text[: ends[MAX_WORDS - 1]] if is_cut else text), is_cut


def read_captions(path: str) -> dict[str, list[str]]:
    """Captions by id from a JSON file, local or an fsspec url; a number as id is its digits.

    {id: caption}, {id: [caption, …]}, or COCO's: [{"image_id", "caption"}, …], bare or under "annotations".
    Raises UsageError for anything else.
    """
    try:
        storage, name = Storage.of_file(path)
        data = json.loads(storage.read(name))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {str(error)[:200]}") from error
    if isinstance(data, dict) and any(isinstance(row, dict) for row in _listed(data.get("annotations"))):
        data = data["annotations"]
    found: dict[str, list[str]] = {}
    for key, captions in data.items() if isinstance(data, dict) else map(_coco, _listed(data)):
        kept = _listed(captions)
        if isinstance(key, bool) or not isinstance(key, str | int) or not all(isinstance(text, str) for text in kept):
            raise UsageError(
                f"{path}: {str(key)[:40]!r} is no id with captions; write {{id: caption}}, {{id: [caption, …]}}, or "
                'COCO\'s [{"image_id": id, "caption": caption}, …]'
            )
        found.setdefault(str(key), []).extend(kept)
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _coco(row: Any) -> tuple[Any, Any]:
    return (row.get("image_id"), row.get("caption")) if isinstance(row, dict) else (None, row)


def _check(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> None:
    if not candidates and not references:
        raise UsageError("no candidates and no references; give at least one of each")
    if lone := candidates.keys() - references.keys():
        raise UsageError(f"{_some(lone)} of the candidates without references; leave them out, or add references")
    if lone := references.keys() - candidates.keys():
        raise UsageError(f"{_some(lone)} of the references without a candidate; leave them out, or add candidates")
    if bare := [key for key in references if not references[key]]:
        raise UsageError(f"{_some(bare)} with an empty list of references; give each at least one")


def _some(ids: Collection[str]) -> str:
    shown = ", ".join(repr(key[:40]) for key in sorted(ids)[:NAMED])
    return f"{len(ids):,} id{'s' * (len(ids) > 1)} ({shown}{', …' * (len(ids) > NAMED)})"


def _scores(
    right: Mapping[str, list[str]], said: Mapping[str, list[str]]
) -> dict[str, tuple[float, Iterable[float]]]:  # fmt: skip
    """Of the corpus, and by id in their order; all but SPICE."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    whole, each = Bleu(len(BLEU)).compute_score(right, said, verbose=0)  # verbose prints, and stdout is for our JSON
    return {
        **dict(zip(BLEU, zip(whole, each, strict=True), strict=True)),
        "METEOR": _meteor(right, said),
        "ROUGE_L": Rouge().compute_score(right, said),
        "CIDEr": Cider().compute_score(right, said),
    }


def _tokenize(lines: Sequence[str]) -> list[str]:
    """Lower-case words of each line, a space between; without punctuation. As the library does for a line alone."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = str(Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR))
    options = ("-preserveLines", "-lowerCase", "-encoding", "utf-8")
    with Java("PTB tokenizer", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", *options) as java:
        guarded = (each for line in lines for each in (_OPEN_TAG.sub("< ", line), _GUARD))
        parted = java.ask(guarded, 2 * len(lines), is_last=True)
    # A tokenizer that lost or made a line would give captions to the wrong ids.
    if any(line.strip() != _GUARD for line in parted[1::2]):
        raise JavaError("PTB tokenizer: its lines do not match the captions; report the captions as a bug")
    return [
        " ".join(word for word in line.split(" ") if word and word not in ptbtokenizer.PUNCTUATIONS)
        for line in parted[::2]
    ]


def _meteor(right: Mapping[str, list[str]], said: Mapping[str, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor import meteor

    # The library takes METEOR's separator out of the candidates alone; one in a reference makes two of it.
    asked = (
        " ||| ".join(["SCORE", *(text.replace("|||", "") for text in (*right[key], *said[key]))]) + " " for key in said
    )
    jar = str(Path(meteor.__file__).with_name(meteor.METEOR_JAR))
    with Java("METEOR", "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm") as java:
        stats = java.ask(asked, len(said))
        answers = java.ask([" ||| ".join(["EVAL", *stats])], len(said) + 1, is_last=True)
    try:
        *each, whole = map(float, answers)
    except ValueError as error:
        raise JavaError(f"METEOR: no score: {str(error)[:200]}") from error
    return whole, each


def _spice(right: Mapping[str, list[str]], said: Mapping[str, list[str]]) -> dict[str, float]:
    """By id. Raises UsageError where its jars are absent: the library would fetch them."""
    from pycocoevalcap.spice import spice
    from pycocoevalcap.spice.get_stanford_models import JAR, SPICELIB

    program = Path(spice.__file__).with_name(spice.SPICE_JAR)
    wanted = [program.with_name(SPICELIB) / f"{JAR}{part}.jar" for part in ("", "-models")]
    if lacking := [str(path) for path in wanted if not path.is_file()]:
        raise UsageError(
            f"no {' and no '.join(lacking)}; python -m pycocoevalcap.spice.get_stanford_models fetches them"
        )
    rows = [{"image_id": key, "test": said[key][0], "refs": right[key]} for key in said]
    with tempfile.TemporaryDirectory(prefix="pairmill-spice-") as place:
        asked, answered = Path(place, "asked.json"), Path(place, "answered.json")
        asked.write_text(json.dumps(rows))
        command = ["java", "-Xmx8G", "-jar", str(program), str(asked), "-out", str(answered), "-silent"]
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, cwd=place, timeout=SPICE_S, check=True
            )
            return {row["image_id"]: float(row["scores"]["All"]["f"]) for row in json.loads(answered.read_bytes())}
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
            raise JavaError(f"its Java failed: {str(error)[:200]}; it needs 8 GB of memory") from error
