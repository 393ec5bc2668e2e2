"""What goes wrong in a step: named by its batch, left out if the recipe says so; where memory ends, a remedy."""

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
    ("loss", "norm", "wrong"),
    [
        (3.0, 1.0, None),
        (math.nan, 1.0, "loss nan"),
        (-math.inf, 1.0, "loss -inf"),
        (3.0, math.inf, "gradient_norm inf"),
        (34.3, 1.0, None),
        (34.4, 1.0, "loss 34.4, above 34.3, 10 times that of guessing,"),
    ],
)
def test_what_is_wrong_with_a_step(loss, norm, wrong):
    """ln 31 = 3.434"""
    assert nonfinite.fault(loss, norm, 31) == wrong


@pytest.mark.parametrize("weight", [0.01, 20.0])
def test_a_weighted_loss_explodes_where_the_loss_does(make_phase, tmp_path, weight):
    from fastdraft.train.objectives import objective

    phase = make_phase(tmp_path, objective={"cross_entropy": weight})
    phase.objective = objective(phase.part, None)
    train(phase)
    assert losses(tmp_path)[0] == pytest.approx(weight * math.log(31), rel=0.1)
    most = 10 * weight * math.log(31)
    assert nonfinite.fault(0.99 * most, 1.0, 31, weight) is None
    assert "10 times that of guessing" in nonfinite.fault(1.01 * most, 1.0, 31, weight)


def test_a_step_not_taken_names_its_rows():
    places = [Place("code", row) for row in range(10)] + [Place("text", 3)]
    error = nonfinite.not_taken("pretrain", 7, "loss nan", places, Path("run/pretrain"))
    assert str(error).splitlines()[0] == (
        "pretrain came to loss nan at step 7, on code rows 0, 1, 2, 3, 4, 5, 6, 7 and 2 more, text rows 3"
    )
    assert "pretrain.on_nonfinite=skip" in str(error)


def spoil(phase, steps, value=math.nan):
    """The gradients of some steps are no numbers."""
    take, count = phase.mixture.next_batch, iter(range(1, 99))
    spoiled = {"now": False}

    def next_batch(sequences, portion):
        spoiled["now"] = next(count) in steps
        return take(sequences, portion)

    phase.mixture.next_batch = next_batch
    phase.model.model.norm.weight.register_hook(lambda gradient: gradient * value if spoiled["now"] else gradient)
    return phase


def test_a_bad_batch_is_named_by_its_rows(make_phase, tmp_path):
    clean = make_phase(tmp_path / "clean")
    for _ in range(5):
        batch = clean.mixture.next_batch(5)
    with pytest.raises(NonFiniteLoss, match=r"pretrain came to gradient_norm nan at step 5, on a rows") as raised:
        train(spoil(make_phase(tmp_path), {5}))
    named = dict(re.findall(r"(\w) rows ([\d, ]*\d)", str(raised.value).splitlines()[0]))
    wanted: dict[str, list[int]] = {}
    for place in batch.places:
        wanted.setdefault(place.source, []).append(place.row)
    assert {source: [int(row) for row in rows.split(", ")] for source, rows in named.items()} == wanted


def test_bad_batches_are_skipped_and_counted_if_the_recipe_reports_so(make_phase, tmp_path):
    phase = spoil(make_phase(tmp_path, on_nonfinite="skip", checkpoint_seconds=10_000), {2, 5})
    with pytest.warns(UserWarning, match="pretrain skipped 2 of 11 steps"):
        progress = train(phase)
    found = lines(tmp_path)
    assert [line["step"] for line in found if "skipped" in line] == [2, 5]
    assert [line["loss_nats"] is None for line in found] == ["skipped" in line for line in found]
    assert progress.skipped == 2
    assert progress.tokens == sum(line["tokens"] or 0 for line in found[-1:])
    assert all(torch.isfinite(p).all() for p in phase.model.parameters())
    again = make_phase(tmp_path, on_nonfinite="skip")
    with pytest.warns(UserWarning, match="pretrain skipped 2 of 11 steps"):
        assert train(again) == progress


def test_what_has_stopped_goes_on_with_another_word(make_phase, interrupted, tmp_path):
    """on_nonfinite is no part of a phase's key: the same folder, the checkpoint before, the bad batch left out."""
    with pytest.raises(NonFiniteLoss):
        train(interrupted(spoil(make_phase(tmp_path), {5}), {3}, -1, None))
    assert len(lines(tmp_path)) == 4
    with pytest.warns(UserWarning, match="skipped 1 of 11"):
        train(spoil(make_phase(tmp_path, on_nonfinite="skip"), {5 - 3}))
    with pytest.warns(UserWarning, match="skipped 1 of 11"):
        train(spoil(make_phase(tmp_path / "whole", on_nonfinite="skip"), {5}))
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_model_that_is_lost_stops_all_the_same(make_phase, tmp_path):
    phase = make_phase(tmp_path, train_tokens=40 * 5 * 7, on_nonfinite="skip")
    with pytest.raises(NonFiniteLoss, match="at step 14"):
        train(spoil(phase, set(range(4, 99))))
    assert len(lines(tmp_path)) == 13


def test_old_checkpoints_know_of_no_skipped_steps():
    assert Progress(step=1, tokens=2, position=(3,), seconds=4.0).skipped == 0


LACKING = """
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

def lack():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + bytes_left
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

acts = {"": lambda: None, "leave": sys.exit, "lack": lack}
small.VOCABULARY = 4099  # logits of 57 MB
settings |= {"batch_size": 500, "train_tokens": 4 * 500 * 7, "head_chunk_tokens": 10**6, "optimizer": "adamw"}
phase = small.small_phase(Path(folder), **settings)
phase = small.interrupt(phase, {2}, 3, acts[act])
try:
    train(phase)
except UserError as error:
    Path(folder, "error").write_text(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
"""


def train_apart(folder: Path, act: str = "", **settings: object) -> int | None:
    """Four steps of 500 sequences in a process of its own; before the third it leaves, or memory becomes scarce."""
    scope = {"conftest": CONFTEST, "folder": str(folder), "act": act, "bytes_left": 10_000_000, "settings": settings}
    process = PROCESSES.Process(target=exec, args=(LACKING, scope))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.slow
def test_what_a_lack_of_memory_reports_helps(tmp_path):
    """The system refuses; the size that is named, tried again and again, ends in one that fits."""
    whole, scarce = tmp_path / "whole", tmp_path / "scarce"
    assert train_apart(whole) == train_apart(scarce, "leave") == 0
    assert train_apart(scarce, "lack") == 2
    said = (scarce / "error").read_text()
    assert said.startswith("OutOfMemory: pretrain: no memory for 500 sequences of 7 tokens at once"), said
    code, sequences = 2, 500
    while code == 2 and sequences > 15:
        (found,) = re.findall(r"do: set pretrain.micro_batch_size=(\d+) ", (scarce / "error").read_text())
        assert int(found) == sequences // 2
        sequences = int(found)
        code = train_apart(scarce, "lack", micro_batch_size=sequences)
    assert code == 0
    assert losses(scarce) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_a_lack_of_memory_is_named_so(error, named):
    with pytest.raises(OutOfMemory if named else RuntimeError, match="8 sequences of 5" if named else "shapes"):
        with nonfinite.out_of_memory_explained("align", 8, 5):
            raise error


def test_where_one_sequence_is_too_much_there_are_other_ways():
    with pytest.raises(OutOfMemory, match=r"do: set align.activation_checkpointing=true, or parallel=fsdp"):
        with nonfinite.out_of_memory_explained("align", 1, 4096):
            raise MemoryError
