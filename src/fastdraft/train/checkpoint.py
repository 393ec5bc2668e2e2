"""Checkpoints: weights, optimizers, random generators and the data position, in safetensors and JSON, never pickle.

The main process writes full tensors, so that any number of processes can resume from them.

A checkpoint is complete when its folder has its final name. state.json holds the version of this format and a digest of
each other file. A damaged checkpoint is detected by it, and the one before is used; another version is refused.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdraft.system import processes
from fastdraft.system.energy import Joules
from fastdraft.system.errors import CheckpointError
from fastdraft.system.files import OLD, PART, atomic_write, recover, remove
from fastdraft.system.stage_files import digest_of
from fastdraft.train.optimizers import OptimizerSet
from fastdraft.train.parallel import full_tensor, shard_like

KEPT = 2
# Raise it when state.json or the names of tensors change.
VERSION = 1
FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Progress:
    """The progress of a phase: steps, trained tokens, sequences drawn from each source (`position`), seconds.

    skipped: steps without an update, because their loss or gradient was not finite or exploded.
    best_step: the step with the highest block efficiency, if the phase keeps the best draft; else 0.
    measures_since_best: validations since the highest block efficiency.
    end_step: the last step, if the phase ends early.
    joules: energy of all processes up to the last checkpoint; None if it was not recorded from the first step.
    """

    step: int
    tokens: int
    position: tuple[int, ...]
    seconds: float
    skipped: int = 0
    best_step: int = 0
    best_block_efficiency: float = 0.0
    measures_since_best: int = 0
    end_step: int | None = None
    joules: Joules | None = None


def save(folder: Path, model: nn.Module, optimizers: OptimizerSet, progress: Progress) -> None:
    """Write checkpoint-STEP below `folder`. Remove all but the last two and those of their best steps."""
    # A tied output layer is the embedding, and is named once.
    weights = {name: _full_on_rank0(weight.detach()) for name, weight in model.named_parameters()}
    tensors, settings = _optimizer_state(optimizers)
    tensors |= _generator_states(model)
    processes.on_rank0(lambda: _write(folder, weights, tensors, settings, progress))


def _write(
    folder: Path, weights: dict[str, Tensor], tensors: dict[str, Tensor], settings: dict[str, Any], progress: Progress
) -> None:
    path = _path(folder, progress.step)
    with atomic_write(path) as part:
        part.mkdir()
        save_file(weights, part / "model.safetensors")
        save_file(tensors, part / "optimizer.safetensors")
        digests = {name: digest_of(part / name) for name in FILES}
        state = {"version": VERSION, "progress": asdict(progress), "optimizers": settings, "digests": digests}
        (part / "state.json").write_text(json.dumps(state))
    existing = _checkpoints(folder)
    last = existing[: existing.index(path) + 1][-KEPT:]  # one after `path` is damaged: training resumed before it
    best = [_path(folder, _best_step(path)) for path in last]
    for old in set(existing) - {*last, *best}:
        remove(old, inside=folder)


def load_weights(folder: Path, step: int, model: nn.Module) -> None:
    """Load the weights of a step into an unsharded model. CheckpointError if its checkpoint is damaged."""
    path = _path(folder, step)
    if problem := processes.on_rank0(lambda: _damage(path)):
        raise CheckpointError(
            f"{path}, the best of this phase, is damaged ({problem})\n  do: remove {folder} to start this phase anew"
        )
    _load_model(path, model)


def restore(folder: Path, model: nn.Module, optimizers: OptimizerSet) -> Progress | None:
    """Load the newest undamaged checkpoint; None if there is no checkpoint.

    CheckpointError if all checkpoints are damaged, or if the newest undamaged one is of another version of the format,
    of another model or of other optimizers.
    """
    path = processes.on_rank0(lambda: _newest(folder))
    return _load(path, model, optimizers) if path else None


def _path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:08d}"


def _best_step(path: Path) -> int:
    """The best step recorded in a checkpoint; 0 if there is none or the checkpoint cannot be read."""
    try:
        return _progress(path).best_step
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def _progress(path: Path) -> Progress:
    progress = json.loads((path / "state.json").read_text())["progress"]
    return Progress(**progress | {"position": tuple(progress["position"])})


def _newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, after leftovers of a kill are removed."""
    for leftover in [*folder.glob(f"checkpoint-*{PART}"), *folder.glob(f"checkpoint-*{OLD}")]:
        recover(leftover.with_suffix(""))
        remove(leftover.with_suffix(PART), inside=folder)
    existing = _checkpoints(folder)
    for path in reversed(existing):
        if (problem := _damage(path)) is None:
            return path
        warnings.warn(f"{path} is damaged ({problem}); the checkpoint before it is used", stacklevel=4)
    if existing:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged\n  do: remove {folder} to start this phase anew"
        )
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit())


