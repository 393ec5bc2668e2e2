"""Ray started for one piece of work: it listens on the loopback address alone, and nothing of it is left."""

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
THIS_MACHINE = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses at which they do."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("inet")
            found |= {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    return found


def test_a_cluster_listens_to_this_machine_alone_and_is_gone_when_it_is_left(ray_processes):
    before = ray_processes()
    with ray_cluster.connected(workers=2, store_bytes=2**27) as ray:
        assert sum(ray.get([ray.remote(lambda x: x * x).remote(i) for i in range(5)])) == 30
        started, folder = ray_processes(), Path(ray.get_runtime_context().get_temp_dir())
        assert folder.is_dir()
        addresses = listening(started.keys() - before.keys())
    assert addresses
    assert addresses <= THIS_MACHINE
    assert any("ray::" in words for words in started.values())
    assert ray_processes().keys() == before.keys()
    assert not folder.exists()


def test_workers_that_outlive_their_raylet_are_ended(monkeypatch, ray_processes):
    """Ray kills a raylet that takes more than a second to end, as on a busy machine."""
    before = ray_processes()
    with ray_cluster.connected(workers=2, store_bytes=2**27) as ray:
        ray.get(ray.remote(lambda: 0).remote())
        started = {process: words for process, words in ray_processes().items() if process not in before}
        (raylet,) = (process for process, words in started.items() if words.split()[0].endswith("/raylet"))
        next(process for process, words in started.items() if "ray::IDLE" in words).suspend()
        shutdown = ray.shutdown

        def after_a_second() -> None:
            raylet.kill()
            shutdown()

        monkeypatch.setattr(ray, "shutdown", after_a_second)
    assert ray_processes().keys() == before.keys()
