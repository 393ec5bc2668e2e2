"""The training loop of every phase: it trains a model on batches, writes a metrics file, and can be stopped any time.

The result depends only on the phase's initial weights, its mixture and its part of the recipe. A phase that was killed
resumes from its last checkpoint, with any number of processes, and takes the same steps (bit for bit on one CPU
thread).
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
from fastdraft.data.prefetch import BatchStream
from fastdraft.maths.schedule import SCHEDULES
from fastdraft.system import energy, processes
from fastdraft.system.errors import Stopped
from fastdraft.system.progress import Bar
from fastdraft.system.signals import record_sigterm
from fastdraft.train import checkpoint, early_stopping, malloc, nonfinite, parallel
from fastdraft.train import optimizers as optimizers_module
from fastdraft.train.checkpoint import Progress
from fastdraft.train.learner import Learner
from fastdraft.train.metrics import Metrics
from fastdraft.train.objectives import Objective, cross_entropy
from fastdraft.train.utilization import Meter


@dataclass
class Phase:
    """All inputs of one phase of training.

    held_out: batches of each source for the held-out loss.
    dtype: the precision, fp32, or bf16 by autocast. parallel: `ddp` or `fsdp`, used with several processes.
    measure: validation, called with the full model by all processes at once; its `block_efficiency` chooses the draft.
    trackers: opens the experiment trackers of a phase that has taken this many steps.
    validation_steps: steps between validations, the fewest that take at least `held_out_every_tokens`.
    """

    name: str
    model: PreTrainedModel
    part: TrainPart
    mixture: BatchStream
    held_out: dict[str, list[Batch]]
    objective: Objective
    folder: Path
    device: torch.device
    dtype: torch.dtype
    parallel: str = "ddp"
    measure: Callable[[PreTrainedModel], dict[str, float]] | None = None
    trackers: Callable[[int], Sequence[Any]] = lambda _: ()
    planned_steps: int = field(init=False)
    total_steps: int = field(init=False)
    validation_steps: int = field(init=False)

    def __post_init__(self) -> None:
        step_tokens = self.part.batch_size * self.mixture.labels_per_sequence  # the latter is a rounded mean
        self.planned_steps = math.ceil(self.part.train_tokens / step_tokens - 1e-6)
        self.total_steps = self.planned_steps
        self.validation_steps = max(math.ceil(self.part.held_out_every_tokens / step_tokens - 1e-6), 1)


@dataclass
class Training:
    """The state of a phase that is being trained."""

    phase: Phase
    learner: nn.Module
    optimizers: optimizers_module.OptimizerSet
    meter: Meter
    consecutive_skips: int = 0


def train(phase: Phase) -> Progress:
    """Train a phase to its end, from its last checkpoint if there is one. `phase.model` is then the trained model.

    NonFiniteLoss if the loss is not finite or explodes; earlier checkpoints are kept. Stopped after SIGTERM, when a
    checkpoint of the last step has been written.
    """
    training = begin(phase)
    progress = checkpoint.restore(phase.folder, phase.model, training.optimizers)
    if progress is None:
        progress = Progress(step=0, tokens=0, position=tuple(phase.mixture.position), seconds=0.0, joules={})
    phase.mixture.position = list(progress.position)
    bar = Bar(phase.name, phase.part.train_tokens, "tokens", progress.tokens)
    path, trackers = phase.folder / "metrics.jsonl", phase.trackers(progress.step)
    with bar, Metrics(path, progress.step, trackers) as metrics:
        progress = _run(training, progress, bar, metrics)
    phase.model = parallel.gather_model(phase.model)
    if (kept := early_stopping.kept_step(progress)) != progress.step:
        checkpoint.load_weights(phase.folder, kept, phase.model)
    for message in _warnings(phase, progress):
        warnings.warn(message, stacklevel=2)
    return progress


def begin(phase: Phase) -> Training:
    """Move the model to its device, shard it if the recipe asks for that, and create the optimizers."""
    if phase.device.type == "cpu":
        malloc.keep_freed_memory()
    learner = parallel.parallelize(Learner(phase.model, phase.part, phase.dtype), phase.parallel, phase.device)
    meter = Meter(phase.model.config, phase.part, phase.device, phase.dtype)
    return Training(phase, learner.train(), optimizers_module.build(phase.model, phase.part, phase.dtype), meter)


def _warnings(phase: Phase, progress: Progress) -> Iterator[str]:
    """Warnings to print when a phase ends."""
    if progress.skipped:
        yield f"{phase.name} skipped {progress.skipped} of {progress.step} steps: metrics.jsonl"
    if progress.end_step is not None and progress.step < phase.planned_steps:
        yield f"{phase.name} ended at step {progress.step} of {phase.planned_steps}: block efficiency stopped rising"
    if progress.best_step not in (0, progress.step):
        yield f"{phase.name} keeps the draft of step {progress.best_step} of {progress.step}, the best measured"


def _run(training: Training, progress: Progress, bar: Bar, metrics: Metrics) -> Progress:
    """Take the remaining steps."""
    phase, part = training.phase, training.phase.part
    start, last_save = time.monotonic() - progress.seconds, time.monotonic()
    phase.total_steps = early_stopping.steps_with_early_stop(progress, phase.planned_steps)
    joules_before, meter = progress.joules, energy.Meter(energy.counters(phase.device))
    with meter, record_sigterm() as sigterm_received:
        while progress.step < phase.total_steps:
            step_start = time.monotonic()
            row = _step(training, progress.step)
            row |= training.meter.metrics(time.monotonic() - step_start)
            progress = replace(
                progress,
                step=progress.step + 1,
                tokens=progress.tokens + row["tokens"],
                position=tuple(phase.mixture.position),
                seconds=time.monotonic() - start,
                skipped=progress.skipped + ("skipped" in row),
            )
            if progress.step % phase.validation_steps == 0 or progress.step == phase.total_steps:
                row |= held_out_loss(training) | _validate(training)
                if "block_efficiency" in row:
                    progress = early_stopping.after_validation(progress, row["block_efficiency"], part)
                    phase.total_steps = early_stopping.steps_with_early_stop(progress, phase.planned_steps)
            metrics.write({"step": progress.step} | row | {"tokens": progress.tokens, "seconds": progress.seconds})
            bar.advance(row["tokens"], row.get("skipped") or f"loss {row['loss_nats']:.3f}")
            checkpoint_due = time.monotonic() - last_save > part.checkpoint_seconds and processes.is_main()
            stop, checkpoint_due = processes.any_of(sigterm_received(), checkpoint_due)
            last = progress.step == phase.total_steps
            if checkpoint_due or stop or last or progress.best_step == progress.step:
                metrics.sync()
                joules = energy.summed_over_processes(meter.joules())
                progress = replace(progress, joules=energy.add_joules(joules_before, joules))
                checkpoint.save(phase.folder, phase.model, training.optimizers, progress)
                last_save = time.monotonic()
            if stop:
                raise Stopped
    return progress


def held_out_loss(training: Training) -> dict[str, float]:
    """Nats per token on the held-out batches of each source that has any."""
    phase, learner = training.phase, training.learner.eval()
    losses = {}
    for name, batches in phase.held_out.items():
        if not batches:
            continue
        with torch.no_grad():
            sums = [learner(batch, cross_entropy) for batch in _to_device(phase.device, batches)]
        nats, tokens = processes.summed(float(sum(sums)), sum(map(_trained_tokens, batches)))
        losses[f"held_out_{name}_nats"] = nats / max(tokens, 1)
    learner.train()
    return losses


def _validate(training: Training) -> dict[str, float]:
    """The result of the phase's `measure`, that of the main process in all processes; empty if there is none."""
    phase = training.phase
    if phase.measure is None:
        return {}
    training.learner.eval()
    with torch.random.fork_rng(devices=[]):  # a gathered model is created with random weights first
        model = parallel.gather_model(phase.model)
    result = phase.measure(model.to(phase.device).eval())  # type: ignore[arg-type]
    training.learner.train()
    return processes.on_rank0(lambda: result)


