"""Caption metrics: published figures come out, no text spoils them, no Java hangs us, every error says its mend."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from infra.cli import run_main
from infra.errors import UsageError
from tests.servers.commands import CHECKOUT, SHARED
from training.__main__ import main
from training.evaluate import caption_metrics
from training.evaluate import java as java_module
from training.evaluate.caption_metrics import MAX_WORDS, read_captions, score, score_files, shorten
from training.evaluate.java import JavaError

REFERENCE = SHARED / "evalref"
NAMES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
HOSTILE = [
    "", " ", "...", "?!", "|||", "||||", "a ||| cat |||", "SCORE ||| a ||| a\nEXIT",
    "a\ncat\r\n\tsat\x0b\x0c\x00\x85", "a\u2028cat\u2029sat", "\ud83d half \udc00", "😀 👨‍👩‍👧 cat",
    '<a href="x', "<!-- <? </", "y'>\">", "\u202ecat\ufffe\u200d", "é e\u0301", "漢字" * 5_000, "a-" * 5_000,
    "cat " * 2_500_000, "x" * 10_000_000, "|" * 10_000_000, "\n" * 10_000_000,
]  # fmt: skip

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on this machine: make java")
needs_figures = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/data/evalref is not on this machine")


@pytest.fixture
def without_meteor(monkeypatch):
    """METEOR needs six seconds to start; here it says 0. Returns what it was asked."""
    asked = []

    def meteor(right, said):
        asked.append((list(right.items()), list(said.items())))
        return 0.0, [0.0] * len(said)

    monkeypatch.setattr(caption_metrics, "_meteor", meteor)
    return asked


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Returns a function that puts a shell script in Java's place."""

    def put(script):
        path = tmp_path / "bin" / "java"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def near(figures):
    return pytest.approx({name: figures[name] for name in NAMES}, abs=5e-5)  # they are printed to four decimals


def published(name):
    return json.loads((REFERENCE / name).read_text())


@needs_java
@needs_figures
@pytest.mark.slow
def test_the_command_prints_the_published_figures_and_nothing_else(capfd):
    words = [
        "--references",
        REFERENCE / "clipscore-refs.json",
        "--candidates",
        REFERENCE / "clipscore-good_captions.json",
    ]
    code = run_main(main, "test", ["evaluate", "--task", "caption-metrics", *map(str, words), "--json"])
    line = capfd.readouterr().out
    facts = json.loads(line)
    assert (code, line.count("\n")) == (0, 1)
    want = published("clipscore-published-scores.json")["good"]
    assert {name: facts[name] for name in NAMES} == near(want)
    assert facts["counts"] == {"candidates": 2, "references": 6, "cut": 0, "empty": 0}
    if "SPICE" in facts:
        assert facts["SPICE"] == pytest.approx(want["SPICE"], abs=5e-5)
    else:
        assert "get_stanford_models" in facts["absent"]["SPICE"]


@needs_java
@needs_figures
@pytest.mark.slow
def test_bad_captions_have_their_published_figures():
    found = score_files(str(REFERENCE / "clipscore-refs.json"), str(REFERENCE / "clipscore-bad_captions.json"))
    assert {name: found.corpus[name] for name in NAMES} == near(published("clipscore-published-scores.json")["bad"])


@needs_java
@needs_figures
@pytest.mark.slow
def test_captions_of_coco_have_the_figures_of_the_reference_implementation():
    found = score_files(str(REFERENCE / "coco63-references.json"), str(REFERENCE / "coco63-candidates.json"))
    assert {name: found.corpus[name] for name in NAMES} == near(published("coco63-reference-scores.json")["scores"])
    assert {len(each) for each in found.by_id.values()} == {63}
    for name in ("CIDEr", "ROUGE_L"):
        assert sum(found.by_id[name].values()) / 63 == pytest.approx(found.corpus[name], rel=1e-12)  # float64 sums


@needs_java
@pytest.mark.slow
def test_hostile_texts_are_scored_cut_and_counted():
    candidates = {f"{at}": text for at, text in enumerate(HOSTILE)} | {"same": "a cat sat on the mat."}
    references = {key: ["a cat sat on the mat."] for key in candidates}
    references |= {f"{at}": ["a cat", HOSTILE[-at]] for at in range(len(HOSTILE))}
    began = time.monotonic()
    found = score(references, candidates)
    assert time.monotonic() - began < 60  # 10 s on an idle machine
    assert all(math.isfinite(value) for each in found.by_id.values() for value in each.values())
    assert all(0 <= value <= 1 + 1e-9 for name in NAMES[:-1] for value in found.by_id[name].values())  # float64
    assert found.by_id["METEOR"]["same"] == max(found.by_id["METEOR"].values()) == pytest.approx(1)
    assert found.counts["cut"] == 2 * 4
    assert found.counts["empty"] == 4  # "?!" is a word to the tokenizer
    assert found.by_id["METEOR"]["0"] == 0
    json.dumps(found.facts()).encode()


