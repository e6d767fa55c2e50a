"""CapFilt's scorers: captions/s and pairs/s of ours against transformers' BLIP, same weights, same machine, in turns.

    python -m benchmarks.capfilt [--size base] [--image-size 224] [--images 48] [--batch 16] [--rounds 1]

transformers writes a BLIP of random weights into two folders; its models and our scorers are both loaded from there.
Photos are decoded before, by the same operations for both; texts are tokenised within, a batch at a time, padded to the
longest; batches are of as many images; all is float32 on a CPU and bfloat16 on a GPU. A turn is one batch, every way
takes one, then the next batch comes. Ratios are of the sums; each turn's is shown too, since a neighbour disturbs them.

    nucleus     top_p .9, repetition penalty 1.1, 5 to 20 tokens that begin with "a picture of": BLIP's settings
    beam        three beams, the same lengths
    itm         two captions an image, the web's and the written one. The peer's forward pass takes pairs, so it encodes
                an image for each of them; a second loop of the peer encodes it once and calls the text encoder twice

Random weights hardly ever end a caption. So the end token's weights are fitted to the position, and its bias is set for
either way of writing such that captions have about ten tokens behind the prompt, as people's have; both sides have the
same weights, and lengths are told. Behind "no ends", none ends before the twentieth token: what is left of the ratio
when no row is done early. Nucleus sampling draws by other numbers on either side; beams must write the same tokens and
itm the same log odds, and this is asked before anything is timed.

At last the scorers run as users run them, from JPEGs in shards to their tables. The model waits while it has no batch
to work on: wall time outside of the scorer's `answer`, over all; there a shard is read and its table written too. A
GPU is at one batch while threads decode the next. On a CPU both take turns on the same cores, so that decoding is all
waited for, and it is shown what it costs; there is nothing to be gained by doing it at the same time.

The tiny size is that of training/recipes/blip_tiny.yaml with a plain stem, since transformers has no convolutions.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.clip_score import write_shard
from filters.base import Batch
from filters.capfilt import Captions, Itm
from filters.score_steps import CaptionTable, ScoreTable
from infra.dataset import Dataset
from infra.jobs import Job
from infra.rows import Rows
from infra.sample import Caption, Pair
from infra.torchvision_here import make_importable
from training.convert.blip import to_published, transformers_config
from training.flops import peak_flops
from training.models import MODELS
from training.models.blip import Blip
from training.models.blip_captions import JUDGE
from training.models.blip_parts import DECODER
from training.models.blip_settings import TINY_WORDS
from training.models.blip_spec import ops
from training.preprocess import Ops
from training.tokenize import learn_words

make_importable()
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval  # noqa: E402
from transformers.utils import logging  # noqa: E402

# Shapes: B images of a batch, R pairs, L tokens

SHARD = "00000"
NUM_WORDS = 30_522  # of bert-base-uncased
# Factors of random weights: how much likelier one word is than others, how much an image decides, how sure itm is.
SHARPER, SEEING, CLEARER = 5.0, 4.0, 3.0
RISE = 2.0  # of the end's logit, a token
MOST = 48  # photos by which ends are fitted
GOAL = 10.0  # tokens behind the prompt, the end among them
NEVER = -1e4
TOLERANCE = 1e-4  # log odds: float32, twelve layers of either tower
SIZES: Mapping[str, Mapping[str, Any]] = {
    "base": {"vision": "base", "text": "base"},
    "tiny": {
        "vision": {"width": 96, "layers": 2, "heads": 3, "patch": 8},
        "text": {"width": 96, "layers": 2, "heads": 3, "positions": 64, "dropout": 0.0},
    },
}
PUBLISHED = {"blip.caption": BlipForConditionalGeneration, "blip.retrieval": BlipForImageTextRetrieval}
OURS = {"nucleus": ["method=sample", "repetition_penalty=1.1"], "beam": ["method=beam", "repetition_penalty=1.0"]}
THEIRS: Mapping[str, Mapping[str, Any]] = {
    "nucleus": {"do_sample": True, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.1},
    "beam": {"num_beams": 3, "do_sample": False},
}


def words_of(size: str, captions: Sequence[str]) -> tuple[str, ...]:
    """A vocabulary of the size's length: real words, then as many as BERT has that nobody says."""
    if size == "tiny":
        return tuple(TINY_WORDS.read_text().split())
    known = learn_words([*captions, "a picture of"], 5000)
    return (*known, *(f"w{number}" for number in range(NUM_WORDS - len(known))))


