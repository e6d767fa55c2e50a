"""The engine: a module, its optimiser and its gradients, over ranks and ZeRO stages. Only here is DeepSpeed imported.

DeepSpeed runs in fp32 throughout: half precision is torch's autocast inside the module's forward pass, so weights,
gradients and moments have one form at all stages and precisions, and a checkpoint of one serves every other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infra.errors import RecipeError
from infra.log import get_logger
from infra.memory import keep_freed

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # or it warns of finding none
import deepspeed
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine

from training.accumulate import Losses, cached, plain
from training.engine_settings import EngineSettings, deepspeed_config
from training.engine_states import States, whole
from training.optim import LossScale, OptimSettings, freeze, num_numbers, parameter_groups
from training.power_sgd import PowerSGD
from training.ranks import Ranks
from training.spec import Batch, Context, Outputs

# What could be compiled here? To answer, DeepSpeed compiles, and a linker complains of each library that is missing.
# Only async_io is of interest, and `refuse_unfit` asks. Shared-memory collectives would be compiled at first use, for
# half a minute, and a killed compiler leaves a lock that later runs wait for without a word; gloo serves.
deepspeed.ops.__compatible_ops__ = {}

# DeepSpeed calls them by their former names, at every step of stage 3.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)

log = get_logger("engine")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a step came to. terms: weighted, mean over ranks; norm of the gradient before it was clipped."""

    terms: Mapping[str, float]
    grad_norm: float
    lr: float
    is_skipped: bool  # the loss or a gradient was not finite on some rank: nothing has changed on any


class _DeepSpeed(DeepSpeedEngine):
    def _broadcast_model(self) -> None:
        """The engine has done so; DeepSpeed's own fails on parameters of no dimension, such as a scale."""