@needs_java
def test_a_captions_words_do_not_hang_on_the_captions_beside_it():
    bits = [
        '<a href="x', "y'>", "<b", ">", "</", "<!--", "-->", "<?", "<unk>", "U.S.", "P.", "M.", "Calif.", "cat", "A",
        ".", ". .", "'", "``", '"', "(", "5", "1 1/2", "&amp;", "|||", "😀", "é", "\u200d", "\xa0", "漢字", "don't",
    ]  # fmt: skip
    rng = random.Random(0)
    lines = ["".join(rng.choice(bits) + rng.choice(["", " "]) for _ in range(rng.randrange(8))) for _ in range(5_000)]
    order = rng.sample(range(len(lines)), len(lines))
    tokens = caption_metrics._tokenize(lines)
    assert caption_metrics._tokenize([lines[at] for at in order]) == [tokens[at] for at in order]


@needs_java
def test_the_order_of_ids_changes_nothing(without_meteor):
    candidates = {f"{at}": f"a {word} sat on a mat" for at, word in enumerate(["cat", "dog", "cow", "man", "bird"])}
    references = {key: [f"the {text}", f"{text} outside"] for key, text in candidates.items()}
    turned = {key: candidates[key] for key in reversed(candidates)}
    assert score(references, candidates) == score(references, turned)
    assert without_meteor[0] == without_meteor[1]


@needs_java
def test_a_candidate_equal_to_a_reference_beats_any_other(without_meteor):
    references = {"one": ["A cat sat on the mat.", "a grey cat at home"], "two": ["Two dogs run.", "dogs on a beach"]}
    best = score(references, {"one": "a cat sat on the mat", "two": "two dogs run"})
    for other in ("a cat sat on a mat", "the dog sat on a cat", "cat", "a grey dog on the mat at home", ""):
        worse = score(references, {"one": other, "two": "two dogs run"})
        for name in (*NAMES[:4], "ROUGE_L", "CIDEr"):
            assert worse.by_id[name]["one"] < best.by_id[name]["one"], (name, other)


def test_a_text_is_cut_after_the_last_word_that_counts():
    assert shorten("word " * MAX_WORDS) == ("word " * MAX_WORDS, False)
    assert shorten("word " * MAX_WORDS + "more") == ("word " * (MAX_WORDS - 1) + "word", True)
    assert shorten("a\n\tb\ud800") == ("a b ", False)


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({}, {}, "at least one"),
        ({"1": ["a"]}, {"1": "a", "2": "b"}, r"1 id \('2'\) of the candidates without references"),
        ({f"{at}": ["a"] for at in range(9)}, {"0": "a"}, r"8 ids \('1', '2', '3', …\) of the references without"),
        ({"1": []}, {"1": "a"}, "empty list of references"),
    ],
)
def test_ids_that_do_not_match_are_told_by_name(references, candidates, message):
    with pytest.raises(UsageError, match=message):
        score(references, candidates)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        ({"1": "a", "2": ["b", "c"]}, {"1": ["a"], "2": ["b", "c"]}),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b", "id": 7}], {"1": ["a", "b"]}),
        ({"images": [], "annotations": [{"image_id": "x", "caption": "a"}]}, {"x": ["a"]}),
        ({"annotations": ["a caption of an odd id"]}, {"annotations": ["a caption of an odd id"]}),
    ],
)
def test_both_forms_of_file_are_read(data, want, tmp_path):
    (tmp_path / "file.json").write_text(json.dumps(data))
    assert read_captions(str(tmp_path / "file.json")) == want


