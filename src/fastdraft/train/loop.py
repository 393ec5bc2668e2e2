"""The loop that every phase runs: batches in, a trained model and a metrics file out, safe to stop at any moment.

A phase is a function of its model's weights, its mixture and its recipe part; one that was killed goes on from its last
checkpoint and takes the same steps (bit for bit on one CPU thread), with however many processes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastdraft.config import TrainPart
from fastdraft.data.document import Portion
from fastdraft.data.order import IGNORED, Batch
from fastdraft.data.prefetch import Stream
from fastdraft.maths.schedule import SCHEDULES
from fastdraft.system import energy, processes
from fastdraft.system.errors import Stopped
from fastdraft.system.progress import Bar
from fastdraft.system.signals import sigterm_recorded
from fastdraft.train import checkpoint, early_stopping, malloc, nonfinite, parallel
from fastdraft.train import optimizers as optimizers_module
from fastdraft.train.checkpoint import Progress
from fastdraft.train.learner import Learner
from fastdraft.train.metrics import Metrics
from fastdraft.train.objectives import Objective, cross_entropy
from fastdraft.train.utilization import Meter

HeldOut = dict[str, list[Batch]]


@dataclass
class Phase:
    """All that one phase of training is made of; `parallel` is how several processes share it, `ddp` or `fsdp`;
    `dtype` is what it computes in, bf16 by autocast.

    `measure` is asked beside the held-out loss, by all processes at once; its `block_efficiency` is what a draft is
    chosen by. `trackers` opens them behind a step.
    """

    name: str
    model: PreTrainedModel
    part: TrainPart
    mixture: Stream
    held_out: HeldOut
    objective: Objective
    folder: Path
    device: torch.device
    dtype: torch.dtype
    parallel: str = "ddp"
    measure: Callable[[PreTrainedModel], dict[str, float]] | None = None
    trackers: Callable[[int], Sequence[Any]] = lambda _: ()
    planned_steps: int = field(init=False)
    total_steps: int = field(init=False)

    def __post_init__(self) -> None:
        steps = self.part.train_tokens / (self.part.batch_size * self.mixture.labels_per_row)
        self.planned_steps = math.ceil(steps - 1e-6)  # the mean is rounded: a millionth of a step is none
        self.total_steps = self.planned_steps


@dataclass
class Training:
    """A phase under way: what learns, what moves it, what its steps take, and how many in a row were skipped."""

    phase: Phase
    learner: nn.Module
    optimizers: optimizers_module.OptimizerSet
    meter: Meter
    skipped_in_a_row: int = 0


def train(phase: Phase) -> Progress:
    """Run a phase to its end, from its last checkpoint if there is one; its model is then the trained one.

    NonFiniteLoss where the loss stops being a number: the checkpoint before it stays. Stopped after SIGTERM: one of the
    last step taken is there.
    """
    training = begin(phase)
    progress = checkpoint.restore(phase.folder, phase.model, training.optimizers) or Progress(
        0, 0, tuple(phase.mixture.position), 0.0, joules={}
    )
    phase.mixture.position = list(progress.position)
    bar = Bar(phase.name, phase.part.train_tokens, "tokens", progress.tokens)
    path, trackers = phase.folder / "metrics.jsonl", phase.trackers(progress.step)
    with bar, Metrics(path, progress.step, trackers) as metrics:
        progress = _run(training, progress, bar, metrics)
    phase.model = parallel.gathered(phase.model)
    if (kept := early_stopping.kept_step(progress)) != progress.step:
        checkpoint.bring_back(phase.folder, kept, phase.model)
    for told in _told(phase, progress):
        warnings.warn(told, stacklevel=2)
    return progress


def _told(phase: Phase, progress: Progress) -> Iterator[str]:
    """What a reader of the run must know of a phase that has ended."""
    if progress.skipped:
        yield f"{phase.name} skipped {progress.skipped} of {progress.step} steps: metrics.jsonl"
    if progress.end_step is not None and progress.step < phase.planned_steps:
        yield f"{phase.name} ended at step {progress.step} of {phase.planned_steps}: block efficiency rose no more"
    if progress.best_step not in (0, progress.step):
        yield f"{phase.name} keeps the draft of step {progress.best_step} of {progress.step}, the best measured"


def begin(phase: Phase) -> Training:
    """The phase's model on its device, or its shards on every process's, with what moves it."""
    if phase.device.type == "cpu":
        malloc.keep_freed_memory()
    learner = parallel.spread(Learner(phase.model, phase.part, phase.dtype), phase.parallel, phase.device)
    meter = Meter(phase.model.config, phase.part, phase.device, phase.dtype)
    return Training(phase, learner.train(), optimizers_module.build(phase.model, phase.part, phase.dtype), meter)


def _run(training: Training, progress: Progress, bar: Bar, metrics: Metrics) -> Progress:
    """The steps that are left."""
    phase, part = training.phase, training.phase.part
    begun, saved = time.monotonic() - progress.seconds, time.monotonic()
    phase.total_steps = early_stopping.steps_in_all(progress, phase.planned_steps)
    before, meter = progress.joules, energy.Meter(energy.counters(phase.device))
    with meter, sigterm_recorded() as asked_to_stop:
        while progress.step < phase.total_steps:
            row = _metered_step(training, progress.step)
            progress = _after(progress, row, phase.mixture, time.monotonic() - begun)
            last = progress.step == phase.total_steps
            if _crosses(part.held_out_every_tokens, progress.tokens, row["tokens"]) or last:
                row |= held_out_loss(training) | block_efficiency(training)
                progress = _after_validation(training, progress, row)
                last = progress.step == phase.total_steps
            metrics.write({"step": progress.step} | row | {"tokens": progress.tokens, "seconds": progress.seconds})
            bar.advance(row["tokens"], row.get("skipped") or f"loss {row['loss_nats']:.3f}")
            due = time.monotonic() - saved > part.checkpoint_seconds and processes.is_main()
            stop, due = processes.any_of(asked_to_stop(), due)
            if due or stop or last or progress.best_step == progress.step:
                metrics.sync()
                progress = replace(progress, joules=energy.added(before, energy.over_processes(meter.joules())))
                checkpoint.save(phase.folder, phase.model, training.optimizers, progress)
                saved = time.monotonic()
            if stop:
                raise Stopped
    return progress


def _metered_step(training: Training, step: int) -> dict[str, Any]:
    """A step's row, with what it took of the machine."""
    began = time.monotonic()
    row = _step(training, step)
    return row | training.meter.row(time.monotonic() - began)


