"""An interrupted phase resumes from its last undamaged checkpoint and takes the same steps, bit for bit."""

import json
import multiprocessing
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdraft.system.errors import CheckpointError, DiskFull
from fastdraft.system.stage_files import digest_of
from fastdraft.train import checkpoint
from fastdraft.train import optimizers as optimizers_module
from fastdraft.train.loop import train

TIMING = ("seconds", "tokens_per_second", "mfu", "memory_bytes")


def steps(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint-00000011" / "model.safetensors")


def assert_same_end(one: Path, other: Path) -> None:
    assert steps(one) == steps(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


SETTINGS = [
    {"precision": "fp32", "optimizer": "muon"},
    {"precision": "bf16", "optimizer": "muon", "micro_batch_size": 2},
    {"precision": "bf16", "optimizer": "adamw"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("stops", [(1,), (5, 9), (2, 3, 11), (7, 7)])
def test_resuming_equals_no_interruption(make_phase, train_until, make_model, tmp_path, settings, stops):
    """Dropout is on, so the state of the random generator must be restored too."""
    train(make_phase(tmp_path / "whole", make_model(dropout=0.2), **settings))
    for step in stops:
        torch.manual_seed(step)
        phase = make_phase(tmp_path / "stopped", make_model(dropout=0.2, seed=5), **settings)
        train_until(phase, step, checkpoints={2, 4, 6, 8})
        assert not list((tmp_path / "stopped").glob("*.fastdraft-part"))
    if list((tmp_path / "stopped").glob("checkpoint-*")):
        torch.manual_seed(99)
    train(make_phase(tmp_path / "stopped", make_model(dropout=0.2, seed=5), **settings))
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")


def test_a_finished_phase_is_not_trained_again(make_phase, make_model, tmp_path):
    first = train(make_phase(tmp_path))
    before = steps(tmp_path)
    other = make_phase(tmp_path, make_model(seed=6))
    assert train(other) == first
    assert steps(tmp_path) == before
    assert all(torch.equal(p, weights(tmp_path)[name]) for name, p in other.model.named_parameters())


# A process forked from the forkserver of tests/conftest.py, which has imported torch, trains and kills itself.
PROCESSES = multiprocessing.get_context("forkserver")
TRAIN_AND_KILL = """
import importlib.util, os, signal, sys
from pathlib import Path
import torch
from fastdraft.train.loop import train

spec = importlib.util.spec_from_file_location("small", conftest)
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
torch.set_num_threads(1)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_on_rename(event, arguments):
    if event == "os.rename" and "checkpoint" in str(arguments[0]):
        kill()

if at == "rename":
    sys.addaudithook(kill_on_rename)
phase = small.small_phase(Path(folder), small.small_model(dropout=0.2), precision="bf16")
train(small.interrupt(phase, {2, 4, 6, 8}, at, kill))
"""


def train_and_kill(folder: Path, at: int | str) -> int | None:
    """The exit code of a process that kills itself before step `at`, or before the first `rename` of a checkpoint."""
    scope = {"conftest": Path(__file__).with_name("conftest.py"), "folder": str(folder), "at": at}
    process = PROCESSES.Process(target=exec, args=(TRAIN_AND_KILL, scope))
    process.start()
    process.join(120)
    return process.exitcode


def test_resuming_after_real_kills_equals_no_interruption(make_phase, make_model, tmp_path):
    train(make_phase(tmp_path / "whole", make_model(dropout=0.2), precision="bf16"))
    folder = tmp_path / "killed"
    assert [train_and_kill(folder, at) for at in (4, "rename", 9)] == [-signal.SIGKILL] * 3
    train(make_phase(folder, make_model(dropout=0.2), precision="bf16"))
    assert_same_end(folder, tmp_path / "whole")
    assert (
        sorted(
            p.name for p in (tmp_path / "killed").iterdir() if p.name.endswith((".fastdraft-part", ".fastdraft-old"))
        )
        == []
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "weights cut short": lambda folder: cut(folder / "model.safetensors"),
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "optimizer cut short": lambda folder: cut(folder / "optimizer.safetensors"),
    "optimizer gone": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "state gone": lambda folder: (folder / "state.json").unlink(),
    "state cut short": lambda folder: cut(folder / "state.json"),
    "state empty": lambda folder: (folder / "state.json").write_text("{}"),
    "state a list": lambda folder: (folder / "state.json").write_text("[]"),
    "state of zeros": lambda folder: (folder / "state.json").write_bytes(bytes(99)),
    "no digests": lambda folder: (folder / "state.json").write_text(
        json.dumps(json.loads((folder / "state.json").read_text()) | {"digests": {}})
    ),
    "no progress": lambda folder: (folder / "state.json").write_text(
        json.dumps(json.loads((folder / "state.json").read_text()) | {"progress": {"step": 4}})
    ),
    "brackets": lambda folder: (folder / "state.json").write_text("[" * 100_000),
    "nothing in it": lambda folder: [file.unlink() for file in folder.iterdir()],
}


def checkpoints(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


@pytest.fixture
def stopped(make_phase, train_until, tmp_path):
    """The folder of a phase stopped before step 7, with checkpoints 4 and 6."""
    train_until(make_phase(tmp_path / "stopped"), 7, checkpoints={2, 4, 6})
    assert checkpoints(tmp_path / "stopped") == [4, 6]
    return tmp_path / "stopped"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_skipped_with_a_warning(make_phase, stopped, tmp_path, damage):
    damage(stopped / "checkpoint-00000006")
    with pytest.warns(UserWarning, match=r"checkpoint-00000006 is damaged \("):
        train(make_phase(stopped))
    train(make_phase(tmp_path / "whole"))
    assert_same_end(stopped, tmp_path / "whole")


def test_a_damaged_checkpoint_does_not_displace_an_undamaged_one(make_phase, train_until, stopped):
    cut(stopped / "checkpoint-00000006" / "model.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        train_until(make_phase(stopped), 6, checkpoints={5})
    assert checkpoints(stopped) == [4, 5]


@pytest.mark.parametrize("version", [None, 0, checkpoint.VERSION + 1, "one"])
def test_a_checkpoint_of_another_version_is_refused(make_phase, stopped, version):
    """It is not called damaged, and the one before it is not used."""
    file = stopped / "checkpoint-00000006" / "state.json"
    state = json.loads(file.read_text()) | {"version": version}
    file.write_text(json.dumps({key: value for key, value in state.items() if value is not None}))
    with pytest.raises(CheckpointError, match=f"checkpoint-00000006 is of version {version or 0} .*, wanted version"):
        train(make_phase(stopped))


def test_training_stops_if_every_checkpoint_is_damaged(make_phase, stopped):
    for path in stopped.glob("checkpoint-*"):
        cut(path / "model.safetensors")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match=f"every checkpoint in {stopped} is damaged\n  do: remove {stopped}"),
    ):
        train(make_phase(stopped))


def test_a_kill_during_the_replacement_of_a_checkpoint_leaves_the_old_one(make_phase, stopped, tmp_path):
    newest = stopped / "checkpoint-00000006"
    newest.rename(stopped / "checkpoint-00000006.fastdraft-old")
    (stopped / "checkpoint-00000006.fastdraft-part").mkdir()
    (stopped / "checkpoint-00000009.fastdraft-part").mkdir()
    train(make_phase(stopped))
    train(make_phase(tmp_path / "whole"))
    assert_same_end(stopped, tmp_path / "whole")
    assert not [path for path in stopped.iterdir() if path.suffix in (".fastdraft-old", ".fastdraft-part")]


def test_metrics_survive_what_a_kill_or_a_full_disk_leaves_in_them(make_phase, stopped, tmp_path):
    """With lines of steps that run again, an incomplete line and garbage, each step has one line afterwards."""
    metrics = stopped / "metrics.jsonl"
    content = metrics.read_bytes()
    again = content.splitlines(keepends=True)[-1].replace(b'"step": 6', b'"step": 8')
    metrics.write_bytes(content + again + b'[1]\n{"step": "x"}\n{"loss": 1}\n\xff\x00\x00\n{"step": 7, "loss_n')
    train(make_phase(stopped))
    train(make_phase(tmp_path / "whole"))
    assert_same_end(stopped, tmp_path / "whole")


def test_a_full_disk_leaves_the_previous_checkpoint(make_phase, interrupted, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))

    folder = tmp_path / "stopped"
    phase = interrupted(make_phase(folder), {3, 6}, 6, fill)
    try:
        with pytest.raises(DiskFull, match=f"no space left while writing {folder}/checkpoint-00000006"):
            train(phase)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoints(folder) == [3]
    train(make_phase(folder))
    train(make_phase(tmp_path / "whole"))
    assert_same_end(folder, tmp_path / "whole")


@pytest.mark.parametrize("tied", [True, False])
def test_missing_weights_are_refused(make_phase, make_model, tmp_path, tied):
    """Only a tied output layer, which is not saved, may be absent."""
    phase = make_phase(tmp_path, make_model(tied=tied))
    train(phase)
    path = tmp_path / "checkpoint-00000011" / "model.safetensors"
    saved = load_file(path)
    assert ("lm_head.weight" in saved) != tied
    restored = make_model(seed=6, tied=tied)
    optimizers = optimizers_module.build(restored, phase.part, torch.bfloat16)
    assert checkpoint.restore(tmp_path, restored, optimizers).step == 11
    assert all(map(torch.equal, restored.parameters(), phase.model.parameters()))
    assert (restored.lm_head.weight is restored.model.embed_tokens.weight) == tied

    saved.pop("model.layers.1.mlp.up_proj.weight")
    save_file(saved, path)
    state = json.loads((path.parent / "state.json").read_text())
    state["digests"][path.name] = digest_of(path)
    (path.parent / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"1 weights differ.*up_proj.weight\n  do: remove"):
        checkpoint.restore(tmp_path, restored, optimizers)


def test_a_checkpoint_of_other_optimizers_is_refused(make_phase, tmp_path):
    train(make_phase(tmp_path))
    with pytest.raises(CheckpointError, match="optimizers adamw, muon, this phase uses adamw\n  do: remove"):
        train(make_phase(tmp_path, optimizer="adamw"))


def test_only_the_last_two_are_kept(make_phase, tmp_path):
    phase = make_phase(tmp_path)
    phase.part = phase.part.model_copy(update={"checkpoint_seconds": 0})
    train(phase)
    assert checkpoints(tmp_path) == [10, 11]
    assert not any(p.suffix == ".bin" for p in tmp_path.rglob("*"))


def test_the_folder_may_be_moved(make_phase, stopped, tmp_path):
    shutil.move(stopped, tmp_path / "elsewhere")
    train(make_phase(tmp_path / "elsewhere"))
    train(make_phase(tmp_path / "whole"))
    assert_same_end(tmp_path / "elsewhere", tmp_path / "whole")
    assert not stopped.exists()
