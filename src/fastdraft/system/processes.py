"""The processes of one command: a launcher (torchrun, accelerate launch) starts one for each device.

The main process, rank 0, alone writes: cards, manifests, locks, metrics, checkpoints, and what a user reads. The others
train with it and wait for the rest. What they tell one another goes over a gloo group beside the device's own: that
needs no device, and a wait for it may take hours (docs/scale.md).

The module is imported by progress bars, also in the processes of tokenization, which have no other use for torch: its
import takes 2.7 s, so it is imported by the functions that need it.
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
# The main process may tokenise for days; where it dies instead, its closed connection ends the wait at once.
PATIENCE = timedelta(days=30)
# Where they are on, transformers leaves all but the first copy of a model empty, and waits for what fills the others.
FOREIGN = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_CPU_RAM_EFFICIENT_LOADING")


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def drop_foreign_settings() -> list[str]:
    """Unset what accelerate's configuration would switch on beside the recipe; its names."""
    return [name for name in FOREIGN if os.environ.pop(name, "false").lower() in ("true", "1")]


def begin(device: torch.device) -> torch.device:
    """Join the other processes; the device of this kind that is this one's. RecipeError where it has none."""
    from accelerate import PartialState  # one process alone has no need of it

    found: torch.device = PartialState(cpu=device.type == "cpu").device
    if found.type != device.type:
        raise RecipeError(
            f"device: found {device.type}, and process {rank()} has only {found.type}\n  do: set device={found.type}"
        )
    _words()
    return found


def end() -> None:
    """Leave the other processes, once they have nothing more to say."""
    if _joined():
        import torch.distributed as dist

        dist.destroy_process_group()
        _words.cache_clear()


def rank() -> int:
    """Which process this is, from 0."""
    if _joined():
        import torch.distributed as dist

        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def count() -> int:
    """How many processes work on this command."""
    if not _joined():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def on_rank0(work: Callable[[], Value]) -> Value:
    """What `work` returns in the main process, in every process; the others wait for it.

    Where it fails, the others raise MainProcessFailed; where it was asked to end, Stopped.
    """
    if count() == 1:
        return work()
    if not is_main():
        heard: Value = _heard()
        return heard
    try:
        value = work()
    except BaseException as error:
        with suppress(RuntimeError):  # that the others have ended before is no news
            _tell((isinstance(error, KeyboardInterrupt), type(error).__name__, None))
        raise
    _tell((False, None, value))
    return value


def summed(*numbers: float) -> tuple[float, ...]:
    """Each number, added over the processes."""
    if count() == 1:
        return numbers
    import torch
    import torch.distributed as dist

    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total, group=_words())
    return tuple(total.tolist())


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Of each flag whether it is up in any process."""
    return tuple(number > 0 for number in summed(*flags))


def _joined() -> bool:
    if "torch" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


@cache
def _words() -> dist.ProcessGroup:
    """The group over which words go; made by all processes at once."""
    import torch.distributed as dist

    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group


def _tell(outcome: tuple[bool, str | None, object]) -> None:
    import torch
    import torch.distributed as dist

    dist.broadcast_object_list([outcome], src=0, group=_words(), device=torch.device("cpu"))


def _heard() -> Any:
    import torch
    import torch.distributed as dist

    heard: list[Any] = [None]
    dist.broadcast_object_list(heard, src=0, group=_words(), device=torch.device("cpu"))
    stopped, failure, value = heard[0]
    if stopped:
        raise Stopped
    if failure:
        raise MainProcessFailed(f"the main process ended with {failure}, and says why")
    return value
