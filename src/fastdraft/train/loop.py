"""The loop that every phase runs: batches in, a trained model and a metrics file out, safe to stop at any moment.

A phase is a function of its model's weights, its mixture and its recipe part; one that was killed goes on from its last
checkpoint and takes the same steps (bit for bit on one CPU thread).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.corpus.order import IGNORED, Batch, Mixture
from fastdraft.errors import NonFiniteLoss
from fastdraft.maths.schedule import SCHEDULES
from fastdraft.progress import Bar
from fastdraft.recipe import TrainPart
from fastdraft.run import finished_last
from fastdraft.train import checkpoint, optim
from fastdraft.train.checkpoint import Progress
from fastdraft.train.head import on_finished_logits, summed_loss
from fastdraft.train.objectives import Objective, cross_entropy

HeldOut = dict[str, list[Batch]]


@dataclass
class Phase:
    """All that one phase of training is made of."""

    name: str
    model: PreTrainedModel
    part: TrainPart
    mixture: Mixture
    held_out: HeldOut
    objective: Objective
    folder: Path
    device: torch.device
    total_steps: int = field(init=False)

    def __post_init__(self) -> None:
        steps = self.part.train_tokens / (self.part.batch_sequences * self.mixture.labels_per_row)
        self.total_steps = math.ceil(steps - 1e-6)  # the mean is rounded: a millionth of a step is none


def train(phase: Phase) -> Progress:
    """Run a phase to its end, from its last checkpoint if there is one; the model is trained in place.

    NonFiniteLoss where the loss stops being a number: the checkpoint before it stays.
    """
    model, part = phase.model.to(phase.device), phase.part  # type: ignore[arg-type]
    model.train()
    optimizers = optim.build(model, part)
    progress = checkpoint.restore(phase.folder, model, optimizers) or Progress(0, 0, tuple(phase.mixture.position), 0.0)
    phase.mixture.position = list(progress.position)
    metrics = _reopened(phase.folder / "metrics.jsonl", progress.step)
    forward = torch.compile(model.base_model, dynamic=False) if part.compile else model.base_model
    begun, saved = time.monotonic() - progress.seconds, time.monotonic()
    with Bar(phase.name, part.train_tokens, "tokens", progress.tokens) as bar, metrics.open("a") as log:
        for step in range(progress.step, phase.total_steps):
            row = _step(phase, forward, optimizers, step)
            fresh = row["tokens"]
            tokens = progress.tokens + fresh
            progress = Progress(step + 1, tokens, tuple(phase.mixture.position), time.monotonic() - begun)
            if _crosses(part.held_out_every_tokens, tokens, fresh) or progress.step == phase.total_steps:
                row |= held_out_loss(phase)
            row = {"step": progress.step} | row | {"tokens": tokens, "seconds": progress.seconds}
            log.write(json.dumps(row) + "\n")
            log.flush()
            bar.advance(fresh, f"loss {row['loss_nats']:.3f}")
            if time.monotonic() - saved > part.checkpoint_seconds or progress.step == phase.total_steps:
                os.fsync(log.fileno())  # a checkpoint that survives a power cut must find the lines of its steps
                checkpoint.save(phase.folder, model, optimizers, progress)
                saved = time.monotonic()
    return progress


def held_out_loss(phase: Phase) -> dict[str, float]:
    """Nats per token on the held-out part of each source that has one."""
    phase.model.eval()
    found = {}
    for name, batches in phase.held_out.items():
        if not batches:
            continue
        with torch.no_grad():
            sums = [_loss(phase, phase.model.base_model, batch, cross_entropy) for batch in _on(phase.device, batches)]
        tokens = sum(int((batch.labels_BT != IGNORED).sum()) for batch in batches)
        found[f"held_out_{name}_nats"] = float(sum(sums)) / max(tokens, 1)
    phase.model.train()
    return found


def _step(phase: Phase, forward: Callable[..., Any], optimizers: optim.OptimizerSet, step: int) -> dict[str, Any]:
    """One optimizer step: sums over the micro-batches, one division by the step's tokens."""
    part, started = phase.part, time.monotonic()
    batch = phase.mixture.next_batch(part.batch_sequences)
    tokens = int((batch.labels_BT != IGNORED).sum())
    total = torch.zeros((), device=phase.device)
    for micro in _on(phase.device, _split(batch, part.micro_batch_sequences or part.batch_sequences)):
        loss = _loss(phase, forward, micro, phase.objective) / max(tokens, 1)
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(phase.model.parameters(), part.gradient_clip)
    _check_finite(phase, step, loss=total.item(), gradient_norm=norm.item())
    factor = _apply(optimizers, part, step, phase.total_steps)
    return {
        "tokens": tokens,
        "loss_nats": total.item(),
        "gradient_norm": norm.item(),
        "learning_rate": part.learning_rate * factor,
        "tokens_per_second": tokens / (time.monotonic() - started),
    }


