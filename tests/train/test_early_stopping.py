"""Which draft a phase keeps and where it ends, by validation; the same after any interruption."""

import hashlib
import json
import warnings
from itertools import pairwise

import pytest
import torch

from fastdraft.maths.schedule import SCHEDULES
from fastdraft.system.errors import CheckpointError
from fastdraft.train import early_stopping
from fastdraft.train.checkpoint import Progress
from fastdraft.train.loop import train

VALIDATE_EVERY_STEP = {"held_out_every_tokens": 1}


def jumpy(model) -> dict[str, float]:
    """A pseudo-random block efficiency that depends on every bit of the weights."""
    content = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return {"block_efficiency": 1 + int(hashlib.sha256(content).hexdigest()[:8], 16) / 2**32}


def falling(model) -> dict[str, float]:
    """A block efficiency that falls with every step, so that the first draft is the best."""
    falling.value -= 0.01
    return {"block_efficiency": falling.value}


def phase_of(make_phase, folder, measure, **part):
    phase = make_phase(folder, **VALIDATE_EVERY_STEP | part)
    phase.measure = measure
    return phase


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def progress_at(step: int, **fields) -> Progress:
    return Progress(step, 100 * step, (step,), 0.0, **fields)


def test_the_first_of_equals_is_the_best(make_phase, tmp_path):
    part = make_phase(tmp_path, keep="best").part
    progress = early_stopping.after_validation(progress_at(3), 1.5, part)
    assert (progress.best_step, progress.measures_since_best) == (3, 0)
    later = early_stopping.after_validation(progress_at(6, best_step=3, best_block_efficiency=1.5), 1.5, part)
    assert (later.best_step, later.measures_since_best, early_stopping.kept_step(later)) == (3, 1, 3)
    assert (
        early_stopping.after_validation(progress_at(6, best_step=3, best_block_efficiency=1.5), 1.51, part).best_step
        == 6
    )


def test_the_last_draft_is_kept_by_default(make_phase, tmp_path):
    part = make_phase(tmp_path).part
    progress = early_stopping.after_validation(progress_at(3), 1.5, part)
    assert (progress.best_step, early_stopping.kept_step(progress)) == (0, 3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("fraction", "end"), [(0.4, 50), (0.0, 30), (0.75, 100), (1.0, 100)])
def test_the_learning_rate_decays_before_an_early_end(make_phase, tmp_path, schedule, fraction, end):
    """Patience ends at step 30 of 100: the decay begins there, unless it has begun before."""
    part = make_phase(tmp_path, early_stopping_patience=2, decay_fraction=fraction).part
    once = early_stopping.after_validation(progress_at(29, best_block_efficiency=2.0), 1.9, part)
    assert once.end_step is None
    before = progress_at(30, best_block_efficiency=2.0, measures_since_best=1)
    twice = early_stopping.after_validation(before, 1.9, part)
    total = early_stopping.steps_with_early_stop(twice, 100)
    assert total == end
    factors = [SCHEDULES[schedule](step, total, 2, fraction) for step in range(30, total)]
    assert all(later < earlier for earlier, later in pairwise(factors))
    if end == 50:
        assert factors[0] == 1
        assert 0 < factors[-1] < 0.1


def test_keep_best_keeps_the_best_validated_draft(make_phase, tmp_path):
    phase = phase_of(make_phase, tmp_path, jumpy, keep="best")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress = train(phase)
    measured = {row["step"]: row["block_efficiency"] for row in rows(tmp_path)}
    assert len(measured) == 11
    best = max(measured, key=measured.__getitem__)
    assert progress.best_step == best
    assert jumpy(phase.model)["block_efficiency"] == measured[best]
    expected = [f"pretrain keeps the draft of step {best} of 11, the best measured"] if best != 11 else []
    assert [str(warning.message) for warning in caught] == expected


def test_validation_does_not_change_the_losses(make_phase, make_model, tmp_path):
    train(make_phase(tmp_path / "plain", make_model(dropout=0.3)))
    phase = make_phase(tmp_path / "measured", make_model(dropout=0.3))
    phase.measure = jumpy
    train(phase)
    losses = [[row["loss_nats"] for row in rows(tmp_path / name)] for name in ("plain", "measured")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("stops", [(2,), (6, 8), (4, 5, 7)])
@pytest.mark.filterwarnings("ignore:pretrain (keeps|ended)")
def test_a_resumed_phase_keeps_the_same_draft(make_phase, train_until, tmp_path, keep, stops):
    """Steps between the last checkpoint and the stop are validated again."""
    part = {"keep": keep, "early_stopping_patience": 4}
    whole = phase_of(make_phase, tmp_path / "whole", jumpy, **part)
    expected = train(whole)
    for step in stops:
        train_until(phase_of(make_phase, tmp_path / "stopped", jumpy, **part), step, checkpoints={3, 7})
    phase = phase_of(make_phase, tmp_path / "stopped", jumpy, **part)
    progress = train(phase)
    names = ("step", "best_step", "best_block_efficiency", "measures_since_best", "end_step")
    assert [getattr(progress, name) for name in names] == [getattr(expected, name) for name in names]
    assert all(map(torch.equal, phase.model.parameters(), whole.model.parameters()))


@pytest.mark.filterwarnings("ignore:pretrain (keeps|ended)")
def test_a_phase_whose_block_efficiency_only_falls_ends_early_and_keeps_its_first_draft(make_phase, tmp_path):
    falling.value = 2.0
    phase = phase_of(make_phase, tmp_path, falling, keep="best", early_stopping_patience=3, decay_fraction=0.2)
    progress = train(phase)
    assert (progress.step, progress.best_step, phase.planned_steps) == (5, 1, 11)
    rates = [row["learning_rate"] for row in rows(tmp_path)]
    assert rates[3] >= rates[4] > 0
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-00000001", "checkpoint-00000005"]


def test_the_best_checkpoint_is_kept_with_the_last_two_and_named_if_it_is_damaged(make_phase, interrupted, tmp_path):
    falling.value = 2.0
    phase = phase_of(make_phase, tmp_path, falling, keep="best")
    with pytest.warns(UserWarning, match="keeps the draft of step 1 of 11"):
        train(interrupted(phase, {2, 4, 6, 8}, -1, None))
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-00000001", "checkpoint-00000008", "checkpoint-00000011"]
    (tmp_path / "checkpoint-00000001" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/checkpoint-00000001, the best of .* is damaged .*\n  do: "):
        train(phase_of(make_phase, tmp_path, falling, keep="best"))
