"""`fastdraft search`: pilots of several depths and one size, their speed-up, and the best one written to the recipe."""

import json
import math
from pathlib import Path

import pytest
import yaml

from fastdraft.config import DraftPart
from fastdraft.config.resolve import resolve
from fastdraft.maths.acceptance import speedup
from fastdraft.models.pretrained import open_config
from fastdraft.models.shape import derive
from fastdraft.pipeline.pilots import Search, pilot_shapes
from fastdraft.pipeline.step_timers import TIMERS
from fastdraft.system.errors import ShapeError

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
BUDGET = "draft={hidden_size: 24, layers: 1}"
SEARCH = ["--pilots", "3", "--fraction", "0.5", "--engine", "transformers"]


def test_each_depth_is_as_wide_as_the_size_allows():
    recipe = resolve(DEMO, ["draft.params_millions=1.5"]).recipe
    found, config = pilot_shapes(recipe, 5), open_config(recipe.target)
    assert len(found) >= 5
    assert [shape.layers for shape in found] == sorted({shape.layers for shape in found})
    assert len({shape.hidden_size for shape in found}) == len(found)
    step = math.gcd(*(shape.hidden_size for shape in found))
    for shape in found:
        assert shape.parameters <= 1.5e6
        wider = DraftPart(hidden_size=shape.hidden_size + step, layers=shape.layers)
        assert derive(config, wider).parameters > 1.5e6


def test_a_size_with_too_few_depths():
    recipe = resolve(DEMO, ["draft.params_millions=0.3"]).recipe
    with pytest.raises(ShapeError, match=r"\d depths .* wanted 9\n.*draft.params_millions"):
        pilot_shapes(recipe, 9)


@pytest.mark.slow
def test_the_fastest_pilot_goes_into_the_recipe(tiny, fastdraft):
    path = tiny / "recipe.yaml"
    path.write_text("# kept\n" + path.read_text())
    ended = fastdraft("search", "recipe.yaml", BUDGET, "--plot", "depth.png", *SEARCH, "--json")
    assert ended.code == 0, ended.err
    found = Search.model_validate_json(ended.out)
    assert len(found.pilots) >= 3
    assert (tiny / "depth.png").read_bytes().startswith(b"\x89PNG")
    for pilot in found.pilots:
        assert {(served.task, served.temperature) for served in pilot.served} == {
            (task, at) for task in ("text", "rows") for at in (0.0, 1.0)
        }
        for served in pilot.served:
            gamma, tau = served.best_gamma, served.block_efficiency
            times = (pilot.step_seconds, found.target_seconds[1], found.target_seconds[gamma + 1])
            assert served.speedup == pytest.approx(speedup(tau, gamma, *times))
            assert served.low <= served.speedup <= served.high
        mean = math.prod(served.speedup for served in pilot.served) ** (1 / len(pilot.served))
        assert pilot.speedup == pytest.approx(mean)
    text = path.read_text()
    draft = yaml.safe_load(text)["draft"]
    assert text.startswith("# kept\n")
    assert (draft["hidden_size"], draft["layers"]) == (found.best.hidden_size, found.best.layers)


@pytest.mark.slow
def test_a_repeated_search_trains_nothing_again(tiny, fastdraft):
    """With --no-write the recipe stays as it is."""
    before = (tiny / "recipe.yaml").read_text()
    for _ in range(2):
        ended = fastdraft("search", "recipe.yaml", BUDGET, *SEARCH, "--no-write", "--json")
        assert ended.code == 0, ended.err
    assert (tiny / "recipe.yaml").read_text() == before
    stages = json.loads((tiny / "runs/tiny/manifest.json").read_text())["commands"][-1]["stages"]
    assert stages
    assert set(stages.values()) == {"already done"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fraction", "0"], "--fraction: found 0, wanted more than 0"),
        (["--engine", "abacus"], "--engine: found abacus, wanted one of openvino, transformers"),
        (["--plot", "depth.pdf"], "--plot: found depth.pdf, wanted a name that ends in .png or .svg"),
        (["--timed-target", "nowhere"], "--timed-target: no config.json in nowhere"),
        (["evaluate=null", "--engine", "transformers"], "a search trains and measures pilots"),
    ],
)
def test_invalid_arguments_are_refused(tiny, fastdraft, arguments, message):
    ended = fastdraft("search", "recipe.yaml", *arguments)
    assert (ended.code, message in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("engine", ["transformers", pytest.param("openvino", marks=pytest.mark.slow)])
def test_every_engine_times_steps_and_blocks(tiny, engine):
    if engine == "openvino":
        pytest.importorskip("openvino_genai", reason="the extra `openvino` is not installed")
    with TIMERS[engine]() as seconds:
        assert all(0 < seconds(tiny / "target", tokens) < 10 for tokens in (1, 5))