@pytest.mark.parametrize(
    "text",
    ["", "{", "\xff", "[" * 100_000, "7", "null", '["a"]', '{"1": 2}', '{"1": [["a"]]}', '{"1": null}',
     '[{"image_id": true, "caption": "a"}]', '[{"image_id": 1}]', '[{"image_id": [1], "caption": "a"}]', "1" * 9_999],
)  # fmt: skip
def test_another_file_is_refused_by_name(text, tmp_path):
    (tmp_path / "file.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"file\.json"):
        read_captions(str(tmp_path / "file.json"))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_captions(str(path))


def test_two_candidates_of_an_id_are_refused(tmp_path):
    (tmp_path / "file.json").write_text('{"1": ["a", "b"]}')
    with pytest.raises(UsageError, match="a candidate is one"):
        score_files(str(tmp_path / "file.json"), str(tmp_path / "file.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "retrieval", "--data", "x"], "CKPT is missing"),
        ([], "CKPT is missing"),
        (["out", "--task", "retrieval", "--data", "x", "--references", "r"], "leave them out"),
        (["--task", "caption-metrics"], "needs --references FILE and --candidates FILE"),
        (["--task", "caption-metrics", "--references", "r"], "needs --references FILE and --candidates FILE"),
        (["out", "--task", "caption-metrics", "--batch", "3", "--out", "o"], "leave out CKPT, --out, --batch"),
    ],
)
def test_options_of_another_task_are_refused(words, message, capsys):
    assert run_main(main, "test", ["evaluate", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_java_the_mend_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="apt-get install default-jre-headless"):
        score({"1": ["a"]}, {"1": "a"})


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 1", "it said nothing"),
        ("printf 'Exception: no memory\\n\\tat a.b(c)\\n' >&2; exit 1", "failed: Exception: no memory; install"),
        ("exec sleep 600", "silent for 0.5 s"),
        ("while read -r line; do echo; done; exec sleep 600", "do not match the captions"),
        ("yes 'Error: odd'", "failed: Error: odd"),
        ("echo; exec sleep 600", "silent for 0.5 s"),
    ],
)
def test_a_dead_or_silent_java_is_an_error_soon(script, message, java, monkeypatch):
    java(script)
    monkeypatch.setattr(java_module, "ANSWER_S", 0.5)
    began = time.monotonic()
    with pytest.raises(JavaError, match=message) as caught:
        score({"1": ["a cat"] * 9_999}, {"1": "a cat"})  # more than a pipe holds
    assert time.monotonic() - began < 30
    assert "\tat" not in str(caught.value)
    assert not [child for child in psutil.Process().children() if child.name() in ("sleep", "java", "yes", "sh")]


def test_an_answer_of_meteor_that_is_no_number_is_an_error(java):
    java("yes odd")
    with pytest.raises(JavaError, match="could not convert"):
        caption_metrics._meteor({"1": ["a"]}, {"1": ["a"]})


def test_java_ends_when_we_are_killed(java, tmp_path):
    java(f"echo $$ > {tmp_path}/pid; cat >/dev/null")  # as the two programs do: it reads until its input ends
    code = "from training.evaluate.caption_metrics import score; score({'1': ['a']}, {'1': 'a'})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT) as process:
        while not (tmp_path / "pid").is_file() or not (text := (tmp_path / "pid").read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while psutil.pid_exists(int(text)) and psutil.Process(int(text)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("is_well", [True, False])
def test_spice_is_asked_where_its_jars_are_and_absent_with_a_reason_where_it_fails(
    is_well, java, tmp_path, monkeypatch
):
    from pycocoevalcap.spice import spice

    # The form of its answer is that which the library reads; the jars are too big to be had here.
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
    (tmp_path / "lib").mkdir()
    for part in ("", "-models"):
        (tmp_path / "lib" / f"stanford-corenlp-3.6.0{part}.jar").touch()
    answer = json.dumps(
        [{"image_id": "1", "scores": {"All": {"f": 0.4}}}, {"image_id": "2", "scores": {"All": {"f": 0}}}]
    )
    java(f"echo noise; echo '{answer}' > \"$6\"" if is_well else "exit 1")
    monkeypatch.setattr(caption_metrics, "_tokenize", list)
    monkeypatch.setattr(caption_metrics, "_meteor", lambda right, said: (0.0, [0.0] * len(said)))
    found = score({"1": ["a"], "2": ["b"]}, {"1": "a", "2": "b"})
    if is_well:
        assert (found.corpus["SPICE"], found.by_id["SPICE"], found.absent) == (0.2, {"1": 0.4, "2": 0.0}, {})
        assert found.told()[-2] == "SPICE: 0.2000"
    else:
        assert "its Java failed" in found.absent["SPICE"]
        assert found.told()[-2].startswith("SPICE: absent; its Java failed")
