"""What a step frees is there for the next one."""

import resource
import sys

import pytest
import torch

from fastdraft.train.heap import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of another C library is left as it is")
def test_freed_memory_is_there_for_the_next_tensor() -> None:
    """64 MB are 16 384 pages: from the system each would come by a page fault."""
    keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(1 << 24).fill_(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 1000