def _after_validation(training: Training, progress: Progress, row: dict[str, Any]) -> Progress:
    """Progress that knows what was measured; the phase's end moves where that has stopped rising."""
    phase = training.phase
    if "block_efficiency" in row:
        progress = early_stopping.after_validation(progress, row["block_efficiency"], phase.part)
        phase.total_steps = early_stopping.steps_in_all(progress, phase.planned_steps)
    return progress


def _after(progress: Progress, row: dict[str, Any], mixture: Stream, seconds: float) -> Progress:
    return replace(
        progress,
        step=progress.step + 1,
        tokens=progress.tokens + row["tokens"],
        position=tuple(mixture.position),
        seconds=seconds,
        skipped=progress.skipped + ("skipped" in row),
    )


def held_out_loss(training: Training) -> dict[str, float]:
    """Nats per token on the held-out part of each source that has one."""
    phase, learner = training.phase, training.learner.eval()
    found = {}
    for name, batches in phase.held_out.items():
        if not batches:
            continue
        with torch.no_grad():
            sums = [learner(batch, cross_entropy) for batch in _on(phase.device, batches)]
        nats, tokens = processes.summed(float(sum(sums)), sum(_tokens(batch) for batch in batches))
        found[f"held_out_{name}_nats"] = nats / max(tokens, 1)
    learner.train()
    return found


