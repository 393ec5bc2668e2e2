"""The arms of benchmarks/alignment.py are recipes of equal tokens and one shape, and their costs are counted."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastdraft import init
from fastdraft.config.resolve import resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alignment():
    spec = importlib.util.spec_from_file_location("alignment", ROOT / "benchmarks" / "alignment.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["alignment"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", ["demo", "stories260k"])
@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_every_arm_is_a_recipe_of_the_same_tokens_and_shape(alignment, target, fraction):
    path = ROOT / alignment.TARGETS[target]
    if target != "demo" and not Path(resolve(path).recipe.target.path).is_dir():
        pytest.skip(f"{target} is not next to the repository")
    arms = alignment.possible_arms(target, alignment.ARMS)
    recipes = {arm: resolve(path, alignment.overrides(target, arm, 11, fraction)).recipe for arm in arms}
    assert len(recipes) >= 20
    parts = {arm: alignment.phases(recipe).values() for arm, recipe in recipes.items()}
    tokens = {arm: sum(part.train_tokens for part in found) for arm, found in parts.items()}
    longer = {arm: alignment.ARMS[arm]["longer"] for arm in arms if {"longer", "longest"} & set(arm.split("_"))}
    alike = [tokens[arm] for arm in arms if arm not in longer]
    assert max(alike) - min(alike) <= 2
    assert all(tokens[arm] == pytest.approx(times * tokens["paper"], abs=2) for arm, times in longer.items())
    shapes = {arm: init.shape_of(recipe.target, recipe.draft) for arm, recipe in recipes.items()}
    deep = [shapes.pop(arm) for arm in arms if "deep" in arm]
    cut = sum({"deep", "prune"} <= change.keys() for change in alignment.ARMS.values())
    assert len(deep) == sum("deep" in change for change in alignment.ARMS.values()) - (cut if target == "demo" else 0)
    ((parameters, *_),) = {
        (shape.parameters, shape.hidden_size, shape.layers, shape.heads) for shape in shapes.values()
    }
    assert all(0.98 * parameters <= shape.parameters <= parameters for shape in deep)
    assert {recipe.seed for recipe in recipes.values()} == {11}
    of_paper = [part.objective for part in parts["paper"]]
    assert set(of_paper) == {"cross_entropy"}
    # The demo writes at the paper's temperatures in any case; stories260k has no CP that could be mixed with PT.
    same = {"prune_no_pt_stored_half_as_paper"} if target == "demo" else {"mixed_kl_half"}
    known = {arm: recipe for arm, recipe in recipes.items() if arm not in same}
    assert len({alignment.keys_of(recipe)["align"] for recipe in known.values()}) == len(known)


def test_a_token_of_the_target_costs_a_third_of_the_ratio(alignment):
    run = alignment.Run("demo", "kl", 7, (), trained=1000, read_by_target=300, written_by_target=60, seconds=1.0)
    assert run.cost(50) == pytest.approx(1000 + 360 * 2 * 50 / 6)
    assert alignment.interval([1.0, 2.0, 3.0]) == "2.000 [-0.484, 4.484]"


def test_a_distribution_of_some_rows_or_of_a_sibling_costs_its_fraction(alignment):
    """The packaged target reads a quarter of what the draft is aligned on, or its sibling, here itself, all of it."""
    cards = {name: SimpleNamespace(trained_tokens=1000) for name in ("pretrain", "continue", "align")}
    read = {}
    for arm in ("stored_half", "half", "half_of_some", "half_of_sibling", "kl_of_some_stored_half"):
        recipe = resolve(ROOT / alignment.TARGETS["demo"], alignment.overrides("demo", arm, 11, 1.0)).recipe
        read[arm] = alignment.read_tokens(recipe, cards)
    assert list(read.values()) == [0, 1000, 250, 1000, 200]
