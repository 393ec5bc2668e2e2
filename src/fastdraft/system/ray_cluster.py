"""Ray: the cluster that the user has, or one of this process alone, of which nothing is left afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastdraft.system.optional_packages import need

# Ray kills a raylet that has not ended a second after it was asked to, and leaves the raylet's workers to find out for
# themselves: on a busy machine some are still there when `ray.shutdown` returns.
GRACE_S = 5.0


def load() -> Any:
    """The module `ray`; MissingExtra without it."""
    # Read as Ray is imported. 0: what is started here listens on the loopback address alone, and reports to nobody.
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    return need("ray", "ray")


@contextmanager
def connected(workers: int, store_bytes: int | None = None) -> Iterator[Any]:
    """Ray, on the cluster at RAY_ADDRESS; otherwise on one of this machine with that many CPUs, started and ended here.

    `store_bytes` bounds what its tasks have handed over and nobody has read (None: Ray's own, a third of the memory).
    """
    ray = load()
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, **quiet)
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    psutil = need("psutil", "ray")
    with tempfile.TemporaryDirectory(prefix="ray-", dir=os.environ.get("RAY_TMPDIR")) as folder:
        own = {"num_cpus": workers, "object_store_memory": store_bytes, "include_dashboard": False}
        try:
            ray.init(address="local", _temp_dir=folder, **own, **quiet)
            yield ray
        finally:
            _end(ray, psutil, folder)


def _end(ray: Any, psutil: Any, folder: str) -> None:
    """Shut down, and see to it that no process of the cluster in `folder` is left."""
    started = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if any(folder in word for word in child.cmdline()):  # its workers' say nothing
                started += [child, *child.children(recursive=True)]
    ray.shutdown()
    _, left = psutil.wait_procs(started, timeout=GRACE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=GRACE_S)
