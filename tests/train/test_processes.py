"""Several processes train what one trains, stop together, and go on from each other's checkpoints."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdraft.system.errors import Stopped
from fastdraft.train.loop import train

# The forkserver of tests/conftest.py has imported what takes seconds; each process is forked from it.
PROCESSES = multiprocessing.get_context("forkserver")
CONFTEST = Path(__file__).with_name("conftest.py")
SECONDS = 120
COMMON = """
import importlib.util, os, signal
from pathlib import Path
import torch
from fastdraft.system import processes
from fastdraft.system.errors import Stopped
from fastdraft.train.loop import train

def load(path):
    spec = importlib.util.spec_from_file_location("small", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

class Away(Exception):
    pass

def go_away():
    raise Away

def end(number):
    return lambda: rank == 1 and os.kill(os.getpid(), number)

torch.set_num_threads(1)
processes.begin(torch.device("cpu"))
rank = processes.rank()
ACTS = {"": lambda: None, "away": go_away, "term": end(signal.SIGTERM), "kill": end(signal.SIGKILL)}

def one(conftest, folder, how, due, last, act, settings):
    small = load(conftest)
    model = small.small_model(tied=settings.pop("tied", True))
    phase = small.small_phase(Path(folder), model, **settings)
    phase.parallel, phase.measure = how, small.small_measure()
    try:
        train(small.interrupt(phase, set(due), last, ACTS[act]))
    except (Away, Stopped):
        return
    processes.led(lambda: phase.model.save_pretrained(Path(folder, "model")))
"""
FORKED = """
import os
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1")
os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1")
exec(common, globals())
exec(work, globals())
processes.end()
"""
JOBS = """
for job in jobs:
    one(conftest, **job)
"""
LAUNCHED = """
import json, sys
exec(json.loads(sys.argv[1]), globals())
one(**json.loads(sys.argv[2]))
processes.end()
"""


def job(folder: Path, how: str, due=(), last=-1, act="", **settings):
    """A phase of the conftest under `ddp` or `fsdp`: checkpoints after the steps of `due`, `act` before step `last`."""
    names = ("folder", "how", "due", "last", "act", "settings")
    return dict(zip(names, (str(folder), how, sorted(due), last, act, settings), strict=True))


def together(count: int, *jobs: dict[str, object]) -> None:
    """So many processes, which do the jobs one after another; they must end well.

    Where the C library ends one of them because its heap is damaged, the same command goes on, as behind any kill. That
    was seen once, in fsdp over gloo, and not again in 22 minutes of such phases, under valgrind or an address sanitizer
    (dev/LOG.md, 2026-11-28).
    """
    codes = forked(count, JOBS, jobs=jobs, conftest=CONFTEST)
    if -signal.SIGABRT in codes:
        warnings.warn(UserWarning(f"a process was aborted: {codes}"), stacklevel=2)
        codes = forked(count, JOBS, jobs=jobs, conftest=CONFTEST)
    assert codes == [0] * count


def forked(count: int, work: str, **scope: object) -> list[int | None]:
    """The exit codes of so many processes of one command; None for one that does not end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        scope |= {"count": count, "port": free.getsockname()[1], "common": COMMON, "work": work}
    begun = [PROCESSES.Process(target=exec, args=(FORKED, scope | {"rank": rank})) for rank in range(count)]
    try:
        for process in begun:
            process.start()
        for process in begun:
            process.join(SECONDS)
        return [process.exitcode for process in begun]
    finally:
        for process in begun:
            process.kill()


@dataclass
class Launched:
    """A phase under torchrun, the same command each time but for what happens on the way."""

    count: int
    script: Path

    def __call__(self, **job: object) -> int:
        """The launcher's exit code; it must end in a bounded time, however its processes do."""
        self.script.write_text(LAUNCHED)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.count}"]
        arguments = [self.script, json.dumps(COMMON), json.dumps(job | {"conftest": str(CONFTEST)})]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([*launcher, *arguments], timeout=SECONDS, env=environment, check=False).returncode


