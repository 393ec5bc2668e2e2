"""`fastdraft play`: the packaged pair in the terminal, and errors."""

import re

import pytest

from fastdraft.config import TargetPart
from fastdraft.exporters.export_draft import accepted
from fastdraft.models import named_pairs
from fastdraft.play.open_pair import ENGINES


def test_the_packaged_draft_fits_the_packaged_target():
    engines = accepted(TargetPart(path="demo"), named_pairs.draft("demo"), tuple(ENGINES.values()))
    assert len(engines) >= 2


@pytest.mark.parametrize("temperature", [0, 0.6])
def test_the_terminal_shows_both_sides(fastdraft, temperature):
    arguments = ["--prompt", "def f(x):\n", "--tokens", "13", "--temperature", temperature]
    ended = fastdraft("play", "--terminal", *arguments)
    assert ended.code == 0, ended.err
    written = [int(count) for count in re.findall(r"\b(\d+) tokens in", ended.out)]
    assert len(written) == 2
    # A sampled text may end earlier.
    assert written == [13, 13] if temperature == 0 else max(written) <= 13
    assert "tokens per target forward" in ended.out
    assert ("The texts are equal, token for token." in " ".join(ended.out.split())) == (temperature == 0)


def test_a_draft_of_another_vocabulary_is_refused(tiny, fastdraft):
    ended = fastdraft("play", "demo", "target", "--terminal")
    assert ended.code == 2
    assert "fastdraft check demo" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "vllm"], "--engine: found vllm"),
        (["demo", "nowhere-at-all/x", "--terminal"], "nowhere-at-all"),
        (["--terminal", "--prompt", " "], "the prompt is empty"),
        (["--terminal", "--device", "moon"], "device: found moon"),
        (["--terminal", "--device", "meta"], "device: found meta"),
        (["--host", "999.1.1.1"], "cannot serve on 999.1.1.1"),
    ],
)
def test_invalid_arguments_are_refused(fastdraft, arguments, message):
    ended = fastdraft("play", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert "do: " in ended.err


def test_a_temperature_that_is_no_number_is_refused(fastdraft):
    """By typer from 0.29, by the request before."""
    ended = fastdraft("play", "--terminal", "--temperature", "nan")
    assert ended.code == 2
    assert "temperature" in ended.err
