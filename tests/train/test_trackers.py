"""A tracker gets the rows of metrics.jsonl, each step once; one whose package is missing is named before any work."""

import json
import sys
from functools import partial
from importlib.util import find_spec

import pytest

from fastdraft.system.errors import MissingExtra
from fastdraft.train import trackers
from fastdraft.train.loop import train


class Stop(Exception):
    """Not an error of ours."""


def stop():
    raise Stop


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"{name} cannot be imported.*\n  do: pip install 'fastdraft\[{name}\]'"):
        trackers.opened([name], "run", tmp_path, 0)


def test_the_command_reports_it_before_any_work(tiny, fastdraft):
    if find_spec("trackio"):
        pytest.skip("the package trackio is installed")
    ended = fastdraft("run", "recipe.yaml", "trackers=[trackio]")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "  do: pip install 'fastdraft[trackio]'"
    assert not (tiny / "runs").exists()


def test_without_trackers_nothing_is_opened(tmp_path):
    assert trackers.opened([], "run", tmp_path, 0) == []


def test_a_row_is_its_numbers():
    row = {"step": 3, "loss_nats": None, "skipped": "loss nan", "tokens": 0, "learning_rate": 0.5}
    assert trackers.logged(row) == {"tokens": 0, "learning_rate": 0.5}


def test_an_identity_is_of_the_folder_and_what_is_made_in_it(tmp_path):
    folder = tmp_path / "pretrain"
    folder.mkdir()
    found = [trackers._identity(folder), trackers._identity(tmp_path / "continue")]
    for key in ("a", "b"):
        (folder / "key").write_text(key)
        found.append(trackers._identity(folder))
    assert len(set(found)) == 4
    assert found[-1] == trackers._identity(folder)


def test_tensorboard_has_each_step_once_also_after_a_stop(make_phase, interrupted, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "pretrain"
    for step in (7, -1):
        phase = interrupted(make_phase(folder), {4}, step, stop)
        phase.trackers = partial(trackers.opened, ["tensorboard"], "run", folder)
        if step > 0:
            with pytest.raises(Stop):
                train(phase)
        else:
            train(phase)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "pretrain")).Reload()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in events.Scalars("loss_nats")] == list(range(1, 12))
    losses = [event.value for event in events.Scalars("loss_nats")]
    assert losses == pytest.approx([row["loss_nats"] for row in rows], rel=1e-6)
    assert "held_out_a_nats" in events.Tags()["scalars"]
