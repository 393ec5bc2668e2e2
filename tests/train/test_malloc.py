"""Memory that a step frees stays with the process for the next step."""

import subprocess
import sys

import pytest

# In a process of its own, because the heap depends on earlier tests. Activations of 4 099 x 2 048 are 33.6 MB, which
# the C library allocates from the system each time. Even with the setting a few are (glibc before 2.38 looks for an
# aligned block only in larger free blocks), mostly in the first steps: 0 to 2 % of the page faults remain.
STEPS = """
import resource, sys, torch
from fastdraft.train.malloc import keep_freed_memory

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    hidden = torch.randn(4099, 32)
    for up, down in layers:
        hidden = hidden + torch.nn.functional.silu(hidden @ up) @ down
    torch.autograd.grad(hidden.square().mean(), [matrix for layer in layers for matrix in layer])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
layers = [(torch.randn(32, 2048, requires_grad=True), torch.randn(2048, 32, requires_grad=True)) for _ in range(2)]
print(*(step() for _ in range(16)))
"""


def page_faults(memory: str) -> list[int]:
    """Page faults of each of sixteen steps."""
    command = [sys.executable, "-c", STEPS, memory]
    process = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return [int(count) for count in process.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has this setting")
def test_steps_reuse_freed_memory() -> None:
    kept, default = page_faults("kept"), page_faults("default")
    assert sum(default[8:]) > 8 * 8_000, "a tensor is 8 198 pages, and the system clears each of them again"
    assert sum(kept[8:]) < sum(default[8:]) / 5
