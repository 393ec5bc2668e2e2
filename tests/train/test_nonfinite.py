"""Non-finite and exploded losses: the batch is named, or skipped if the recipe says so. Out of memory: a remedy."""

import json
import math
import multiprocessing
import re
from pathlib import Path

import pytest
import torch

from fastdraft.data.order import Place
from fastdraft.system.errors import NonFiniteLoss, OutOfMemory
from fastdraft.train import nonfinite
from fastdraft.train.checkpoint import Progress
from fastdraft.train.loop import train

PROCESSES = multiprocessing.get_context("forkserver")
CONFTEST = Path(__file__).with_name("conftest.py")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float | None]:
    return [line["loss_nats"] for line in lines(folder)]


@pytest.mark.parametrize(
    ("loss", "norm", "problem"),
    [
        (3.0, 1.0, None),
        (math.nan, 1.0, "loss nan"),
        (-math.inf, 1.0, "loss -inf"),
        (3.0, math.inf, "gradient_norm inf"),
        (34.3, 1.0, None),
        (34.4, 1.0, "loss 34.4 above 34.3 (10 times uniform guessing)"),
    ],
)
def test_the_problem_of_a_step(loss, norm, problem):
    """ln 31 = 3.434"""
    assert nonfinite.step_problem(loss, norm, 31) == problem


@pytest.mark.parametrize("weight", [0.01, 20.0])
def test_the_limit_of_a_weighted_loss_is_weighted(make_phase, tmp_path, weight):
    from fastdraft.train.objectives import objective

    phase = make_phase(tmp_path, objective={"cross_entropy": weight})
    phase.objective = objective(phase.part, None)
    train(phase)
    assert losses(tmp_path)[0] == pytest.approx(weight * math.log(31), rel=0.1)
    limit = 10 * weight * math.log(31)
    assert nonfinite.step_problem(0.99 * limit, 1.0, 31, weight) is None
    assert "10 times uniform guessing" in nonfinite.step_problem(1.01 * limit, 1.0, 31, weight)


def test_the_error_names_the_sequences_of_the_batch():
    places = [Place("code", row) for row in range(10)] + [Place("text", 3)]
    error = nonfinite.nonfinite_error("pretrain", 7, "loss nan", places, Path("run/pretrain"))
    assert str(error).splitlines()[0] == (
        "pretrain: loss nan at step 7, on code rows 0, 1, 2, 3, 4, 5, 6, 7 and 2 more, text rows 3"
    )
    assert "pretrain.on_nonfinite=skip" in str(error)


def spoil(phase, steps, value=math.nan):
    """The phase with NaN gradients at these steps."""
    original, count = phase.mixture.next_batch, iter(range(1, 99))
    spoiled = {"now": False}

    def next_batch(sequences, portion):
        spoiled["now"] = next(count) in steps
        return original(sequences, portion)

    phase.mixture.next_batch = next_batch
    phase.model.model.norm.weight.register_hook(lambda gradient: gradient * value if spoiled["now"] else gradient)
    return phase


def test_a_bad_batch_is_named_by_its_sequences(make_phase, tmp_path):
    clean = make_phase(tmp_path / "clean")
    for _ in range(5):
        batch = clean.mixture.next_batch(5)
    with pytest.raises(NonFiniteLoss, match=r"pretrain: gradient_norm nan at step 5, on a rows") as raised:
        train(spoil(make_phase(tmp_path), {5}))
    named = dict(re.findall(r"(\w) rows ([\d, ]*\d)", str(raised.value).splitlines()[0]))
    expected: dict[str, list[int]] = {}
    for place in batch.places:
        expected.setdefault(place.source, []).append(place.row)
    assert {source: [int(row) for row in rows.split(", ")] for source, rows in named.items()} == expected


def test_on_nonfinite_skip_skips_and_counts_bad_batches(make_phase, tmp_path):
    phase = spoil(make_phase(tmp_path, on_nonfinite="skip", checkpoint_seconds=10_000), {2, 5})
    with pytest.warns(UserWarning, match="pretrain skipped 2 of 11 steps"):
        progress = train(phase)
    metrics = lines(tmp_path)
    assert [line["step"] for line in metrics if "skipped" in line] == [2, 5]
    assert [line["loss_nats"] is None for line in metrics] == ["skipped" in line for line in metrics]
    assert progress.skipped == 2
    assert progress.tokens == metrics[-1]["tokens"]
    assert all(torch.isfinite(p).all() for p in phase.model.parameters())
    again = make_phase(tmp_path, on_nonfinite="skip")
    with pytest.warns(UserWarning, match="pretrain skipped 2 of 11 steps"):
        assert train(again) == progress


