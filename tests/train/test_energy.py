"""A resumed phase counts the energy of its calls up to their last checkpoints, as it does their time."""

import json
import warnings

import pytest

from fastdraft.system import energy
from fastdraft.train.checkpoint import Progress
from fastdraft.train.loop import train


class Machine:
    """A simulated CPU package that takes two joules per step. It is a tracker, so that it is called for each step."""

    def __init__(self, folder):
        self._zone = folder / "intel-rapl:0"
        self._zone.mkdir(parents=True)
        self._microjoules = 13
        for file, content in (("name", "package-0"), ("max_energy_range_uj", 65_532_610_987), ("energy_uj", 13)):
            (self._zone / file).write_text(f"{content}\n")

    def log(self, *_row, **_step):
        self._microjoules += 2_000_000
        if (self._zone / "energy_uj").exists():
            (self._zone / "energy_uj").write_text(f"{self._microjoules}\n")

    def finish(self):
        """Nothing to close."""

    def remove_counter(self):
        (self._zone / "energy_uj").unlink()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return Machine(tmp_path / "powercap")


@pytest.fixture
def metered_phase(make_phase, machine, tmp_path):
    """A phase of 11 steps that take energy of the machine."""

    def make(folder="run"):
        phase = make_phase(tmp_path / folder)
        phase.trackers = lambda _: [machine]
        return phase

    return make


def test_energy_is_added_to_that_of_the_checkpoint(metered_phase, train_until):
    """Stopped before step 6, with checkpoint 4: 4 and then 7 steps count, as many as without a stop."""
    assert train(metered_phase("whole")).joules == {"cpu": pytest.approx(22.0)}
    train_until(metered_phase(), 6, checkpoints={2, 4})
    assert train(metered_phase()).joules == {"cpu": pytest.approx(22.0)}
    assert train(metered_phase()).joules == {"cpu": pytest.approx(22.0)}, "a finished phase takes no more energy"


def test_energy_is_unknown_if_the_counter_disappeared(metered_phase, train_until, machine):
    train_until(metered_phase(), 6, checkpoints={4})
    machine.remove_counter()
    assert train(metered_phase()).joules == {"cpu": None}


def test_energy_is_unknown_if_the_phase_began_before_it_was_recorded(metered_phase, train_until, tmp_path):
    train_until(metered_phase(), 6, checkpoints={4})
    state = tmp_path / "run" / "checkpoint-00000004" / "state.json"
    content = json.loads(state.read_text())
    assert content["progress"].pop("joules") == {"cpu": pytest.approx(8.0)}
    state.write_text(json.dumps(content))
    with warnings.catch_warnings(action="error"):
        assert train(metered_phase()).joules is None
    assert Progress(step=1, tokens=2, position=(3,), seconds=4.0).joules is None
