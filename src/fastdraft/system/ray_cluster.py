"""Connection to Ray: the user's cluster, or a local one that is started here and removed completely afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastdraft.system.optional_packages import need

# Ray kills a raylet that does not end within a second, and its workers notice only later: on a busy machine some still
# run when `ray.shutdown` returns.
GRACE_SECONDS = 5.0


def load() -> Any:
    """Import `ray`; MissingExtra if it is not installed."""
    # Ray reads these at import. 0 makes a local cluster listen on loopback only, and turns off usage reports.
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    return need("ray", "ray")


@contextmanager
def connected(workers: int, store_bytes: int | None = None) -> Iterator[Any]:
    """Yield `ray`, connected to the cluster at RAY_ADDRESS; without it, to a local cluster with `workers` CPUs.

    store_bytes: size of the local cluster's object store, which holds results that nobody has read yet. None: Ray's
        default, a third of the memory.
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
        local = {"num_cpus": workers, "object_store_memory": store_bytes, "include_dashboard": False}
        try:
            ray.init(address="local", _temp_dir=folder, **local, **quiet)
            yield ray
        finally:
            _shut_down(ray, psutil, folder)


def _shut_down(ray: Any, psutil: Any, folder: str) -> None:
    """Shut Ray down, and kill every process of the cluster in `folder` that outlives it."""
    started = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            # The command lines of the workers do not contain the folder, but workers are children of those that do.
            if any(folder in argument for argument in child.cmdline()):
                started += [child, *child.children(recursive=True)]
    ray.shutdown()
    _, alive = psutil.wait_procs(started, timeout=GRACE_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)
