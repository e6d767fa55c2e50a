"""DALL-E: a training step, its memory, and sampling, of ours and of DALLE-pytorch; best-of-64, of ours alone.

    pip install --target PEER --no-deps dalle-pytorch==1.6.6 axial-positional-embedding==0.3.12 \\
        rotary-embedding-torch==0.9.1
    python -m benchmarks.dalle --peer PEER [--parts step,memory,sampling,best-of,large] [--rounds 3]

    step        forward, backward and AdamW, 64 text tokens and those of the largest grid
    memory      of one step behind 256 text tokens, in a fresh process each: its peak over what was held before
    sampling    --batch candidates of one prompt of 64 tokens
    best-of     64 candidates of a prompt drawn together, and 64 drawn one at a time
    large       on a GPU: the 1.3b stack at 1,280 tokens, its share of the peak, seconds of best-of-512

Sides take turns; medians are told. Weights are random, of as many words and codes on both sides; float32 on a CPU, on a
GPU bfloat16: training by autocast, sampling with such weights. No dVAE works: tokens are made up, and the peer, which
insists on a DiscreteVAE, gets one of the least size that decodes to zeros. It is imported with stand-ins for omegaconf,
taming and pkg_resources, by which it only reads pretrained dVAEs and its version.

There are two peers. "its mix" is the product: the four kinds of attention that its README names in turn, and gated
feed-forward layers. "nearest" has the paper's order of rows, columns and one convolution, and plain feed-forward layers
in place of its own, by which it is as large as ours. Neither has rotary embedding and token shift, as the paper has
none. What still differs to ours' favour: the peer computes the words' logits for image tokens, too, and the codes' for
the text, and scales what each layer adds. To the peer's: its row and column attention stays in one row or column, where
ours reaches back a row; its convolution looks at 5 x 5 tokens, ours at 11 x 11; queries, keys and values have no bias;
its stream is one position shorter. "ours, dense" has the causal mask in all layers, with which torch keeps no scores.

To sample, the peer has optimize_for_inference, by which its cache serves rows and columns, and use_cache. As shipped
neither helps: at cond_scale 1 the cache is not handed on to the forward pass. Mended, it is; and each layer of a kind
that keeps whole streams in the cache has its own key there, where they all have the same one and so mix up their
streams. Logits of the mended and of the shipped are compared. That kind, the convolution, still works on the whole
stream for each token: "all cached" is the nearest peer with full attention in its place, the quickest that it can be.
Both sides draw from the likelier half. Of grids up to --whole the mended peer's generate_images draws whole pictures.
Of larger ones, and as it is shipped, its step is timed at --places, evenly spread, and taken for all tokens ("~"); the
text's pass and the draws are left out of that, to the peer's favour.

On a CPU memory is the resident peak that Linux tells. Gradients and moments are made in that step: they count, and are
told beside it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import psutil
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from training.byte_pairs import NUM_BYTES
from training.flops import forward_flops, made_up, peak_flops, shadow, step_flops
from training.models.dalle import Dalle
from training.models.dalle_sampler import DalleSampler
from training.models.dalle_settings import SIZES, DalleSettings
from training.models.dalle_spec import SPEC
from training.ranks import Ranks
from training.sample_settings import SampleSettings
from training.spec import Batch, Context

# Shapes: B rows of a batch

OURS, DENSE = "ours", "ours, dense"
NEAREST, MIX, CACHED = "peer, nearest", "peer, its mix", "peer, all cached"
KINDS = {"row": "axial_row", "column": "axial_col", "convolution": "conv_like"}
README_MIX = ("full", "axial_row", "axial_col", "conv_like")
PROMPT = "a small red house by the sea"
TEXT, LONG_TEXT = 64, 256
HEAD = 64  # width of one
WARM = 2  # steps that do not count
BEST_OF, LARGE_BEST_OF = 64, 512
LARGE_BATCH, LARGE_STEPS = 8, 5
STAND_INS = ("omegaconf", "pkg_resources", "taming", "taming.models", "taming.models.vqgan")


def sized(stack: Mapping[str, int], words: int, text: int, grid: int) -> DalleSettings:
    """Merges are made up, two bytes each: nothing is read but the prompt."""
    signs = sorted(ByteLevel.alphabet())
    vocab = [f"{left} {right}" for left, right in product(signs, signs)][: words - NUM_BYTES]
    return DalleSettings.parse({"stack": stack, "vocab": vocab, "text_length": text, "grid": grid}, "the benchmark")


def small(options: argparse.Namespace, text: int, grid: int) -> DalleSettings:
    """Of the size that both sides are compared in."""
    stack = {"width": options.width, "layers": options.depth, "heads": options.width // HEAD}
    return sized(stack, options.words, text, grid)


def ours(settings: DalleSettings, *, is_dense: bool = False) -> Dalle:
    torch.manual_seed(0)
    module = Dalle(settings)
    if is_dense:
        for layer in module.stack.layers:
            layer.mask = replace(layer.mask, kind="causal")  # type: ignore[type-var]
    return module


def peer(side: str, settings: DalleSettings, *, for_sampling: bool = False) -> Any:
    """Its DALLE, with the options that are nearest to the paper."""
    library, parts = import_module("dalle_pytorch"), import_module("dalle_pytorch.transformer")
    torch.manual_seed(0)
    no_vae = type("NoVae", (library.DiscreteVAE,), {"decode": lambda self, codes: torch.zeros(len(codes), 3, 1, 1)})
    vae = no_vae(image_size=2 * settings.grid, num_layers=1, num_tokens=settings.codes, codebook_dim=1, hidden_dim=1)
    kinds = README_MIX if side == MIX else tuple(KINDS[mask.kind] for mask in settings.masks())
    if side == CACHED:
        kinds = tuple("full" if kind == "conv_like" else kind for kind in kinds)
    width = settings.stack.width
    model = library.DALLE(
        dim=width, depth=settings.stack.layers, heads=settings.stack.heads, dim_head=width // settings.stack.heads,
        num_text_tokens=NUM_BYTES + len(settings.vocab), text_seq_len=settings.text_length, vae=vae, attn_types=kinds,
        shift_tokens=False, rotary_emb=False, optimize_for_inference=for_sampling,
    )  # fmt: skip
    if side != MIX:
        for part in [*model.modules()]:
            if isinstance(part, parts.FeedForward):
                part.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    return model


def mended(model: Any) -> Any:
    """A copy whose sampler uses its cache."""
    parts, model = import_module("dalle_pytorch.transformer"), copy.deepcopy(model)
    model.forward_with_cond_scale = lambda text, image, cond_scale, cache: model(text, image, cache=cache)
    for number, part in enumerate([*model.modules()]):
        if isinstance(part, parts.PreNorm) and isinstance(part.fn, parts.NonCached):
            part.fn = parts.CachedAs(f"layer {number}", part.fn)
    return model


def made_step(side: str, settings: DalleSettings, options: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """A step of training, and how many weights it changes."""
    batch = made_up(SPEC, settings, options.batch).to(torch.device(options.device))
    if side in (OURS, DENSE):
        module: Any = ours(settings, is_dense=side == DENSE).to(options.device)
        loss_of: Callable[[], Tensor] = partial(our_loss, module, batch)
    else:
        module = peer(side, settings).to(options.device)
        loss_of = partial(module, batch["text"], batch["codes"], return_loss=True)
    weights = [each for each in module.parameters() if each.requires_grad]
    return stepper(loss_of, weights, options.device), sum(each.numel() for each in weights)


def our_loss(module: Dalle, batch: Batch) -> Tensor:
    found, share = module(batch, Context(0, Ranks())), module.settings.text_share
    return cast(Tensor, share * found["text"] + (1 - share) * found["image"])


def stepper(loss_of: Callable[[], Tensor], weights: list[nn.Parameter], device: str) -> Callable[[], None]:
    adam = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of()
        loss.backward()
        adam.step()
        adam.zero_grad()

    return step


def timed(way: Callable[[], object]) -> float:
    """Seconds."""
    settle: Callable[[], object] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    settle()
    began = time.perf_counter()
    way()
    settle()
    return time.perf_counter() - began


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int, num_warm: int = 0) -> dict[str, float]:
    """The median of what each way says, by its name. num_warm: rounds before, which do not count."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-num_warm, rounds):
        for name, way in ways.items():
            seconds = way()
            if number >= 0:
                took[name].append(seconds)
    return {name: statistics.median(each) for name, each in took.items()}


