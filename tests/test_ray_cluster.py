"""Ray started for one piece of work: it listens on the loopback address alone, and nothing of it is left."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from fastdraft import ray_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`"),
]
THIS_MACHINE = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def processes_below(parent: int) -> dict[int, str]:
    """The command lines of all that a process has started, by process."""
    found = {}
    for children in Path("/proc").glob(f"{parent}/task/*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child: Path(f"/proc/{child}/cmdline").read_text()} | processes_below(child)
    return found


def ray_processes() -> dict[int, str]:
    return {pid: words for pid, words in processes_below(os.getpid()).items() if "/ray/" in words or "ray::" in words}


def running(processes: dict[int, str]) -> set[str]:
    return {words for pid, words in processes.items() if Path(f"/proc/{pid}").exists()}


def test_a_cluster_listens_to_this_machine_alone_and_is_gone_when_it_is_left():
    with ray_cluster.connected(workers=2, store_bytes=2**27) as ray:
        assert sum(ray.get([ray.remote(lambda x: x * x).remote(i) for i in range(5)])) == 30
        started, folder = ray_processes(), Path(ray.get_runtime_context().get_temp_dir())
        assert folder.is_dir()
        sockets = [socket for pid in started for socket in psutil.Process(pid).net_connections("inet")]
    assert {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN} <= THIS_MACHINE
    assert any(socket.status == psutil.CONN_LISTEN for socket in sockets)
    assert any("ray::" in words for words in started.values())
    assert not running(started)
    assert not folder.exists()


def test_workers_that_outlive_their_raylet_are_ended(monkeypatch):
    """Ray kills a raylet that takes more than a second to end, as on a busy machine."""
    with ray_cluster.connected(workers=2, store_bytes=2**27) as ray:
        ray.get(ray.remote(lambda: 0).remote())
        started = ray_processes()
        (raylet,) = (pid for pid, words in started.items() if words.split("\0")[0].endswith("/raylet"))
        hangs = next(pid for pid, words in started.items() if "ray::IDLE" in words)
        os.kill(hangs, signal.SIGSTOP)
        shutdown = ray.shutdown

        def after_a_second() -> None:
            os.kill(raylet, signal.SIGKILL)
            shutdown()

        monkeypatch.setattr(ray, "shutdown", after_a_second)
    assert not running(started)
