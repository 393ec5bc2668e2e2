"""The variants of the ablations differ only in what they compare, and results are read correctly from curves."""

import sys
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablations():
    """benchmarks/ablations.py, imported with its folder on the path as for a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.chdir(BENCHMARKS.parent)
        import ablations

        yield ablations
    for name in ("ablations", "optimizers", "runs"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def optimizers(ablations):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import optimizers

        return optimizers


def recipe_of(ablations, variant, fraction):
    keys = ablations.demo.demo_at(fraction, 7, "test") | variant.keys
    if variant.keys.get("continue") == "null":
        del keys["continue.train_tokens"]
    return ablations.resolve(ablations.RECIPE, [f"{key}={value}" for key, value in keys.items()]).recipe


def by_source(recipe) -> Counter[str]:
    """Tokens of each source before FT."""
    tokens: Counter[str] = Counter()
    for part in (recipe.pretrain, recipe.continue_):
        for source, weight in part.mix.items() if part else ():
            tokens[source] += round(part.train_tokens * weight / sum(part.mix.values()))
    return tokens


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_variants_of_cp_differ_only_in_order(ablations, fraction):
    tokens = {v.folder: by_source(recipe_of(ablations, v, fraction)) for v in ablations.orders(fraction)}
    assert len(tokens) == 4
    code_only = tokens.pop("code-only")
    assert all(counts == tokens["paper"] for counts in tokens.values())
    assert code_only["code"] > tokens["paper"]["code"]
    assert code_only.total() == tokens["paper"].total()


def test_variants_of_pt_differ_only_in_pt_and_one_is_the_demo(ablations):
    recipes = [recipe_of(ablations, variant, 1.0) for variant in ablations.sizes(1.0)]
    assert len({recipe.pretrain.train_tokens for recipe in recipes}) == 5
    assert len({(recipe.continue_, recipe.align, recipe.synthesize) for recipe in map(frozen, recipes)}) == 1
    demo = ablations.resolve(ablations.RECIPE).recipe
    assert demo.pretrain.train_tokens in [recipe.pretrain.train_tokens for recipe in recipes]


def frozen(recipe):
    """A recipe whose parts can be compared in a set."""
    parts = {name: getattr(recipe, name).model_dump_json() for name in ("continue_", "align", "synthesize")}
    return type("Parts", (), parts)


def test_where_a_curve_first_reaches_a_value(optimizers):
    rows = [(100, 2.0, 1.1), (200, 1.6, 1.3), (300, 1.5, 1.2), (400, 1.2, 1.7)]
    run = optimizers.Run(
        "muon", 0.02, 7, tuple({"tokens": t, "held_out_text_nats": n, "block_efficiency": e} for t, n, e in rows)
    )
    assert optimizers.first_reached(run, "block_efficiency", 1.2, "tokens") == pytest.approx(150)
    assert optimizers.first_reached(run, "block_efficiency", 1.5, "tokens") == pytest.approx(360)
    assert optimizers.first_reached(run, "held_out_text_nats", 1.7, "tokens") == pytest.approx(175)
    assert optimizers.first_reached(run, "held_out_text_nats", 2.5, "tokens") == 100
    assert optimizers.first_reached(run, "block_efficiency", 1.8, "tokens") is None


def test_each_optimizer_is_run_at_its_best_rate(optimizers):
    ends = {("muon", 0.01): 1.2, ("muon", 0.04): 1.4, ("adamw", 0.003): 1.3, ("adamw", 0.006): 1.1}
    runs = [optimizers.Run(name, rate, 7, ({"block_efficiency": end},)) for (name, rate), end in ends.items()]
    assert optimizers.best(runs) == {"muon": 0.04, "adamw": 0.003}