def tell(title: str, medians: Mapping[str, float], num_tokens: int) -> None:
    """A line a way: seconds, tokens/s, and how many times as long as the first."""
    print(title)
    first = next(iter(medians.values()))
    for name, seconds in medians.items():
        print(f"    {name:<28}{seconds:>11.3f} s{num_tokens / seconds:>12,.0f} tokens/s{seconds / first:>9.2f}x")


def step_part(options: argparse.Namespace) -> None:
    settings = small(options, TEXT, max(options.grids))
    made = {side: made_step(side, settings, options) for side in (OURS, MIX, NEAREST)}
    ways = {f"{side}, {num / 1e6:.1f}M weights": partial(timed, step) for side, (step, num) in made.items()}
    length = settings.text_length + settings.num_codes
    tell(f"step: {options.batch} x {length:,} tokens", in_turns(ways, options.rounds, WARM), options.batch * length)


def memory_part(options: argparse.Namespace) -> None:
    num = LONG_TEXT + max(options.grids) ** 2
    print(f"memory of a step of {options.batch} x {num:,} tokens, and what of it gradients and moments take")
    first = 0
    for side in (OURS, DENSE, MIX, NEAREST):
        command = [sys.executable, "-m", "benchmarks.dalle", *sys.argv[1:], "--child", side]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        peak, of_weights = int(said[0]), int(said[1])
        first = first or peak
        print(f"    {side:<28}{peak / 2**20:>11,.0f} MiB{of_weights / 2**20:>11,.0f} MiB{peak / first:>9.2f}x")