class Engine:
    """Trains a module over ranks. All ranks call every method together.

    module: on any device, its weights those of rank 0 afterwards. total_steps: where the learning rate ends.
    micro_batch: rows of a rank in one forward pass; num_micro: forward passes a step. frozen: regexes on whole names.
    seed: of PowerSGD's first factors.
    Raises RecipeError for what this machine cannot do.
    """

    def __init__(
        self, module: nn.Module, optim: OptimSettings, settings: EngineSettings, *, total_steps: int, micro_batch: int,
        num_micro: int, ranks: Ranks, frozen: Sequence[str] = (), seed: int = 0,
    ) -> None:  # fmt: skip
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        refuse_unfit(settings, self.device)
        if optim.average is not None and any(isinstance(one, _BatchNorm) for one in module.modules()):
            raise RecipeError("optim.average: BatchNorm's statistics are those of the weights themselves; leave it out")
        if self.device.type == "cpu":
            keep_freed()
        freeze(module, frozen)
        self.module = module.to(self.device)
        self.ranks = ranks
        self.num_parameters = num_numbers(module.parameters())
        self.loss_scale = LossScale() if settings.precision == "fp16" else None
        self._optim, self._total_steps, self._stage = optim, total_steps, settings.zero
        self._micro_batch, self._num_micro = micro_batch, num_micro
        _take_weights_of_first_rank(module, ranks)
        if settings.precision != "fp32":
            # Inside forward: around it, DeepSpeed would switch it off.
            module.forward = torch.autocast(self.device.type, DTYPES[settings.precision])(module.forward)
        self._adam = torch.optim.AdamW(
            parameter_groups(module, optim.weight_decay), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
        )
        # Where DeepSpeed skips no step, an update is held here: no weight and no moment moves, its buffers are cleared.
        self._is_held, update = False, self._adam.step
        self._adam.step = lambda closure=None: None if self._is_held else update(closure)  # type: ignore[method-assign]
        config = deepspeed_config(
            settings, clip_norm=optim.clip_norm, micro_batch=micro_batch, num_micro=num_micro, num_ranks=ranks.num
        )
        deepspeed.init_distributed()
        if self._stage == 3:
            _cut(module, config)
        self._deepspeed = _DeepSpeed(None, module, self._adam, config=config, config_class=DeepSpeedConfig(config))
        self._states = States(module, self._adam, self._deepspeed.optimizer, self._stage, ranks)
        self._states.begin(is_averaged=optim.average is not None)
        self._power_sgd: PowerSGD | None = None
        if settings.powersgd_rank and ranks.num > 1:  # one rank sends nothing
            trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
            self._power_sgd = PowerSGD(trained, settings.powersgd_rank, ranks, seed)
            # DeepSpeed's own all-reduce, which comes with the last backward pass; its pipelines turn it off like this.
            self._deepspeed.enable_backward_allreduce = False
        if settings.compile:
            self._deepspeed.compile()

    def forward(self, batch: Batch, context: Context) -> Outputs:
        """The module's outputs for rows on its device."""
        outputs: Outputs = self._deepspeed(batch, context)
        return outputs

    def step(
        self, batch: Batch, losses: Losses, step: int, *, accumulate: Literal["plain", "cached"] = "plain",
        seed: Callable[[int], None] = lambda micro: None,
    ) -> StepResult:  # fmt: skip
        """One update from the rows of this rank: num_micro * micro_batch of them.

        losses: weighted terms of outputs and their rows, whose mean over ranks is the loss. step: updates asked for so
        far. seed: called before every forward pass with its micro-batch's number; cached makes each pass twice.
        """
        assert len(batch) == self._micro_batch * self._num_micro, (len(batch), self._micro_batch, self._num_micro)
        batch = batch.to(self.device)
        parts = [batch.part(at, at + self._micro_batch) for at in range(0, len(batch), self._micro_batch)]
        context = Context(step, self.ranks)
        self._make_ready()

        def forward(number: int) -> Outputs:
            self._deepspeed.set_gradient_accumulation_boundary(number == len(parts) - 1)
            seed(number)
            return self.forward(parts[number], context)

        def peek(number: int) -> Outputs:
            with torch.no_grad(), self._buffers_kept():
                return forward(number)

        if accumulate == "cached" and len(parts) > 1:
            terms = cached(parts, batch, peek, forward, losses, self._backward)
        else:
            terms = plain(parts, forward, losses, self._backward)
        means = self.ranks.mean(torch.stack([term.float() for term in terms.values()]))
        lr = self._optim.rate(step, self._total_steps)
        norm, is_skipped = self._update(lr, bool(means.isfinite().all()))
        return StepResult(dict(zip(terms, means.tolist(), strict=True)), norm, lr, is_skipped)

    def after_step(self, change: Callable[[nn.Module], None]) -> None:
        """Let the spec change weights or buffers in place, on every rank alike: clamp a scale, let a teacher follow."""
        with torch.no_grad(), whole(self.module.parameters(), self.ranks, is_changed=True):
            change(self.module)
        self._states.take_over_weights()

    def move_average(self, done: int) -> None:
        """The average of weights comes nearer to them, where it is due after `done` steps; each rank has its part."""
        average = self._optim.average
        if average is not None and done % average.every == 0:
            self._states.move_average(average.decay)

    def sizes(self) -> dict[str, int]:
        """Every weight and buffer that a checkpoint holds, in one order on all ranks, and how many numbers it has."""
        return self._states.sizes

    def read(self, name: str) -> dict[str, Tensor]:
        """A tensor whole: weight, and of a trained one AdamW's moments and its average, each of the weight's shape."""
        return self._states.read(name)

    def weights(self) -> dict[str, Tensor]:
        """Every weight, or its average, and buffer whole, by name, in this rank's own memory: what is evaluated."""
        return {name: self._states.outcome(name).cpu() for name in self._states.sizes}

    def write(self, name: str, states: Mapping[str, Tensor]) -> None:
        """As `read` gave it, the same on all ranks; what is frozen takes no moments. `finish` comes after the last."""
        self._states.write(name, states)

    def own(self) -> dict[str, Tensor]:
        """What this rank alone holds, by name, copied to memory: what PowerSGD has not sent yet."""
        return self._power_sgd.read() if self._power_sgd else {}

    def write_own(self, states: Mapping[str, Tensor]) -> None:
        """As `own` gave it, on as many ranks; nothing lets PowerSGD begin anew."""
        is_taken = self._power_sgd.write(states) if self._power_sgd else False
        if states and not is_taken and self.ranks.rank == 0:
            log.warning("what PowerSGD had not sent yet is dropped: engine.powersgd_rank was another at the checkpoint")

    def counters(self) -> dict[str, Any]:
        """What the engine counts, ready for JSON."""
        scale = asdict(self.loss_scale) if self.loss_scale else None
        return {"num_updates": self._states.num_updates, "loss_scale": scale}

    def finish(self, counters: Mapping[str, Any]) -> None:
        """End of writing: the optimiser's own copies of weights follow, and it counts on from there."""
        self._states.take_over_weights()
        self._states.set_num_updates(counters["num_updates"])
        if self.loss_scale and counters["loss_scale"]:
            self.loss_scale = LossScale(**counters["loss_scale"])

    def _backward(self, loss: Tensor) -> None:
        if self.loss_scale and self._stage == 0:  # above, DeepSpeed's optimiser scales and unscales
            loss = loss * self.loss_scale.scale
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    def _update(self, lr: float, is_finite: bool) -> tuple[float, bool]:
        """The optimiser's step, unless something is not finite. Returns the gradient's norm, and was it skipped?"""
        for group in self._adam.param_groups:
            group["lr"] = lr
        norm = self._reduce_and_clip(is_finite) if self._stage == 0 else None
        self._is_held = not is_finite or (norm is not None and not torch.isfinite(norm))
        self._deepspeed.step()
        is_skipped = self._is_held or not self._deepspeed.was_step_applied()
        if self.loss_scale:
            self.loss_scale = self.loss_scale.after(is_skipped)
        return float(self._deepspeed.get_global_grad_norm() if norm is None else norm), is_skipped

    def _reduce_and_clip(self, is_finite: bool) -> Tensor:
        """What DeepSpeed leaves undone at stage 0. Returns the norm before clipping, ()."""
        reduced = self._power_sgd.reduce(is_wanted=is_finite) if self._power_sgd else None
        gradients = [one.grad for one in self._states.flat() if one.grad is not None]
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        norm = torch.nn.utils.get_total_norm(gradients) / scale if reduced is None else reduced
        bound = self._optim.clip_norm or float("inf")
        if self._optim.clip_norm or self.loss_scale:
            torch._foreach_mul_(gradients, (bound / (norm + 1e-6)).clamp(max=1.0) / scale)
        return norm

    def _make_ready(self) -> None:
        if self.loss_scale and self._stage:
            self._deepspeed.optimizer.override_loss_scale(self.loss_scale.scale)
        if self._stage == 3:  # a parameter that a step does not use would keep the last step's gradient
            self._deepspeed.optimizer.grad_partitions_flat_buffer.zero_()

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """A pass that is only looked at moves no running mean."""
        kept = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        yield
        for buffer, value in kept:
            buffer.copy_(value)