def curves(folder: Path) -> dict[str, list[float]]:
    """What each step measured, by name."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 12))
    names = ("loss_nats", "gradient_norm", "held_out_a_nats", "tokens", "block_efficiency", "block_efficiency_b")
    return {name: [row[name] for row in rows if name in row] for name in names}


def assert_same(one: Path, other: Path, optimizer: str = "adamw") -> None:
    """The same curve: to a few last bits under AdamW.

    Muon orthogonalises in bf16, where a last bit more or less in a sum grows: it is as far off (loss 4e-5, gradient
    norm 9e-4 of itself) in one process that splits its batches into micro-batches of two. Block efficiency, of seven
    short texts, came out 1.3e-4 of itself apart on one CPU.
    """
    found, wanted = curves(one), curves(other)
    assert len(wanted["held_out_a_nats"]) == len(wanted["block_efficiency"]) >= 3
    for name, values in wanted.items():
        near = 1e-6 if optimizer == "adamw" else {"gradient_norm": 1e-2, "block_efficiency": 2e-4}.get(name, 1e-4)
        assert found[name] == pytest.approx(values, rel=near), name


def assert_saved(folder: Path) -> None:
    """What the main process can save after training is what the last checkpoint holds."""
    kept = load_file(folder / "checkpoint-00000011/model.safetensors")
    saved = load_file(folder / "model/model.safetensors")
    assert kept.keys() == saved.keys()
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
    assert json.loads((folder / "model/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


@pytest.fixture
def make_phase(make_phase, make_measure):
    """A phase that is measured, as those of the other processes are."""

    def build(*arguments, **settings):
        phase = make_phase(*arguments, **settings)
        phase.measure = make_measure()
        return phase

    return build


# Five sequences for two processes: one of them has a row without labels.
WAYS = {
    "ddp": {"optimizer": "adamw", "micro_batch_size": 2, "weight_decay": 0.1},
    "fsdp": {"optimizer": "adamw", "micro_batch_size": 2, "weight_decay": 0.1},
    "fsdp, untied": {"optimizer": "adamw", "tied": False},
    "fsdp, recomputed": {"optimizer": "adamw", "activation_checkpointing": True},
    "ddp, live": {"optimizer": "adamw", "objective": "forward_kl", "micro_batch_size": 2, "teacher_fraction": 0.6},
    "fsdp, live": {"optimizer": "adamw", "objective": {"total_variation": 0.5, "forward_kl": 0.5}},
    "ddp, muon": {"optimizer": "muon"},
    "fsdp, muon": {"optimizer": "muon"},
}


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(make_phase, make_model, tmp_path):
    together(2, *(job(tmp_path / way, way.partition(",")[0], **settings) for way, settings in WAYS.items()))
    for way, settings in WAYS.items():
        plain = settings | {"activation_checkpointing": False, "micro_batch_size": None}
        model = make_model(tied=plain.pop("tied", True))
        train(make_phase(tmp_path / "one" / way, model, **plain))
        assert_same(tmp_path / way, tmp_path / "one" / way, settings["optimizer"])
        assert_saved(tmp_path / way)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pretrain keeps")
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_keep_the_draft_that_one_keeps(make_phase, tmp_path, how):
    """Where the rate is so high that the last draft is not the best."""
    settings = {"optimizer": "adamw", "keep": "best", "held_out_every_tokens": 1, "learning_rate": 0.3}
    alone = make_phase(tmp_path / "one", **settings)
    progress = train(alone)
    assert 0 < progress.best_step < progress.step
    together(2, job(tmp_path / "two", how, **settings))
    assert checkpoints(tmp_path / "two") == [progress.best_step, 11]
    kept, saved = dict(alone.model.named_parameters()), load_file(tmp_path / "two/model/model.safetensors")
    assert all(torch.allclose(kept[name], saved[name], rtol=1e-3, atol=1e-4) for name in saved)


MUON = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from fastdraft.train import parallel

def steps(laid):
    torch.manual_seed(3)
    weight = torch.nn.Parameter(laid(torch.randn(7, 5)))
    muon = torch.optim.Muon([weight], lr=0.02, weight_decay=0.1)
    muon.register_step_pre_hook(parallel.gather_matrices)
    for _ in range(3):
        weight.grad = laid(torch.randn(7, 5))
        muon.step()
        momentum = muon.state[weight]["momentum_buffer"]
        muon.state[weight]["momentum_buffer"] = laid(parallel.whole(momentum))  # as a checkpoint lays it
    return parallel.whole(weight.detach())

mesh = init_device_mesh("cpu", (count,))
assert torch.equal(steps(lambda whole: distribute_tensor(whole, mesh, [Shard(0)])), steps(lambda whole: whole))
"""


