"""Checkpoints: weights, optimizers, generators and the data position, in safetensors and JSON, never pickle.

They are whole, whatever the processes held: the main process writes them, and any number of processes reads them.

A checkpoint exists when its folder has its final name; state.json holds a digest of each file beside it, so that a
damaged one is recognised and the one before it is used.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdraft.system import processes
from fastdraft.system.energy import Joules
from fastdraft.system.errors import CheckpointError
from fastdraft.system.files import OLD, PART, atomic_write, recover, remove
from fastdraft.train.optimizers import OptimizerSet
from fastdraft.train.parallel import laid_like, whole

KEPT = 2
FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Progress:
    """Where a phase stands: steps and trained tokens so far, rows drawn of each source, seconds spent.

    `skipped` steps were drawn and not taken: their loss was no number. The highest block efficiency was measured so
    many measures ago, at `best_step` where that one is to be kept (else 0); `end_step` is where the phase ends early.
    `joules`: of all processes, up to the last checkpoint; None where nobody looked at them from the first step on.
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
    """Write checkpoint-STEP below `folder` and drop all but the last two, and those of the best steps they know."""
    weights, (tensors, settings) = _weights(model), _flatten(optimizers)
    tensors |= _generators(model)
    processes.on_rank0(lambda: _write(folder, weights, tensors, settings, progress))


def _write(
    folder: Path, weights: dict[str, Tensor], tensors: dict[str, Tensor], settings: dict[str, Any], progress: Progress
) -> None:
    path = _place(folder, progress.step)
    with atomic_write(path) as part:
        part.mkdir()
        save_file(weights, part / "model.safetensors")
        save_file(tensors, part / "optimizer.safetensors")
        digests = {name: _digest(part / name) for name in FILES}
        state = {"progress": asdict(progress), "optimizers": settings, "digests": digests}
        (part / "state.json").write_text(json.dumps(state))
    found = _found(folder)
    past = found[: found.index(path) + 1]  # a later one is damaged: training came by here again
    best = [_place(folder, _best_step(path)) for path in past[-KEPT:]]
    for old in set(found) - {*past[-KEPT:], *best}:
        remove(old)


def bring_back(folder: Path, step: int, model: nn.Module) -> None:
    """Load the weights that a step left into a whole model; CheckpointError where its checkpoint is not sound."""
    path = _place(folder, step)
    if problem := processes.on_rank0(lambda: _damage(path)):
        raise CheckpointError(
            f"{path}, the best of this phase, is damaged ({problem})\n  do: remove {folder} to start this phase anew"
        )
    _load_weights(path, model)


def restore(folder: Path, model: nn.Module, optimizers: OptimizerSet) -> Progress | None:
    """Load the newest sound checkpoint; None where there is none yet.

    CheckpointError where there are checkpoints and none is sound, or where they are of another model.
    """
    path = processes.on_rank0(lambda: _newest(folder))
    return _load(path, model, optimizers) if path else None


def _place(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:08d}"


def _best_step(path: Path) -> int:
    """The best step that a checkpoint knows; 0 where it knows none, or cannot be read."""
    try:
        return _progress(path).best_step
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _progress(path: Path) -> Progress:
    progress = json.loads((path / "state.json").read_text())["progress"]
    return Progress(**progress | {"position": tuple(progress["position"])})


def _newest(folder: Path) -> Path | None:
    """The newest sound checkpoint, once what a kill left is cleared up."""
    for left in [*folder.glob(f"checkpoint-*{PART}"), *folder.glob(f"checkpoint-*{OLD}")]:
        recover(left.with_suffix(""))
        remove(left.with_suffix(PART))
    found = _found(folder)
    for path in reversed(found):
        if (problem := _damage(path)) is None:
            return path
        warnings.warn(f"{path} is damaged ({problem}); the checkpoint before it is used", stacklevel=4)
    if found:
        raise CheckpointError(f"no checkpoint in {folder} is sound\n  do: remove {folder} to start this phase anew")
    return None


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit())


def _damage(path: Path) -> str | None:
    try:
        state = json.loads((path / "state.json").read_text())
        Progress(**state["progress"])
        if not isinstance(state["optimizers"], dict):
            return "state.json names no optimizers"
        wrong = [name for name in FILES if _digest(path / name) != state["digests"][name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{', '.join(wrong)} changed or cut short" if wrong else None


def _load(path: Path, model: nn.Module, optimizers: OptimizerSet) -> Progress:
    state = json.loads((path / "state.json").read_text())
    if state["optimizers"].keys() != optimizers.keys():
        raise CheckpointError(
            f"{path} is of {', '.join(state['optimizers'])}, this phase trains with {', '.join(optimizers)}\n"
            f"  do: remove {path.parent} to start this phase anew"
        )
    _load_weights(path, model)
    tensors = load_file(path / "optimizer.safetensors")
    _set_generators(model, tensors)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(_unflatten(name, tensors, optimizer, state["optimizers"][name]))
    return _progress(path)


def _load_weights(path: Path, model: nn.Module) -> None:
    weights, own = load_file(path / "model.safetensors"), dict(model.named_parameters())
    _check_model(path, model, weights)
    weights = {name: laid_like(weight, own[name]) for name, weight in weights.items()}
    model.load_state_dict(weights, strict=False)  # a tied output layer is not saved twice: checked above


def _check_model(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """CheckpointError unless the weights are exactly the model's, name by name and shape by shape."""
    wanted = {name: weight.shape for name, weight in model.named_parameters()}
    found = {name: weight.shape for name, weight in weights.items()}
    if differing := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise CheckpointError(
            f"{path} is of another model: {len(differing)} weights differ in name or shape, first {differing[0]}\n"
            f"  do: remove {path.parent} to start this phase anew"
        )


def _generators(model: nn.Module) -> dict[str, Tensor]:
    """The states of torch's generators: the CPU's, and that of the accelerator that the model is on."""
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


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight once: a tied output layer is the embedding."""
    return {name: _gathered(weight.detach()) for name, weight in model.named_parameters()}


def _gathered(tensor: Tensor) -> Tensor:
    """Whole in the main process; nothing in the others, which write nothing."""
    found = whole(tensor)
    return found.contiguous() if processes.is_main() else found.new_empty(0)


def _flatten(optimizers: OptimizerSet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer states as named tensors, and their settings as JSON."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        settings[name] = state["param_groups"]
        for index, values in state["state"].items():
            tensors |= {f"{name}.{index}.{key}": _gathered(torch.as_tensor(value)) for key, value in values.items()}
    return tensors, settings


def _unflatten(name: str, tensors: dict[str, Tensor], optimizer: Optimizer, groups: Any) -> dict[str, Any]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, index, field = key.split(".", 2)
        if owner == name:
            weight = weights[int(index)]
            laid = laid_like(value, weight) if value.shape == weight.shape else value  # AdamW counts steps in a scalar
            state.setdefault(int(index), {})[field] = laid
    return {"state": state, "param_groups": groups}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = xxhash.xxh3_64()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
