"""python -m training train | evaluate | export | bench-data: curated shards to a trained model, and what it can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from infra.cli import CONTEXT, open_executor, options_of, print_json, run_main, run_options, say_plan
from infra.errors import UsageError
from infra.options import config_options, given
from training.encode_settings import EncodeSettings
from training.evaluate.settings import EvaluationSettings
from training.sample_settings import SampleSettings

SETTINGS = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
CAPTION_METRICS = "caption-metrics"  # the task that needs no model, and so is none of TASKS
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Train on selections of shards, evaluate, export.

    \b
    train        a recipe to a model: CLIP now; any number of ranks, any ZeRO stage, exact resume
    evaluate     what a checkpoint can do: zero-shot classification, retrieval; how good captions are
    export       a checkpoint in the form of open_clip or transformers
    encode       pictures to image tokens, once
    sample       texts to pictures
    tokenizer    a vocabulary from the captions of datasets
    bench-data   the loader alone: is it fast enough for the model?

    Several ranks, by whatever starts processes:

    \b
    torchrun --nproc-per-node 8 -m training train RECIPE
    deepspeed --no_local_rank --module training train RECIPE
    srun python -m training train RECIPE                       (infra/cluster/slurm has the batch files)

    Exit codes: 0 done, 1 failed, 2 wrong usage, 75 asked to leave by SIGTERM or SIGUSR1: saved, start it again.
    """


@main.command()
@click.argument("recipe", metavar="RECIPE")
@SETTINGS
@click.option("--resume", default="auto", show_default=True, metavar="auto|PATH",
              help="Go on from the newest checkpoint of the run, if there is one; or from this one.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Leave after this many steps, as if asked to by a queue.")
@click.option("--dry-run", is_flag=True, help="Say parameters, memory, steps, arithmetic; one step of the tiny twin.")
@click.option("--ray", "ray_address", is_flag=False, flag_value="auto", metavar="[ADDRESS]",
              help="Train on Ray: at this address, or where this process belongs to, or on a Ray here.")  # fmt: skip
@click.option("--ranks", default=1, show_default=True, type=click.IntRange(min=1), help="Ranks, with --ray.")
@click.option("--cpus-per-rank", default=1, show_default=True, type=click.IntRange(min=1), help="CPUs, with --ray.")
@click.option("--gpus-per-rank", default=0, show_default=True, type=click.IntRange(0, 1), help="GPUs, with --ray.")
@JSON
def train(
    recipe: str, settings: Sequence[str], resume: str, limit: int | None, dry_run: bool, as_json: bool,
    ray_address: str | None, ranks: int, cpus_per_rank: int, gpus_per_rank: int,
) -> int:  # fmt: skip
    """Train a model. The same command goes on where a run was stopped, with any number of ranks.

    \b
    python -m training train training/recipes/clip_tiny.yaml --set data.datasets.0.path=out/demo --set out=out/clip
    python -m training train training/recipes/clip_vitb32.yaml --dry-run
    """
    from training.recipe import TrainRecipe

    read = TrainRecipe.load(recipe, settings)
    if dry_run:
        from training.plan import plan_text

        say_plan(plan_text(read), as_json)
        return 0
    if ray_address:
        from infra.ray_train import Ranks
        from training.on_ray import train_on_ray

        wanted = Ranks(ranks, cpus_per_rank, gpus_per_rank)
        done = train_on_ray(read, wanted, None if ray_address == "auto" else ray_address, resume, limit)
        is_teller = True
    else:
        from training.rendezvous import joined
        from training.train import train as run

        with joined(os.environ) as here:
            done, is_teller = run(read, here, resume, limit), here.rank == 0
    if as_json and is_teller:
        print_json(
            {"out": read.out, "steps": done.step, "total": done.total, "exit": done.code, "metrics": dict(done.metrics)}
        )
    return done.code


@main.command()
@click.argument("checkpoint", metavar="[CKPT]", required=False)
@click.option("--task", help=f"zero_shot, retrieval, caption, generation or {CAPTION_METRICS}.")
@config_options(EvaluationSettings, skip=["task"])
@click.option("--references", metavar="FILE", help="With --task caption-metrics: JSON, {id: [caption, …]} or COCO's "
              "annotations; what people wrote.")  # fmt: skip
@click.option("--candidates", metavar="FILE", help="With --task caption-metrics: JSON, {id: caption} or COCO's "
              "results; the captions to score.")  # fmt: skip