def test_muon_orthogonalises_whole_matrices():
    """Torch would orthogonalise shards in pieces, in bf16, and round otherwise."""
    assert forked(2, MUON) == [0, 0]


LED = """
from fastdraft.system.errors import MainProcessFailed

assert processes.led(lambda: [rank, "said"]) == [0, "said"]
assert processes.summed(rank + 1, 0.5) == (3.0, 1.0)
assert processes.any_of(rank == 1, False) == (True, False)
for failure, heard in ((ValueError, MainProcessFailed), (Stopped, Stopped), (KeyboardInterrupt, Stopped)):
    def fail():
        raise failure("why")
    try:
        processes.led(fail)
        raise AssertionError("nothing was raised")
    except (failure if rank == 0 else heard):
        pass
"""


def test_the_main_process_leads():
    assert forked(2, LED) == [0, 0]


EACH = pytest.mark.parametrize(("how", "optimizer"), [("ddp", "adamw"), ("fsdp", "adamw"), ("fsdp", "muon")])


@pytest.mark.slow
@EACH
def test_a_checkpoint_of_two_goes_on_in_one_and_in_four(make_phase, tmp_path, how, optimizer):
    """Four processes have five sequences: three of them a row without labels."""
    train(make_phase(tmp_path / "whole", optimizer=optimizer))
    one, four = tmp_path / "one", tmp_path / "four"
    begun = [job(folder, how, due={2, 4}, last=7, act="away", optimizer=optimizer) for folder in (one, four)]
    together(2, *begun)
    assert checkpoints(one) == checkpoints(four) == [2, 4]
    train(make_phase(one, optimizer=optimizer))
    assert_same(one, tmp_path / "whole", optimizer)
    together(4, job(four, how, optimizer=optimizer))
    assert_same(four, tmp_path / "whole", optimizer)


@pytest.mark.slow
@EACH
def test_a_checkpoint_of_one_goes_on_in_two(make_phase, interrupted, tmp_path, how, optimizer):
    train(make_phase(tmp_path / "whole", optimizer=optimizer))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupted(make_phase(tmp_path / "two", optimizer=optimizer), {3}, 5, stop))
    together(2, job(tmp_path / "two", how, optimizer=optimizer))
    assert_same(tmp_path / "two", tmp_path / "whole", optimizer)


@pytest.mark.slow
def test_kill_9_of_one_of_two_ends_the_launcher_and_the_same_command_goes_on(make_phase, tmp_path):
    train(make_phase(tmp_path / "whole", optimizer="adamw"))
    launched, folder = Launched(2, tmp_path / "train.py"), tmp_path / "killed"
    codes = [launched(**job(folder, "ddp", {3, 6}, last, "kill", optimizer="adamw")) for last in (5, 8, -1)]
    assert codes == [1, 1, 0]
    assert_same(folder, tmp_path / "whole")
    assert not list(folder.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_kill_9_of_one_of_two_ends_the_other_without_a_launcher(make_phase, tmp_path, how):
    """Over gloo, whose connections close; NCCL's watchdog, or the launcher, ends the others elsewhere."""
    train(make_phase(tmp_path / "whole", optimizer="adamw"))
    for last in (5, 8):
        jobs = [job(tmp_path / "killed", how, {3, 6}, last, "kill", optimizer="adamw")]
        assert forked(2, JOBS, jobs=jobs, conftest=CONFTEST) == [1, -signal.SIGKILL]
    together(2, job(tmp_path / "killed", how, optimizer="adamw"))
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_sigterm_to_one_of_two_ends_both_after_a_checkpoint(make_phase, tmp_path, how):
    train(make_phase(tmp_path / "whole", optimizer="adamw"))
    together(2, job(tmp_path / "stopped", how, last=5, act="term", optimizer="adamw"))
    assert checkpoints(tmp_path / "stopped") == [5]
    together(2, job(tmp_path / "stopped", how, optimizer="adamw"))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_sigterm_to_one_process_ends_it_after_a_checkpoint(make_phase, interrupted, tmp_path):
    train(make_phase(tmp_path / "whole"))
    folder = tmp_path / "stopped"
    phase = interrupted(make_phase(folder), set(), 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        train(phase)
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoints(folder) == [5]
    train(make_phase(folder))
    assert curves(folder) == curves(tmp_path / "whole")