def refuse_unfit(settings: EngineSettings, device: torch.device) -> None:
    """Raises RecipeError for what DeepSpeed cannot do on this machine, before anything has started."""
    if settings.precision == "fp16" and device.type == "cpu":
        raise RecipeError("engine.precision=fp16: DeepSpeed has no fp16 on a CPU; take bf16, or fp32")
    if settings.offload_parameters == "nvme":
        if not AsyncIOBuilder().is_compatible():
            raise RecipeError(
                "offload to nvme: DeepSpeed's async_io needs libaio here (apt-get install libaio-dev), or take cpu"
            )
        if not os.path.isdir(settings.nvme_path or ""):
            raise RecipeError(f"engine.nvme_path={settings.nvme_path}: no such folder on this node")


def _cut(module: nn.Module, config: dict[str, Any]) -> None:
    """Stage 3's parts of parameters. DeepSpeed cannot cut those of no dimension, so they have one meanwhile."""
    scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
    for scalar in scalars:
        scalar.data = scalar.data.reshape(1)
    deepspeed.zero.Init(module=module, config_dict_or_path=config, dtype=torch.float32)
    for scalar in scalars:
        scalar.ds_shape = torch.Size([])  # type: ignore[attr-defined]


def _take_weights_of_first_rank(module: nn.Module, ranks: Ranks) -> None:
    if ranks.num == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        plain = tensor.data.view(torch.uint8) if tensor.dtype == torch.bool else tensor.data
        dist.broadcast(plain, 0)