@click.option("--pretrained", metavar="TAG|PATH", help="CKPT (of generation: --rerank) is a name of open_clip's list, "
              "and these are its weights.")  # fmt: skip
@click.option("--device", default=None, help="cpu, cuda, cuda:1.  [default: cuda where there is one]")
@click.option("--out", metavar="DIR", help="Write results.json and sheet.html there.")
@JSON
def evaluate(
    checkpoint: str | None, pretrained: str | None, device: str | None, out: str | None, as_json: bool, **values: Any
) -> None:
    """What a model can do on a dataset: with its 95 % interval, and a sheet of pictures.

    CKPT is a checkpoint, a run's folder (its newest checkpoint), or with --pretrained a name of open_clip's list.
    Task caption-metrics needs no CKPT and no --data, but captions in two files, and Java: BLEU, METEOR, ROUGE-L, CIDEr,
    and SPICE where its jars are, as pycocoevalcap counts them.

    \b
    python -m training evaluate out/clip --task retrieval --data out/demo --out out/clip/retrieval
    python -m training evaluate out/clip --task zero_shot --data out/flowers --classes names.txt --templates openai
    python -m training evaluate out/dalle --task generation --data out/demo --rerank out/clip --num-candidates 1,4,16
    python -m training evaluate --task caption-metrics --references annotations.json --candidates results.json
    """
    if values["task"] == CAPTION_METRICS:
        others = {"CKPT": checkpoint, "--pretrained": pretrained, "--device": device, "--out": out}
        _score_captions(values, [name for name, value in others.items() if value is not None], as_json)
        return
    if checkpoint is None:
        raise UsageError(f"CKPT is missing: what is evaluated? Only --task {CAPTION_METRICS} does without")
    if values["references"] or values["candidates"]:
        raise UsageError(f"--references and --candidates are for --task {CAPTION_METRICS}; leave them out")
    import torch

    from training.evaluate import DRAWS, WRITES
    from training.evaluate.generation import studio_of
    from training.evaluate.run import evaluate as run
    from training.evaluate.run import told
    from training.models.load import load_captioner, load_encoder
    from training.models.painter import load_painter

    settings = EvaluationSettings.parse(given(EvaluationSettings, values), "evaluate")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if settings.task in DRAWS:
        model: Any = studio_of(load_painter(checkpoint, place, vae=settings.vae), settings, place, pretrained)
    elif settings.task in WRITES:
        if pretrained is not None:
            raise UsageError(f"--pretrained is for encoders of open_clip's list; {settings.task} takes CKPT alone")
        model = load_captioner(checkpoint, place)
    else:
        model = load_encoder(checkpoint, pretrained, place)
    facts = run(model, settings, out)
    if as_json:
        print_json(facts)
        return
    for line in told(facts):
        click.echo(line)


def _score_captions(values: Mapping[str, Any], others: Sequence[str], as_json: bool) -> None:
    """Task caption-metrics. others: what else was typed, and means nothing here."""
    from training.evaluate.caption_metrics import score_files

    typed = given(EvaluationSettings, values).keys() - {"task"}
    if stray := [*others, *sorted(f"--{name.replace('_', '-')}" for name in typed)]:
        raise UsageError(f"{CAPTION_METRICS} takes --references and --candidates alone; leave out {', '.join(stray)}")
    if not (values["references"] and values["candidates"]):
        raise UsageError(f"{CAPTION_METRICS} needs --references FILE and --candidates FILE")
    scores = score_files(values["references"], values["candidates"])
    if as_json:
        print_json({"task": CAPTION_METRICS, **scores.facts()})
        return
    for line in scores.told():
        click.echo(line)


@main.command()
@click.argument("runs", metavar="RUN…", nargs=-1, required=True)
@click.option("--out", metavar="FILE", help="The page.  [default: report.html in the first run's folder]")
@click.option("--section", "is_section", is_flag=True, help="Print tables and main curves, for another page of ours.")
def report(runs: Sequence[str], out: str | None, is_section: bool) -> None:
    """Curves of a run, or of several over one axis of samples seen, as one page that needs nothing else.

    \b
    python -m training report out/clip_all out/clip_selected --out out/compared.html
    """
    from training.report import section, write_page

    if is_section:
        click.echo(section(runs))
        return
    click.echo(f"{write_page(list(runs), out)}: written")