def _check_finite(phase: Phase, step: int, **measured: float) -> None:
    """NonFiniteLoss before the optimizer steps on what is no number: a finite loss can have an infinite gradient."""
    wrong = {name: value for name, value in measured.items() if not math.isfinite(value)}
    if wrong:
        raise NonFiniteLoss(
            f"{phase.name} became {', '.join(f'{name} {value}' for name, value in wrong.items())} at step {step + 1}, "
            f"sequences before it {dict(zip(phase.mixture.names, phase.mixture.position, strict=True))}\n"
            f"  kept: the checkpoints in {phase.folder}, if it came to one\n"
            f"  do: lower the learning rates and run again; the phase is made anew, what is here moves to stale/"
        )


def _apply(optimizers: optim.OptimizerSet, part: TrainPart, step: int, total_steps: int) -> float:
    factor = SCHEDULES[part.schedule](step, total_steps, part.warmup_steps, part.decay_share)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = optim.peaks(part)[name] * factor
        optimizer.step()
        optimizer.zero_grad()
    return factor


def _loss(phase: Phase, forward: Callable[..., Any], batch: Batch, objective: Objective) -> Tensor:
    """() the sum of the losses of a batch's trained tokens."""
    with _precision(phase):
        loss_of = objective(batch)
        hidden_NE = forward(input_ids=batch.inputs_BT, use_cache=False).last_hidden_state.flatten(0, 1)
    if phase.part.precision == "bf16":
        hidden_NE = hidden_NE.to(torch.bfloat16)
    weight_VE = phase.model.get_output_embeddings().weight
    loss_of = on_finished_logits(loss_of, phase.model.config)
    return summed_loss(hidden_NE, weight_VE, loss_of, phase.part.head_chunk_tokens)


def _precision(phase: Phase) -> AbstractContextManager[Any]:
    if phase.part.precision == "fp32":
        return nullcontext()
    return torch.autocast(phase.device.type, torch.bfloat16)


def _split(batch: Batch, sequences: int) -> list[Batch]:
    pairs = zip(batch.inputs_BT.split(sequences), batch.labels_BT.split(sequences), strict=True)
    return [Batch(inputs_BT, labels_BT) for inputs_BT, labels_BT in pairs]


def _on(device: torch.device, batches: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield Batch(batch.inputs_BT.to(device, non_blocking=True), batch.labels_BT.to(device, non_blocking=True))


def _crosses(every: int, tokens: int, fresh: int) -> bool:
    return tokens // every > (tokens - fresh) // every


def _reopened(path: Path, step: int) -> Path:
    """The metrics file without the lines of steps that will be taken again, nor what a kill or a full disk left."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    with finished_last(path) as part:
        part.write_text("".join(line for line in lines if 1 <= _step_of(line) <= step))
    return path


def _step_of(line: str) -> int:
    """The step that a whole line of metrics is about; 0 for anything else."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0
