"""A local Ray cluster: it listens only on loopback, and no process of it remains."""

from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from fastdraft.system import ray_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`"),
]
LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses on which the processes listen."""
    addresses = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("inet")
            addresses |= {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    return addresses


def test_a_local_cluster_listens_on_loopback_and_is_removed(ray_processes):
    before = ray_processes()
    with ray_cluster.connected(workers=2, store_bytes=2**27) as ray:
        assert sum(ray.get([ray.remote(lambda x: x * x).remote(i) for i in range(5)])) == 30
        started, folder = ray_processes(), Path(ray.get_runtime_context().get_temp_dir())
        assert folder.is_dir()
        addresses = listening(started.keys() - before.keys())
    assert addresses
    assert addresses <= LOOPBACK
    assert any("ray::" in command for command in started.values())
    assert ray_processes().keys() == before.keys()
    assert not folder.exists()


def test_workers_that_outlive_their_raylet_are_killed(monkeypatch, ray_processes):
    """Ray kills a raylet that needs more than a second to end, as happens on a busy machine."""
    before = ray_processes()
    with ray_cluster.connected(workers=2, store_bytes=2**27) as ray:
        ray.get(ray.remote(lambda: 0).remote())
        started = {process: command for process, command in ray_processes().items() if process not in before}
        (raylet,) = (process for process, command in started.items() if command.split()[0].endswith("/raylet"))
        next(process for process, command in started.items() if "ray::IDLE" in command).suspend()
        shutdown = ray.shutdown

        def kill_the_raylet_first() -> None:
            raylet.kill()
            shutdown()

        monkeypatch.setattr(ray, "shutdown", kill_the_raylet_first)
    assert ray_processes().keys() == before.keys()