@main.command()
@click.argument("checkpoint", metavar="VAE_CKPT")
@click.option("--data", "dataset", required=True, metavar="DATASET", help="Folder of shards.")
@click.option("--name", required=True, metavar="NAME", help="Name of the table: tokens/NAME/ beside the shards.")
@config_options(EncodeSettings)
@run_options
def encode(checkpoint: str, dataset: str, name: str, **values: Any) -> None:
    """Image tokens of every stored image, made once, so that training opens none: tokens/NAME/ beside the shards.

    \b
    python -m training encode out/dalle_vae --data out/demo --name vae
    python -m training train training/recipes/dalle_tiny.yaml --set data.datasets.0.tokens=vae
    """
    from infra.dataset import Dataset
    from infra.progress import Progress
    from training.encode import EncodeStep
    from training.encode import encode as run

    settings = EncodeSettings.parse(given(EncodeSettings, values), "encode")
    step = EncodeStep(Dataset(dataset), checkpoint, name, settings)
    if values["dry_run"]:
        say_plan([f"{step.name}: {len(step.plan()):,} shards"], values["as_json"])
        return
    with open_executor(values) as executor:
        result = run(step, executor, options_of(values), Progress())
    if values["as_json"]:
        print_json({"name": name, "rows_in": result.counts.rows_in, "rows_out": result.counts.rows_out,
                    "unknown": dict(result.counts.extra), "quarantined": sorted(result.quarantined)})  # fmt: skip
        return
    missing = "".join(f"; {reason} {num:,}" for reason, num in result.counts.extra.items())
    click.echo(f"tokens/{name}: {result.counts.rows_out:,} rows{missing}")


@main.command()
@click.argument("checkpoint", metavar="CKPT")
@click.option("--prompt", "prompts", multiple=True, required=True, metavar="TEXT", help="What to draw; may come again.")
@click.option("--vae", metavar="VAE_CKPT", help="The dVAE of its tokens.  [default: the one that it was trained with]")
@click.option("--rerank", metavar="CLIP", help="Order candidates by how well this model finds that they fit: a run "
              "or checkpoint of ours, or a name of open_clip's list.")  # fmt: skip
