"""What a step frees is there for the next one."""

import subprocess
import sys

import pytest

# In a process of its own: what other tests have left in a heap decides what fits where. Activations of 4 099 x 2 048
# are 33.6 MB, which the C library asks the system for each time. One of them may still miss its place (glibc before
# 2.38 looks for an aligned piece only in larger holes), most of all in the first steps: 0 to 2 % of the faults stay.
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
    ran = subprocess.run([sys.executable, "-c", STEPS, memory], check=True, capture_output=True, text=True, timeout=120)
    return [int(word) for word in ran.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the heap of another C library is left as it is")
def test_a_step_finds_the_memory_that_the_one_before_has_freed() -> None:
    kept, given_back = page_faults("kept"), page_faults("given back")
    assert sum(given_back[8:]) > 8 * 8_000, "a tensor is 8 198 pages, and the system clears each anew"
    assert sum(kept[8:]) < sum(given_back[8:]) / 5