def test_a_stopped_phase_resumes_with_a_different_on_nonfinite(make_phase, interrupted, tmp_path):
    """on_nonfinite is not part of a stage's key, so the phase resumes from its checkpoint and skips the bad batch."""
    with pytest.raises(NonFiniteLoss):
        train(interrupted(spoil(make_phase(tmp_path), {5}), {3}, -1, None))
    assert len(lines(tmp_path)) == 4
    with pytest.warns(UserWarning, match="skipped 1 of 11"):
        train(spoil(make_phase(tmp_path, on_nonfinite="skip"), {5 - 3}))
    with pytest.warns(UserWarning, match="skipped 1 of 11"):
        train(spoil(make_phase(tmp_path / "whole", on_nonfinite="skip"), {5}))
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_too_many_consecutive_skips_stop_the_training(make_phase, tmp_path):
    phase = make_phase(tmp_path, train_tokens=40 * 5 * 7, on_nonfinite="skip")
    with pytest.raises(NonFiniteLoss, match="at step 14"):
        train(spoil(phase, set(range(4, 99))))
    assert len(lines(tmp_path)) == 13


def test_checkpoints_without_a_count_have_no_skipped_steps():
    assert Progress(step=1, tokens=2, position=(3,), seconds=4.0).skipped == 0


TRAIN = """
import importlib.util, json, resource, sys
import torch
from pathlib import Path
from fastdraft.system.errors import UserError
from fastdraft.train.loop import train

spec = importlib.util.spec_from_file_location("small", conftest)
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
torch.set_num_threads(1)
torch.manual_seed(1)

def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + bytes_left
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

actions = {"": lambda: None, "exit": sys.exit, "limit memory": limit_memory}
small.VOCABULARY = 4099  # logits of 57 MB
settings |= {"batch_size": 500, "train_tokens": 4 * 500 * 7, "head_chunk_tokens": 65_536, "optimizer": "adamw"}
phase = small.small_phase(Path(folder), **settings)
phase = small.interrupt(phase, {2}, 3, actions[action])
try:
    train(phase)
except UserError as error:
    Path(folder, "error").write_text(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
"""


def train_in_process(folder: Path, action: str = "", **settings: object) -> int | None:
    """The exit code of a process that takes four steps of 500 sequences, with an action before the third."""
    scope = {"conftest": CONFTEST, "folder": str(folder), "action": action, "settings": settings}
    process = PROCESSES.Process(target=exec, args=(TRAIN, scope | {"bytes_left": 10_000_000}))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.slow
def test_the_remedy_for_too_little_memory_helps(tmp_path):
    """Following the named micro_batch_size repeatedly leads to one that fits."""
    whole, scarce = tmp_path / "whole", tmp_path / "scarce"
    assert train_in_process(whole) == train_in_process(scarce, "exit") == 0
    assert train_in_process(scarce, "limit memory") == 2
    error = (scarce / "error").read_text()
    assert error.startswith("OutOfMemory: pretrain: no memory for a micro-batch of 500 sequences of 7 tokens"), error
    code, sequences = 2, 500
    while code == 2 and sequences > 15:
        (named,) = re.findall(r"do: set pretrain.micro_batch_size=(\d+) ", (scarce / "error").read_text())
        assert int(named) == sequences // 2
        sequences = int(named)
        code = train_in_process(scarce, "limit memory", micro_batch_size=sequences)
    assert code == 0
    assert losses(scarce) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("error", "out_of_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_out_of_memory_errors_are_explained(error, out_of_memory):
    kind, message = (OutOfMemory, "8 sequences of 5") if out_of_memory else (RuntimeError, "shapes")
    with pytest.raises(kind, match=message):
        with nonfinite.explain_out_of_memory("align", 8, 5):
            raise error


def test_the_remedy_for_a_single_sequence_is_not_a_smaller_micro_batch():
    with pytest.raises(OutOfMemory, match=r"do: set align.activation_checkpointing=true, or parallel=fsdp"):
        with nonfinite.explain_out_of_memory("align", 1, 4096):
            raise MemoryError