def block_efficiency(training: Training) -> dict[str, float]:
    """What the phase's `measure` says of the draft, in every process; nothing where there is none."""
    phase = training.phase
    if phase.measure is None:
        return {}
    training.learner.eval()
    with torch.random.fork_rng(devices=[]):  # a model made to hold gathered weights begins with random ones
        model = parallel.gathered(phase.model)
    found = phase.measure(model.to(phase.device).eval())  # type: ignore[arg-type]
    training.learner.train()
    return processes.on_rank0(lambda: found)


def _step(training: Training, step: int) -> dict[str, Any]:
    """One optimizer step: sums over micro-batches and processes, one division by the step's tokens."""
    phase, part, started = training.phase, training.phase.part, time.monotonic()
    batch = phase.mixture.next_batch(part.batch_size, Portion(processes.rank(), processes.count()))
    tokens = int(processes.summed(_tokens(batch))[0])
    loss = parallel.over_processes(_backward(training, batch, tokens)).item()
    norm = parallel.clipped(phase.model.parameters(), part.gradient_clip).item()
    factor = SCHEDULES[part.schedule](step, phase.total_steps, part.warmup_steps, part.decay_fraction)
    row = {"learning_rate": part.learning_rate * factor}
    rows, weight = phase.model.config.get_text_config().vocab_size, sum(part.objectives.values())
    if wrong := nonfinite.fault(loss, norm, rows, weight):
        _skip(training, wrong, batch, step)
        return {"tokens": 0, "loss_nats": None, "gradient_norm": None, "skipped": wrong} | row
    _apply(training.optimizers, part, factor)
    training.skipped_in_a_row = 0
    speed = tokens / (time.monotonic() - started)
    return {"tokens": tokens, "loss_nats": loss, "gradient_norm": norm} | row | {"tokens_per_second": speed}


def _backward(training: Training, batch: Batch, tokens: int) -> Tensor:
    """() this process's part of the step's loss; its gradients, summed over all processes, lie at the weights."""
    phase, (sequences, length) = training.phase, batch.inputs_BT.shape
    size = min(phase.part.micro_batch_size or sequences, sequences)
    micros = batch.split(size)
    total = torch.zeros((), device=phase.device)
    with nonfinite.out_of_memory_explained(phase.name, size, length):
        for number, micro in enumerate(_on(phase.device, micros), start=1):
            with parallel.summing(training.learner, last=number == len(micros)):
                loss = training.learner(micro, phase.objective) / max(tokens, 1)
                loss.backward()
            total += loss.detach()
    return total


def _skip(training: Training, wrong: str, batch: Batch, step: int) -> None:
    """Leave a step out; NonFiniteLoss unless the recipe says so, or where too many are left out in a row."""
    phase, training.skipped_in_a_row = training.phase, training.skipped_in_a_row + 1
    if phase.part.on_nonfinite == "stop" or training.skipped_in_a_row > nonfinite.SKIPPED_IN_A_ROW_AT_MOST:
        raise nonfinite.not_taken(phase.name, step + 1, wrong, batch.places, phase.folder)
    for optimizer in training.optimizers.values():
        optimizer.zero_grad()


def _apply(optimizers: optimizers_module.OptimizerSet, part: TrainPart, factor: float) -> None:
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = optimizers_module.peaks(part)[name] * factor
        optimizer.step()
        optimizer.zero_grad()


def _tokens(batch: Batch) -> int:
    return int((batch.labels_BT != IGNORED).sum())


def _on(device: torch.device, batches: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield batch.each(lambda tensor: tensor.to(device, non_blocking=True))


def _crosses(every: int, tokens: int, fresh: int) -> bool:
    return tokens // every > (tokens - fresh) // every
