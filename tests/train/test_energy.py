"""A phase that was stopped goes on with its energy as with its time: that of the steps which its draft has seen."""

import json
import warnings

import pytest

from fastdraft.system import energy
from fastdraft.train.checkpoint import Progress
from fastdraft.train.loop import train


class Stop(Exception):
    """Not an error of ours."""


def stop():
    raise Stop


class Machine:
    """A CPU package that takes two joules for each step; it hears of them as a tracker does."""

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

    def falls_silent(self):
        (self._zone / "energy_uj").unlink()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return Machine(tmp_path / "powercap")


@pytest.fixture
def made_on(make_phase, machine, tmp_path):
    """A phase of 11 steps whose steps the machine feels."""

    def make(folder="run"):
        phase = make_phase(tmp_path / folder)
        phase.trackers = lambda _: [machine]
        return phase

    return make


def test_energy_counts_on_from_the_checkpoint(made_on, interrupted):
    """Stopped before step 6, of which 5 is undone: 4 steps and then 7; as many as without a stop."""
    assert train(made_on("whole")).joules == {"cpu": pytest.approx(22.0)}
    with pytest.raises(Stop):
        train(interrupted(made_on(), {2, 4}, 6, stop))
    assert train(made_on()).joules == {"cpu": pytest.approx(22.0)}
    assert train(made_on()).joules == {"cpu": pytest.approx(22.0)}, "it is done, and takes no more"


def test_energy_that_was_not_reported_for_a_while_is_not_known(made_on, interrupted, machine):
    with pytest.raises(Stop):
        train(interrupted(made_on(), {4}, 6, stop))
    machine.falls_silent()
    assert train(made_on()).joules == {"cpu": None}


def test_a_phase_that_began_before_energy_was_recorded_does_not_know_it(made_on, interrupted, tmp_path):
    with pytest.raises(Stop):
        train(interrupted(made_on(), {4}, 6, stop))
    state = tmp_path / "run" / "checkpoint-00000004" / "state.json"
    content = json.loads(state.read_text())
    assert content["progress"].pop("joules") == {"cpu": pytest.approx(8.0)}
    state.write_text(json.dumps(content))
    with warnings.catch_warnings(action="error"):
        assert train(made_on()).joules is None
    assert Progress(step=1, tokens=2, position=(3,), seconds=4.0).joules is None
