"""Trackers get the metrics of each step once. A missing package is reported before training."""

import json
import sys
from functools import partial
from importlib.util import find_spec

import pytest

from fastdraft.system.errors import MissingExtra
from fastdraft.train import trackers
from fastdraft.train.loop import train


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_the_error_for_a_missing_package_names_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"{name}.*\n  do: pip install 'fastdraft\[{name}\]'"):
        trackers.opened([name], "run", tmp_path, 0)


def test_the_command_reports_a_missing_package_before_any_work(tiny, fastdraft):
    if find_spec("trackio"):
        pytest.skip("the package trackio is installed")
    ended = fastdraft("run", "recipe.yaml", "trackers=[trackio]")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "  do: pip install 'fastdraft[trackio]'"
    assert not (tiny / "runs").exists()


def test_without_trackers_nothing_is_opened(tmp_path):
    assert trackers.opened([], "run", tmp_path, 0) == []


def test_a_tracker_gets_the_numbers_of_a_row():
    row = {"step": 3, "loss_nats": None, "skipped": "loss nan", "tokens": 0, "learning_rate": 0.5}
    assert trackers.numbers_of(row) == {"tokens": 0, "learning_rate": 0.5}


def test_the_identity_depends_on_the_folder_and_the_key_of_the_stage(tmp_path):
    folder = tmp_path / "pretrain"
    folder.mkdir()
    identities = [trackers._identity(folder), trackers._identity(tmp_path / "continue")]
    for key in ("a", "b"):
        (folder / "key").write_text(key)
        identities.append(trackers._identity(folder))
    assert len(set(identities)) == 4
    assert identities[-1] == trackers._identity(folder)


def test_tensorboard_has_each_step_once_after_an_interruption(make_phase, train_until, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "pretrain"
    first, resumed = make_phase(folder), make_phase(folder)
    first.trackers = resumed.trackers = partial(trackers.opened, ["tensorboard"], "run", folder)
    train_until(first, 7, checkpoints={4})
    train(resumed)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "pretrain")).Reload()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in events.Scalars("loss_nats")] == list(range(1, 12))
    losses = [event.value for event in events.Scalars("loss_nats")]
    assert losses == pytest.approx([row["loss_nats"] for row in rows], rel=1e-6)
    assert "held_out_a_nats" in events.Tags()["scalars"]