@click.option("--pretrained", metavar="TAG|PATH", help="CLIP is a name of open_clip's list, and these are its weights.")
@click.option("--image", metavar="FILE", help="Go on from the top rows of this picture.")
@click.option("--keep-rows", type=int, metavar="R", help="Rows of tokens of --image that stay.")
@click.option("--device", default=None, help="cpu, cuda, cuda:1.  [default: cuda where there is one]")
@click.option("--dtype", help="What tokens are drawn in: float32, bfloat16, float16.  [default: bfloat16 on a GPU]")
@click.option("--out", required=True, metavar="DIR", help="Write sheet.png, the pictures and results.json there.")
@config_options(SampleSettings)
@click.option("--dry-run", is_flag=True, help="Say what would be drawn; draw and write nothing.")
@JSON
def sample(
    checkpoint: str, prompts: Sequence[str], vae: str | None, rerank: str | None, pretrained: str | None,
    image: str | None, keep_rows: int | None, device: str | None, dtype: str | None, out: str, dry_run: bool,
    as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Pictures of a text: many candidates, the ones first that a CLIP finds to fit best.

    Candidate 17 of a prompt and seed is the same, up to rounding, however many are drawn.

    \b
    python -m training sample out/dalle --prompt "a red boat" --num-candidates 64 --rerank out/clip --out out/boat
    python -m training sample out/dalle --prompt "a red boat" --image half.png --keep-rows 4 --out out/completed
    """
    import torch

    from infra.storage import Storage
    from training.models.load import load_encoder
    from training.models.painter import load_painter
    from training.sample import first_rows, plan_text, write
    from training.sample import sample as run

    settings = SampleSettings.parse(given(SampleSettings, values), "sample")
    if (image is None) != (keep_rows is None):
        raise UsageError("--image and --keep-rows go together: which picture, and how much of it stays")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    painter = load_painter(checkpoint, place, dtype or ("bfloat16" if place.startswith("cuda") else "float32"), vae)
    encoder = load_encoder(rerank, pretrained, place) if rerank is not None else None
    rows = None
    if image is not None and keep_rows is not None:
        storage, name = Storage.of_file(image)
        if not storage.exists(name):
            raise UsageError(f"--image {image}: no such file")
        rows = first_rows(painter.maker, storage.read(name), keep_rows)
    total = len(prompts) * settings.num_candidates
    if dry_run:
        say_plan(plan_text(painter, prompts, settings, rerank, out), as_json)
        return
    with click.progressbar(length=total, label="drawing", file=sys.stderr) as bar:
        results = write(out, run(painter, prompts, settings, encoder, rows, bar.update), settings.top)
    if as_json:
        print_json(results)
        return
    for told in results["prompts"]:
        best = told["candidates"][0]
        score = "" if best["score"] is None else f", fits {best['score']:.3f}"
        click.echo(f"{told['prompt']}: candidate {best['candidate']}{score}")
    click.echo(f"{out}/sheet.png: written")


@main.command("bench-data")
@click.argument("recipe", metavar="RECIPE")
@SETTINGS
@click.option("--batches", default=50, show_default=True, type=click.IntRange(min=1), help="Steps to read.")
@JSON
def bench_data(recipe: str, settings: Sequence[str], batches: int, as_json: bool) -> None:
    """The recipe's loader without a model: samples a second, and CPU-milliseconds a sample.

    \b
    python -m training bench-data training/recipes/clip_tiny.yaml --set data.workers=2
    """
    from training.data.bench import bench
    from training.recipe import TrainRecipe

    told = bench(TrainRecipe.load(recipe, settings), batches)
    if as_json:
        print_json(told)
        return
    click.echo(
        f"{told['samples']:,} samples in {told['wall_s']:.1f} s: {told['samples_per_s']:,.0f} samples/s, "
        f"{told['cpu_ms']:.2f} CPU-ms a sample, {told['masked']:,} masked"
    )


@main.command()
@click.argument("datasets", metavar="DATASET…", nargs=-1, required=True)
@click.option("--vocab-size", type=click.IntRange(min=16), help="Most tokens.  [default: 30522 of words, 16384 of "
              "byte pairs]")  # fmt: skip
@click.option("--out", required=True, metavar="FILE", help="The vocabulary: FILE.txt of words, a token a line, in "
              "BERT's form; FILE.bpe of byte pairs, a merge a line.")  # fmt: skip
@click.option("--selection", metavar="NAME", help="Only what this selection keeps of each dataset.")
@click.option("--limit", type=click.IntRange(min=1), help="The first so many captions alone.")
@click.option("--dry-run", is_flag=True, help="Count the captions; write nothing.")
def tokenizer(
    datasets: Sequence[str], vocab_size: int | None, out: str, selection: str | None, limit: int | None, dry_run: bool
) -> None:
    """A vocabulary learnt from captions, lower-cased: WordPiece, as BERT and BLIP have it, or byte pairs, DALL-E's.

    \b
    python -m training tokenizer out/demo --vocab-size 2000 --out out/words.txt
    python -m training train training/recipes/blip_tiny.yaml --set model.vocab=out/words.txt
    python -m training tokenizer out/demo --vocab-size 2000 --out out/words.bpe
    python -m training train training/recipes/dalle_tiny.yaml --set model.vocab=out/words.bpe
    """
    from itertools import islice

    from infra.storage import Storage
    from training import byte_pairs, tokenize
    from training.data.source import captions_of

    kinds = {tokenize.ENDING: (tokenize.learn_words, 30_522), byte_pairs.ENDING: (byte_pairs.learn_merges, 16_384)}
    kind = next((kinds[ending] for ending in kinds if out.endswith(ending)), None)
    if kind is None:
        raise UsageError(
            f"--out {out}: give a {tokenize.ENDING} file for words, a {byte_pairs.ENDING} one for byte pairs"
        )
    learn, usual = kind
    captions = islice(captions_of(datasets, selection), limit)
    if dry_run:
        click.echo(f"{sum(1 for _ in captions):,} captions; {out} is not written")
        return
    lines = learn(captions, vocab_size or usual)
    storage, name = Storage.of_file(out)
    storage.commit_bytes(name, "".join(f"{line}\n" for line in lines).encode())
    click.echo(f"{out}: {len(lines):,} {'tokens' if learn is tokenize.learn_words else 'merges'}")


@main.command()
@click.argument("checkpoint", metavar="CKPT")
@click.option("--to", "form", required=True, 
              type=click.Choice(["open_clip", "transformers", "original", "safetensors"]))  # fmt: skip
@click.option("--out", required=True, metavar="PATH", help="Folder to write; for safetensors a file.")
def export(checkpoint: str, form: Any, out: str) -> None:
    """A checkpoint's weights in the form that others load.

    \b
    python -m training export out/clip/checkpoints/step-0000000200 --to open_clip --out out/clip_open
    """
    from training.checkpoint import checkpoint_of
    from training.export import export as write

    write(checkpoint_of(checkpoint) or checkpoint, form, out)
    click.echo(f"{out}: written")


if __name__ == "__main__":
    sys.exit(run_main(main, "python -m training"))