def publish(entry: str, folder: Path, values: Mapping[str, Any], photos: Sequence[Path]) -> None:
    """A BLIP of random weights as transformers saves it, with its words. photos: by which its captions come to end."""
    torch.manual_seed(0)
    spec = MODELS[entry]
    settings = spec.Settings.parse(values, "the benchmark's model")
    module = spec.build(settings)
    assert isinstance(module, Blip)
    with torch.no_grad():
        for layer in module.text.layers:
            layer.cross.out.weight.mul_(SEEING)
        if module.head is not None:
            module.head.norm.weight.mul_(SHARPER)
            end_by_position(module, photos)
        if module.matching is not None:
            module.matching.weight.mul_(CLEARER)
    ids = {word: module.tokenizer.words.id(word) for word in ("[DEC]", "[SEP]", "[PAD]")}
    peer = PUBLISHED[entry](BlipConfig(**transformers_config(settings, len(module.tokenizer), ids)))
    peer.load_state_dict(to_published(module.state_dict(), "transformers"), strict=False)
    peer.tie_weights()
    peer.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(module.tokenizer.words.words[: len(values["vocab"])]) + "\n")


def end_by_position(module: Blip, photos: Sequence[Path]) -> None:
    """Let the end's logit rise from token to token: its row of the table is fitted to rows of random words."""
    assert module.head is not None
    prepare, chance, num = Ops.parse(ops(module.settings)[1]), np.random.default_rng(0), 20
    images = torch.stack([prepare(path.read_bytes(), chance) for path in photos])
    seen = module.text.look(module.eval().vision(images))
    words = torch.randint(len(module.tokenizer), (len(photos) * 4, num))
    states = module.text(words, DECODER, context=seen)
    hidden = module.head.norm(torch.nn.functional.gelu(module.head.dense(states))).flatten(0, 1).double()
    place = (torch.arange(num) - num / 2).repeat(len(words)).double()
    matrix = hidden.T @ hidden + 0.01 * len(hidden) * torch.eye(hidden.shape[1])
    module.text.tokens.weight[module.tokenizer.end] = RISE * torch.linalg.solve(matrix, hidden.T @ place)