def _damage(path: Path) -> str | None:
    """What is damaged in a checkpoint; None if nothing is. CheckpointError if it is of another version."""
    try:
        state = json.loads((path / "state.json").read_text())
        if "progress" in state and state.get("version") != VERSION:
            raise CheckpointError(
                f"{path} is of version {state.get('version', 0)} of checkpoints, wanted version {VERSION}\n"
                f"  do: go on with the release of FastDraft that wrote it, or remove {path.parent} to start this phase "
                f"anew"
            )
        Progress(**state["progress"])
        if not isinstance(state["optimizers"], dict):
            return "state.json has no optimizers"
        changed = [name for name in FILES if digest_of(path / name) != state["digests"][name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{', '.join(changed)} changed or cut short" if changed else None


def _load(path: Path, model: nn.Module, optimizers: OptimizerSet) -> Progress:
    state = json.loads((path / "state.json").read_text())
    if state["optimizers"].keys() != optimizers.keys():
        raise CheckpointError(
            f"{path} has the optimizers {', '.join(state['optimizers'])}, this phase uses {', '.join(optimizers)}\n"
            f"  do: remove {path.parent} to start this phase anew"
        )
    _load_model(path, model)
    tensors = load_file(path / "optimizer.safetensors")
    _set_generators(model, tensors)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(_optimizer_state_dict(name, tensors, optimizer, state["optimizers"][name]))
    return _progress(path)


def _load_model(path: Path, model: nn.Module) -> None:
    """Load the weights. CheckpointError unless names and shapes are exactly those of the model."""
    weights, parameters = load_file(path / "model.safetensors"), dict(model.named_parameters())
    saved, expected = ({name: t.shape for name, t in tensors.items()} for tensors in (weights, parameters))
    if different := sorted(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name)):
        raise CheckpointError(
            f"{path} is of another model: {len(different)} weights differ in name or shape, first {different[0]}\n"
            f"  do: remove {path.parent} to start this phase anew"
        )
    weights = {name: shard_like(weight, parameters[name]) for name, weight in weights.items()}
    model.load_state_dict(weights, strict=False)  # a tied output layer is saved once; all others were checked above


def _generator_states(model: nn.Module) -> dict[str, Tensor]:
    """The states of torch's generators: of the CPU, and of the accelerator that the model is on."""
    device = next(model.parameters()).device
    states = {"generator": torch.get_rng_state()}
    if device.type != "cpu":
        states["device_generator"] = torch.get_device_module(device).get_rng_state(device)
    return states


def _set_generators(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    device = next(model.parameters()).device
    torch.set_rng_state(tensors.pop("generator"))
    state = tensors.pop("device_generator", None)
    if state is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state, device)


def _full_on_rank0(tensor: Tensor) -> Tensor:
    """The full tensor in the main process, which writes it; an empty one in the others."""
    full = full_tensor(tensor)
    return full.contiguous() if processes.is_main() else full.new_empty(0)


def _optimizer_state(optimizers: OptimizerSet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizers' states as tensors named OPTIMIZER.INDEX.FIELD, and their settings as JSON."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        settings[name] = state["param_groups"]
        for index, values in state["state"].items():
            for field, value in values.items():
                tensors[f"{name}.{index}.{field}"] = _full_on_rank0(torch.as_tensor(value))
    return tensors, settings


def _optimizer_state_dict(name: str, tensors: dict[str, Tensor], optimizer: Optimizer, groups: Any) -> dict[str, Any]:
    """The state_dict of one optimizer, from the tensors of `_optimizer_state` and its settings."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, index, field = key.split(".", 2)
        if owner == name:
            weight = weights[int(index)]
            if value.shape == weight.shape:  # not AdamW's step counter, a scalar
                value = shard_like(value, weight)
            state.setdefault(int(index), {})[field] = value
    return {"state": state, "param_groups": groups}