def child(options: argparse.Namespace) -> None:
    """In a fresh process: the bytes of a step's peak, and those of gradients and moments."""
    step, num = made_step(options.child, small(options, LONG_TEXT, max(options.grids)), options)
    print(peak_bytes(step, options.device), 3 * 4 * num)


def peak_bytes(step: Callable[[], None], device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - held
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; getrusage would tell the parent's, if higher
    held = psutil.Process().memory_info().rss
    step()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 - held


def sampling_part(options: argparse.Namespace) -> None:
    for grid in options.grids:
        settings = small(options, TEXT, grid)
        sampler = DalleSampler(ours(settings), options.device, options.dtype)
        ways = {OURS: drawn(sampler, options.batch)}
        ways[OURS]()
        batch = made_up(SPEC, settings, options.batch).to(torch.device(options.device))
        text, codes = batch["text"], batch["codes"]
        is_whole, apart = grid <= options.whole, 0.0
        for side in (CACHED, NEAREST, MIX):
            shipped = peer(side, settings, for_sampling=True).to(options.device, getattr(torch, options.dtype)).eval()
            sides = {f"{side}, mended": mended(shipped), f"{side}, as shipped": shipped}
            one, other = (next_token(model, text, codes[:, :-1])[0] for model in sides.values())
            apart = max(apart, float((one - other).abs().max()))
            for name, model in sides.items():
                if is_whole and model is not shipped:
                    ways[name] = partial(timed, partial(model.generate_images, text, use_cache=True))
                else:
                    ways[f"{name} ~"] = partial(by_places, model, text, codes, options.places)
        medians = in_turns(ways, options.rounds)
        tell(f"sampling: {options.batch} x {grid**2:,} image tokens", medians, options.batch * grid**2)
        print(f"    logits of the mended peer and the shipped: {apart:.1e} apart at most")


def drawn(sampler: DalleSampler, num: int, times: int = 1) -> Callable[[], float]:
    """Seconds of `num` candidates together, and that so many times."""
    asked = {"num_candidates": num, "batch": num, "top_k": sampler.settings.codes // 2}
    settings = SampleSettings.parse(asked, "the benchmark")
    return partial(timed, lambda: [[*sampler.candidates([PROMPT], settings)] for _ in range(times)])


def by_places(model: Any, text: Tensor, codes: Tensor, num_places: int) -> float:
    """Seconds of all image tokens, by those at some places: the peer's own step, its cache filled."""
    num = codes.shape[1]
    ends = [(2 * part + 1) * num // (2 * num_places) for part in range(num_places)]
    return num * statistics.fmean(next_token(model, text, codes[:, :end])[1] for end in ends)


@torch.no_grad()
def next_token(model: Any, text: Tensor, codes: Tensor) -> tuple[Tensor, float]:
    """Logits behind these codes, (B, words and codes), and the seconds that the last of them took."""
    cache: dict[Any, Any] = {}
    found: list[Tensor] = []
    model.forward_with_cond_scale(text, codes[:, :-1], cond_scale=1.0, cache=cache)
    seconds = timed(lambda: found.append(model.forward_with_cond_scale(text, codes, cond_scale=1.0, cache=cache)))
    return found[0][:, -1], seconds


def best_of_part(options: argparse.Namespace) -> None:
    for grid in options.grids:
        sampler = DalleSampler(ours(small(options, TEXT, grid)), options.device, options.dtype)
        drawn(sampler, 1)()
        ways = {"together": drawn(sampler, BEST_OF), "one at a time": drawn(sampler, 1, times=BEST_OF)}
        tell(f"best-of-{BEST_OF}: {grid**2:,} image tokens", in_turns(ways, options.rounds), BEST_OF * grid**2)


def large_part(options: argparse.Namespace) -> None:
    if options.device == "cpu":
        print("large: left out, there is no GPU here")
        return
    settings = sized(SIZES["1.3b"], options.words, LONG_TEXT, 32)
    module = ours(settings)
    batch, device = made_up(SPEC, settings, LARGE_BATCH), torch.device(options.device)
    flops = LARGE_BATCH * step_flops(forward_flops(shadow(module), batch), is_cached=False)
    module.to(device)
    step = stepper(partial(our_loss, module, batch.to(device)), [*module.parameters()], options.device)
    torch.cuda.reset_peak_memory_stats()
    num = LARGE_BATCH * (LONG_TEXT + settings.num_codes)
    medians = in_turns({"ours, 1.3b": partial(timed, step)}, LARGE_STEPS, WARM)
    tell(f"large: a step of {LARGE_BATCH} x {num // LARGE_BATCH:,} tokens", medians, num)
    rate, peak = flops / medians["ours, 1.3b"], peak_flops(device, torch.bfloat16)
    share = f"{rate / peak:.1%} of the peak" if peak else "peak unknown"
    print(f"    {rate / 1e12:.1f} TFLOP/s, {share}, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
    del step  # and the moments with it
    sampler = DalleSampler(module.requires_grad_(False), options.device, options.dtype)
    way = {f"best-of-{LARGE_BEST_OF}, together": drawn(sampler, LARGE_BEST_OF)}
    num = settings.num_codes
    tell(f"large: {num:,} image tokens", in_turns(way, options.rounds), LARGE_BEST_OF * num)


PARTS = {
    "step": step_part, "memory": memory_part, "sampling": sampling_part, "best-of": best_of_part, "large": large_part,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="a folder with dalle-pytorch")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=8, help="layers")
    parser.add_argument(
        "--width", type=int, default=512, help=f"a multiple of {HEAD}; with one head the peer cannot train"
    )
    parser.add_argument("--batch", type=int, default=4, help="pairs of a step, candidates of a prompt")
    parser.add_argument("--grids", type=int, nargs="+", default=[16, 32], help="tokens a side, powers of 2")
    parser.add_argument("--words", type=int, default=10_000, help="at least 256; unset: the peer's default")
    parser.add_argument("--whole", type=int, default=16, help="grids up to this size the mended peer draws whole")
    parser.add_argument(
        "--places", type=int, default=16, help="tokens that are timed where not all are, half of a grid at most"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = "float32" if options.device == "cpu" else "bfloat16"
    sys.path.insert(0, options.peer)
    sys.modules.update({name: MagicMock() for name in STAND_INS})
    if options.child:
        child(options)
        return
    where = f"{options.dtype} on {options.device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    print(f"depth {options.depth}, width {options.width}, {options.words:,} words, {where}", flush=True)
    for name in options.parts.split(","):
        PARTS[name](options)


if __name__ == "__main__":
    main()