class Rivals:
    """Our two scorers and transformers' two models, loaded from the same folders."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options, self.device, self.dtype = options, options.device, getattr(torch, options.dtype)
        given = {name: getattr(options, name) for name in ("device", "dtype", "batch", "threads")}
        self.captions = {
            way: Captions(Captions.Settings.parse(
                {"checkpoint": f"{folder}/caption", **given, **dict(one.split("=") for one in told)}, way
            )) for way, told in OURS.items()
        }  # fmt: skip
        self.itm = Itm(Itm.Settings.parse({"checkpoint": f"{folder}/filter", **given}, "itm"))
        for scorer in (*self.captions.values(), self.itm):
            scorer.setup()
        self.captions["beam"].model = self.captions["nucleus"].model  # one in memory
        self.model = self.captions["nucleus"].model
        self.words = self.model._tokenizer
        self.judge_words = self.itm.model._tokenizer
        self.writer = self._peer(BlipForConditionalGeneration, folder / "caption")
        self.matcher = self._peer(BlipForImageTextRetrieval, folder / "filter")
        self._bias = self.model._head.bias

    def _peer(self, kind: Any, folder: Path) -> Any:
        return kind.from_pretrained(folder).eval().requires_grad_(False).to(self.device, self.dtype)

    def end_at(self, bias: float) -> None:
        """How likely the end token is, for both sides."""
        head = self.writer.text_decoder.cls.predictions
        for each in (self._bias, head.bias, head.decoder.bias):
            each[self.words.end] = bias

    def write(self, way: str, batch: Batch, images: Tensor) -> list[int]:
        """Ours; tokens of each caption behind the prompt."""
        found = self.captions[way].answer(batch, images, {at: at for at in range(len(images))})
        return found["num_tokens"].to_pylist()

    @torch.inference_mode()
    def peer_ids(self, way: str, images: Tensor) -> Tensor:
        """transformers' tokens, (B, L)."""
        prompt = self.words.prompts(len(images))
        ids = torch.cat([prompt, torch.full((len(images), 1), self.words.end)], 1).to(self.device)  # the last is cut
        pixels = images.to(self.device, self.dtype)
        told = {"attention_mask": torch.ones_like(ids), "max_length": 20, "min_length": 5, **THEIRS[way]}
        return self.writer.generate(pixels, ids, **told)

    def peer_write(self, way: str, images: Tensor) -> list[int]:
        """transformers' way to the same: texts, and the tokens of each."""
        rows = self.peer_ids(way, images).tolist()
        for row in rows:
            self.words.text(row)
        begun = 1 + self.words.num_prompt
        return [row.index(self.words.end, begun) + 1 - begun if self.words.end in row else 20 - begun for row in rows]

    def judge(self, batch: Batch, images: Tensor) -> list[float]:
        """Ours: a probability for each caption."""
        return self.itm.answer(batch, images, {at: at for at in range(len(images))})["itm"].to_pylist()

    @torch.inference_mode()
    def peer_judge(self, batch: Batch, images: Tensor) -> list[float]:
        """A forward pass over pairs, as transformers has it; as many pairs at once as a batch has images."""
        which = [at for at, pair in enumerate(batch.pairs) for _ in pair.captions]
        size, found = len(images), []
        for start in range(0, len(which), size):
            ids, mask = self._tokens(batch.texts[start : start + size])
            pixels = images[which[start : start + size]].to(self.device, self.dtype)
            logits = self.matcher(ids, pixels, attention_mask=mask).itm_score
            found.append(logits.float().softmax(-1)[:, 1].cpu())
        return torch.cat(found).tolist()

    @torch.inference_mode()
    def peer_judge_once(self, batch: Batch, images: Tensor) -> list[float]:
        """The same by its parts: an image is encoded once, and the text encoder is called for either caption."""
        patches = self.matcher.vision_model(images.to(self.device, self.dtype)).last_hidden_state
        found = []
        for n in range(len(batch.pairs[0].captions)):
            ids, mask = self._tokens([pair.captions[n].text for pair in batch.pairs])
            states = self.matcher.text_encoder(
                input_ids=ids, attention_mask=mask, encoder_hidden_states=patches,
                encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=ids.device),
            )[0]  # fmt: skip
            found.append(self.matcher.itm_head(states[:, 0]).float().softmax(-1)[:, 1].cpu())
        return torch.stack(found, 1).flatten().tolist()

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = self.judge_words.begun(self.judge_words.trimmed(self.judge_words(texts)), JUDGE)
        return ids.to(self.device), self.judge_words.is_text(ids).long().to(self.device)


def calibrated(rivals: Rivals, way: str, batch: Batch, images: Tensor) -> float:
    """The bias of the end token at which captions are as long as those that people read. By halving, on one batch."""
    vision = rivals.model._module.vision
    with torch.inference_mode():
        patches = vision(images.to(rivals.device, rivals.dtype))
    vision.forward = lambda images: patches  # made once; what is sought hangs on the words
    low, high = -30.0, 30.0
    for _ in range(9):
        bias = (low + high) / 2
        rivals.end_at(bias)
        low, high = (bias, high) if statistics.fmean(rivals.write(way, batch, images)) > GOAL else (low, bias)
    del vision.forward
    return bias


def check(rivals: Rivals, batch: Batch, images: Tensor) -> str:
    """Both sides give the same numbers, or the benchmark ends."""
    found = rivals.captions["beam"].answer(batch, images, {at: at for at in range(len(images))})["text"].to_pylist()
    wanted = []
    for row in rivals.peer_ids("beam", images).tolist():
        end = row.index(rivals.words.end) if rivals.words.end in row else len(row)
        wanted.append(rivals.words.text(row[:end]))
    same = sum(one == other for one, other in zip(found, wanted, strict=True))
    ours, theirs, once = (
        torch.tensor(each, dtype=torch.float64).logit()
        for each in (way(batch, images) for way in (rivals.judge, rivals.peer_judge, rivals.peer_judge_once))
    )
    apart = max(float((ours - theirs).abs().max()), float((ours - once).abs().max()))
    told = (
        f"beams: {same} of {len(found)} captions the same, {len({*found})} of them different ones; itm: log odds "
        f"{apart:.1e} apart at most, of {float(ours.min()):.3f} to {float(ours.max()):.3f}"
    )
    if rivals.dtype == torch.float32 and (same < len(found) or apart > TOLERANCE):
        sys.exit(f"the two sides do not agree: {told}")
    return told


