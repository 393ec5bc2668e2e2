"""The torch device of this process."""

from __future__ import annotations

import torch

from fastdraft.system import processes
from fastdraft.system.errors import RecipeError
from fastdraft.system.progress import log_line


def usable_device(name: str) -> torch.device:
    """The device of this name; `auto` is the first accelerator that torch finds, else the CPU.

    With several processes, each gets a device of that kind for itself. RecipeError if torch cannot use the device.
    """
    default = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = default if name == "auto" else torch.device(name)
        if not processes.launched():
            torch.empty(0, device=device).cpu()  # tensors on `meta` hold no values
    # The class of the error differs between the devices that torch was built without.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise RecipeError(
            f"device: found {name}, which torch cannot use here ({str(error).splitlines()[0]})\n"
            f"  do: set device=auto, or --device auto, which is {default} on this machine"
        ) from error
    if not processes.launched():
        return device
    if ignored := processes.unset_accelerate_settings():
        log_line(f"ignored accelerate settings: {', '.join(ignored)}; the recipe's `parallel` and `precision` decide")
    return processes.join(device)
