"""The processes of one command. A launcher (torchrun, accelerate launch) starts one for each device.

Only the main process, rank 0, writes cards, manifests, locks, metrics, checkpoints and output. The other processes
train with it, and wait while it does everything else. They communicate over a gloo group, separate from the device's
own group: it needs no device, and allows waits of hours (docs/scale.md).

torch is imported within the functions: progress bars import this module in every process of tokenization, which does
not use torch otherwise, and importing torch takes 2.7 s.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from fastdraft.system.errors import MainProcessFailed, RecipeError, Stopped

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

Value = TypeVar("Value")
# The main process may tokenize for days. If it dies, its closed connection ends the wait at once.
TIMEOUT = timedelta(days=30)
# With these settings transformers loads weights only in the first process, and waits for accelerate to fill the others.
ACCELERATE_SETTINGS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_CPU_RAM_EFFICIENT_LOADING")


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def unset_accelerate_settings() -> list[str]:
    """Unset settings of accelerate that the recipe's `parallel` decides. Returns the names of those that were on."""
    return [name for name in ACCELERATE_SETTINGS if os.environ.pop(name, "false").lower() in ("true", "1")]


def join(device: torch.device) -> torch.device:
    """Join the other processes. Returns the device of this type for this process; RecipeError if it has none."""
    from accelerate import PartialState

    own: torch.device = PartialState(cpu=device.type == "cpu").device
    if own.type != device.type:
        raise RecipeError(
            f"device: found {device.type}, but process {rank()} has only {own.type}\n  do: set device={own.type}"
        )
    _gloo_group()
    return own


def leave() -> None:
    """Leave the other processes, after all communication."""
    if _joined():
        import torch.distributed as dist

        dist.destroy_process_group()
        _gloo_group.cache_clear()


def rank() -> int:
    """The rank of this process; 0 is the main process."""
    if _joined():
        import torch.distributed as dist

        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """The number of processes of this command."""
    if not _joined():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def is_main() -> bool:
    """Whether this is the main process, which writes."""
    return rank() == 0


def on_rank0(work: Callable[[], Value]) -> Value:
    """Run `work` in the main process, and return its result in every process.

    If it fails, the other processes raise MainProcessFailed; if it was interrupted, Stopped.
    """
    if world_size() == 1:
        return work()
    if not is_main():
        stopped, failure, value = _broadcast(None)
        if stopped:
            raise Stopped
        if failure:
            raise MainProcessFailed(f"the main process failed with {failure} and reported why")
        result: Value = value
        return result
    try:
        result = work()
    except BaseException as error:
        with suppress(RuntimeError):  # the other processes may have ended already
            _broadcast((isinstance(error, KeyboardInterrupt), type(error).__name__, None))
        raise
    _broadcast((False, None, result))
    return result


def summed(*numbers: float) -> tuple[float, ...]:
    """Each number, summed over the processes."""
    if world_size() == 1:
        return numbers
    import torch
    import torch.distributed as dist

    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total, group=_gloo_group())
    return tuple(total.tolist())


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    return tuple(number > 0 for number in summed(*flags))


def _joined() -> bool:
    if "torch" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


@cache
def _gloo_group() -> dist.ProcessGroup:
    """The group for communication without a device. All processes must create it at the same point."""
    import torch.distributed as dist

    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return group


def _broadcast(outcome: tuple[bool, str | None, object] | None) -> tuple[bool, str | None, Any]:
    """The main process's outcome: whether it was stopped, the class of its error, and its result."""
    import torch
    import torch.distributed as dist

    outcomes: list[Any] = [outcome]
    dist.broadcast_object_list(outcomes, src=0, group=_gloo_group(), device=torch.device("cpu"))
    received: tuple[bool, str | None, Any] = outcomes[0]
    return received