def _step(training: Training, step: int) -> dict[str, Any]:
    """One optimizer step. Losses are summed over micro-batches and processes, and divided once by the step's tokens."""
    phase, part, start = training.phase, training.phase.part, time.monotonic()
    batch = phase.mixture.next_batch(part.batch_size, Portion(processes.rank(), processes.world_size()))
    tokens = int(processes.summed(_trained_tokens(batch))[0])
    loss = parallel.sum_over_processes(_backward(training, batch, tokens)).item()
    norm = parallel.clip_gradients(phase.model.parameters(), part.gradient_clip).item()
    factor = SCHEDULES[part.schedule](step, phase.total_steps, part.warmup_steps, part.decay_fraction)
    learning_rate = {"learning_rate": part.learning_rate * factor}
    vocab_rows, weight = phase.model.config.get_text_config().vocab_size, sum(part.objectives.values())
    if problem := nonfinite.step_problem(loss, norm, vocab_rows, weight):
        training.consecutive_skips += 1
        if part.on_nonfinite == "stop" or training.consecutive_skips > nonfinite.MAX_CONSECUTIVE_SKIPS:
            raise nonfinite.nonfinite_error(phase.name, step + 1, problem, batch.places, phase.folder)
        for optimizer in training.optimizers.values():
            optimizer.zero_grad()
        return {"tokens": 0, "loss_nats": None, "gradient_norm": None, "skipped": problem} | learning_rate
    training.consecutive_skips = 0
    for name, optimizer in training.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = optimizers_module.peaks(part)[name] * factor
        optimizer.step()
        optimizer.zero_grad()
    return {
        "tokens": tokens,
        "loss_nats": loss,
        "gradient_norm": norm,
        **learning_rate,
        "tokens_per_second": tokens / (time.monotonic() - start),
    }


def _backward(training: Training, batch: Batch, tokens: int) -> Tensor:
    """() this process's share of the step's loss. The gradients of all processes are summed in `.grad`."""
    phase, (sequences, length) = training.phase, batch.inputs_BT.shape
    size = min(phase.part.micro_batch_size or sequences, sequences)
    micro_batches = batch.split(size)
    total = torch.zeros((), device=phase.device)
    with nonfinite.explain_out_of_memory(phase.name, size, length):
        for number, micro_batch in enumerate(_to_device(phase.device, micro_batches), start=1):
            with parallel.sync_gradients_if(number == len(micro_batches), training.learner):
                loss = training.learner(micro_batch, phase.objective) / max(tokens, 1)
                loss.backward()
            total += loss.detach()
    return total


def _trained_tokens(batch: Batch) -> int:
    return int((batch.labels_BT != IGNORED).sum())


def _to_device(device: torch.device, batches: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield batch.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))