class Turns:
    """Seconds that each way took, turn by turn."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def take(self, name: str, way: Callable[[], Any]) -> Any:
        """Run it, and note what it took."""
        began = time.perf_counter(), time.process_time()
        found = way()
        self.wall.setdefault(name, []).append(time.perf_counter() - began[0])
        self.cpu.setdefault(name, []).append(time.process_time() - began[1])
        return found

    def tell(self, num: int, unit: str, ours: str, *peers: str) -> None:
        """Rates and ratios. num: units of a turn, on the average."""
        for name in (ours, *peers):
            wall, cpu = sum(self.wall[name]), sum(self.cpu[name])
            total = num * len(self.wall[name])
            print(f"    {name:<28}{total / wall:>8.2f} {unit}/s{total / cpu:>8.2f} {unit}/CPU-s")
        for peer in peers:
            walls = [other / own for other, own in zip(self.wall[peer], self.wall[ours], strict=True)]
            cpu = sum(self.cpu[peer]) / sum(self.cpu[ours])
            turns = ", ".join(f"{one:.2f}" for one in walls)
            ratio = sum(self.wall[peer]) / sum(self.wall[ours])
            print(f"    ours against {peer}: {ratio:.2f}x in wall time ({turns}), {cpu:.2f}x in CPU time")


def spread(lengths: Sequence[int]) -> str:
    """How long captions are."""
    low, middle, high = np.percentile(lengths, [10, 50, 90])
    return f"{statistics.fmean(lengths):.1f} ({low:.0f}, {middle:.0f}, {high:.0f})"


def compare(rivals: Rivals, batches: Sequence[tuple[Batch, Tensor]], biases: Mapping[str, float], rounds: int) -> None:
    """Captions and pairs, ours and theirs, in turns."""
    size = len(batches[0][1])
    for way in OURS:
        for ends, chosen in (("", list(batches) * rounds), (", no ends", list(batches[:1]))):
            rivals.end_at(NEVER if ends else biases[way])
            turns, lengths = Turns(), {"ours": [], "transformers": []}
            for number, (batch, images) in enumerate(chosen):
                torch.manual_seed(number)
                named = Batch([dataclasses.replace(pair, uid=bytes([number]) + pair.uid) for pair in batch.pairs])
                ways = {
                    "ours": partial(rivals.write, way, named, images),
                    "transformers": partial(rivals.peer_write, way, images),
                }
                for name in sorted(ways, reverse=bool(number % 2)):
                    lengths[name] += turns.take(name, ways[name])
            print(f"{way}{ends}: {len(chosen)} turns of {size} images; tokens behind the prompt, mean (10, 50, 90 %): "
                  f"ours {spread(lengths['ours'])}, transformers {spread(lengths['transformers'])}")  # fmt: skip
            turns.tell(size, "captions", "ours", "transformers")
    turns = Turns()
    chosen = list(batches) * rounds
    for number, (batch, images) in enumerate(chosen):
        judges = {
            "ours": rivals.judge,
            "transformers, pairs": rivals.peer_judge,
            "transformers, image once": rivals.peer_judge_once,
        }
        for name in sorted(judges, reverse=bool(number % 2)):
            turns.take(name, partial(judges[name], batch, images))
    print(f"itm: {len(chosen)} turns of {size} images with two captions each")
    turns.tell(2 * size, "pairs", "ours", "transformers, pairs", "transformers, image once")


def waits(step: ScoreTable, scorer: Any, num: int, unit: str) -> None:
    """A pass over the shard as users make it: its rate, and the share in which the model has no batch."""
    busy, answer = [0.0], scorer.answer

    def timed(*given: Any) -> pa.Table:
        began = time.perf_counter()
        found = answer(*given)
        busy[0] += time.perf_counter() - began
        return found

    scorer.answer = timed
    began = time.perf_counter()
    step.run(Job(SHARD))
    wall = time.perf_counter() - began
    scorer.answer = answer
    print(f"    {step.table}: {num / wall:.2f} {unit}/s; the model waits {1 - busy[0] / wall:.1%} of the time "
          f"({(wall - busy[0]) / num * 1e3:.1f} ms of {wall / num * 1e3:.0f} for one)")  # fmt: skip


def arithmetic(rivals: Rivals, batch: Batch, images: Tensor) -> None:
    """On a GPU: images/s, and the share of its peak."""
    from torch.utils.flop_counter import FlopCounterMode

    peak = peak_flops(torch.device(rivals.device), rivals.dtype)
    asked = {f"caption, {way}": partial(rivals.write, way, batch, images) for way in OURS}
    for name, way in {**asked, "itm": partial(rivals.judge, batch, images)}.items():
        with FlopCounterMode(display=False) as counter:
            way()
        began = time.perf_counter()
        for _ in range(5):
            way()
        took = (time.perf_counter() - began) / 5
        rate = counter.get_total_flops() / took
        share = f"{rate / peak:.1%} of the peak" if peak else "peak unknown"
        print(f"    {name}: {len(images) / took:.1f} images/s, {rate / 1e12:.2f} TFLOP/s, {share}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--captions", type=Path, default=Path("../shared/data/captions/coco.tsv"))
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--image-size", type=int, help="pixels a side; unset: 224, tiny: 64")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1, help="over all images")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="on a CPU torch's; that decode for a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="unset: float32 on a CPU, bfloat16 on a GPU")
    options = parser.parse_args()
    logging.disable_progress_bar()
    photos = sorted(options.photos.glob("*.jpg"))
    if not photos:
        sys.exit(f"{options.photos}: no *.jpg there; name a folder of photos with --photos")
    options.image_size = options.image_size or (64 if options.size == "tiny" else 224)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.batch = min(options.batch, options.images)
    options.images -= options.images % options.batch
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), photos[:: max(1, len(photos) // options.images)][: options.images], options)


def run(folder: Path, photos: list[Path], options: argparse.Namespace) -> None:
    """Everything, in a folder that goes afterwards."""
    human = [line.split("\t")[2] for line in options.captions.read_text().splitlines()[1:]]
    values = {**SIZES[options.size], "image_size": options.image_size, "vocab": words_of(options.size, human)}
    publish("blip.caption", folder / "caption", {**values, "prompt": "a picture of "}, photos[:MOST])
    publish("blip.retrieval", folder / "filter", {**values, "queue": 0}, [])
    (folder / "data").mkdir()
    write_shard(folder / "data", photos, options.images)
    table = pq.read_table(folder / f"data/{SHARD}.parquet")
    told = pa.array([human[5 * n % len(human)] for n in range(table.num_rows)])
    pq.write_table(table.set_column(table.schema.get_field_index("caption"), "caption", told),
                   folder / f"data/{SHARD}.parquet")  # fmt: skip
    rows = Rows(Dataset(folder / "data"))
    rivals = Rivals(folder, options)
    where = f"{options.dtype} on {options.device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    print(f"BLIP {options.size} at {options.image_size} px, {options.images} images by {options.batch}, {where}")

    biases: dict[str, float] = {}
    pairs = list(rows.pairs(SHARD, images=True))
    first = loaded(pairs[:: len(pairs) // options.batch], rivals.model.ops)
    for way in OURS:
        biases[way] = calibrated(rivals, way, *first)
    print("from JPEGs in a shard to tables, model and decoding "
          + ("in turns:" if options.device == "cpu" else f"at once, {options.threads} threads decode:"))  # fmt: skip
    for way in OURS:
        rivals.end_at(biases[way])
        waits(CaptionTable(rows, f"blip_{way}", rivals.captions[way]), rivals.captions[way], len(pairs), "images")
    waits(ScoreTable(rows, "itm", rivals.itm, captions=("blip_beam",)), rivals.itm, 2 * len(pairs), "pairs")

    # A caption that has no words is not written; here every image has two.
    both = [
        pair if len(pair.captions) == 2 else dataclasses.replace(pair, captions=(*pair.captions, Caption("a picture")))
        for pair in rows.pairs(SHARD, images=True, captions=("blip_nucleus",))
    ]
    batches = [loaded(both[at : at + options.batch], rivals.model.ops) for at in range(0, len(both), options.batch)]
    rivals.end_at(biases["beam"])
    print(check(rivals, *batches[0]), flush=True)
    compare(rivals, batches, biases, options.rounds)
    if options.device != "cpu":
        arithmetic(rivals, *batches[0])


def loaded(pairs: Sequence[Pair], ops: str) -> tuple[Batch, Tensor]:
    """A batch with its images decoded, (B, 3, size, size)."""
    prepare, chance = Ops.parse(ops), np.random.default_rng(0)
    return Batch(list(pairs)), torch.stack([prepare(pair.image or b"", chance) for pair in pairs])


if __name__ == "__main__":
    main()
