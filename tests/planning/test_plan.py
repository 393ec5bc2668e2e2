"""A plan says before any training what a draft costs and whether it pays: its figures agree with one another."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import fastdraft
from fastdraft import init
from fastdraft.config import DraftPart, TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.maths.acceptance import expected_block_efficiency, speedup
from fastdraft.planning.devices import DEVICES, published
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.plan import ALPHAS, PAPER, Plan, Setting, make_plan
from fastdraft.planning.training_cost import training_flops
from fastdraft.report import terminal_plan
from fastdraft.system.errors import ShapeError

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"
RECIPES = Path(__file__).parents[2] / "recipes"
SETTING = Setting(published("h200"), published("h200"), "int8")
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32003,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
}


@pytest.fixture
def bare(tmp_path):
    """A configuration and nothing else: neither weights nor tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return TargetPart(path=str(tmp_path / "config.json"))


def test_figures_agree_with_one_another(bare):
    made = make_plan(bare, 50, None, SETTING)
    assert 3 <= len(made.drafts) <= 6
    assert [draft.costed for draft in made.drafts].count(True) == 1
    for draft in made.drafts:
        assert draft.embedding_parameters + draft.other_parameters == draft.parameters
        assert draft.embedding_parameters == draft.hidden_size * LLAMA["vocab_size"]
        assert draft.c == pytest.approx(draft.parameters / made.target.parameters)
        assert draft.bytes_at["int4"] < draft.bytes_at["int8"] < draft.bytes_at["bf16"] == 2 * draft.parameters
        assert tuple(pays.alpha for pays in draft.pays) == ALPHAS
        for pays in draft.pays:
            assert pays.speedup == max(pays.speedup_at.values()) == pays.speedup_at[pays.best_gamma]
            assert draft.break_even_alpha is not None
            assert (pays.speedup >= 1) == (pays.alpha >= draft.break_even_alpha)


def test_speedup_is_that_of_the_step_times(bare):
    """Formula of docs/maths.md; at gamma 1 a block of two tokens is still bound by reading the weights."""
    made = make_plan(bare, 50, None, SETTING)
    draft, target = made.drafts[0], made.target.step_seconds
    found = draft.pays[2]
    tau = expected_block_efficiency(found.alpha, 1)
    assert found.speedup_at[1] == pytest.approx(speedup(tau, 1, draft.step_seconds, target, target), rel=1e-3)


def test_the_budget_is_the_papers_fraction_of_the_target(bare):
    made = make_plan(bare, None, None, SETTING)
    best = next(draft for draft in made.drafts if draft.costed)
    assert 1 / 75 <= best.c <= 1 / 50 or best.parameters < 2 * best.embedding_parameters


def test_the_papers_recipe_costs_what_the_paper_reports():
    """10B tokens in under 24 hours on 8 Gaudi 2 for 120M (abstract); 12.5B tokens of PT and CP here."""
    if not CONFIGS.is_dir():
        pytest.skip("no published configurations at ../shared/data/configs, beside the repository")
    made = make_plan(TargetPart(path=str(CONFIGS / "Phi-3-mini-4k-instruct")), 120, None, SETTING)
    stages = {stage.stage: stage for stage in made.stages}
    assert list(stages) == ["tokenize", "pretrain", "continue", "synthesize", "align"]
    assert stages["pretrain"].flops + stages["continue"].flops == pytest.approx(7.2e18 * 1.25, rel=0.25)
    assert stages["pretrain"].paper_hours + stages["continue"].paper_hours < 24
    assert stages["synthesize"].tokens == 500_000 * 512


def test_the_cost_is_that_of_the_chosen_recipe(bare):
    recipe = resolve(RECIPES / "demo.yaml", []).recipe
    made = make_plan(TargetPart(path="demo"), 0.64, recipe, SETTING)
    tokens = {stage.stage: stage.tokens for stage in made.stages}
    assert tokens["pretrain"] == recipe.pretrain.train_tokens
    assert tokens["synthesize"] == recipe.synthesize.prompts * recipe.synthesize.max_new_tokens


@pytest.mark.parametrize("draft", [{"hidden_size": 48, "layers": 5, "heads": 3}, {"params_millions": 0.9}, {}])
def test_the_draft_that_is_costed_is_that_of_the_recipe(draft):
    """Not the recommended one: the demo target's has three layers of width 64."""
    resolved = resolve(RECIPES / "demo.yaml", [])
    resolved = resolved._replace(recipe=resolved.recipe.model_copy(update={"draft": DraftPart(**draft)}))
    made = fastdraft.plan("demo", device="h200", recipe=resolved)
    shape = init.shape_of(TargetPart(path="demo"), DraftPart(**draft))
    (costed,) = (draft for draft in made.drafts if draft.costed)
    assert (costed.hidden_size, costed.layers, costed.heads) == (shape.hidden_size, shape.layers, shape.heads)
    flops = training_flops(ModelSize.of_shape(shape), 750_000, 256)
    assert next(stage.flops for stage in made.stages if stage.stage == "pretrain") == pytest.approx(flops)
    page = Console(width=300, file=StringIO())
    page.print(terminal_plan.plan(made))
    assert "> marks that of the recipe `demo`" in page.file.getvalue()
    assert f"What the draft of {shape.hidden_size} x {shape.layers} would cost" in page.file.getvalue()


def test_training_against_the_live_target_costs_its_forwards(bare):
    """2 N of a target 22 times the draft, beside 6 n of the draft."""
    plain = resolve(RECIPES / "demo.yaml", []).recipe
    live = resolve(RECIPES / "demo.yaml", ["align.teacher_logits=online"]).recipe
    flops = [make_plan(bare, 50, recipe, SETTING).stages[-1].flops for recipe in (plain, live)]
    assert flops[1] > 5 * flops[0]


def test_a_distribution_of_a_fraction_of_the_rows_or_of_a_sibling_costs_less(bare):
    """The forwards of the target go with the share; those of a teacher with its own size."""
    keys = ["align.teacher_logits=online", "align.teacher_fraction=0.25", "align.teacher=demo"]
    given = [["align.objective=cross_entropy", "align.teacher_logits=online"], keys[:1], keys[:2], [keys[0], keys[2]]]
    plain, live, shared, taught = (
        make_plan(bare, 50, resolve(RECIPES / "demo.yaml", each).recipe, SETTING).stages[-1].flops for each in given
    )
    assert shared - plain == pytest.approx((live - plain) / 4, rel=1e-6)
    assert 0 < taught - plain < (live - plain) / 100  # 5.8M for 1 100M


def test_a_plan_survives_json(bare):
    made = make_plan(bare, 50, None, SETTING)
    content = made.model_dump(mode="json")
    for guide in content["guide"]:
        del guide["alpha"]
    assert Plan.model_validate_json(json.dumps(content)) == made


def test_the_papers_rates_as_alphas():
    alphas = [alpha for guide in PAPER for alpha in guide.alpha.values()]
    rates = [rate for guide in PAPER for rate in guide.acceptance_rate.values()]
    assert [expected_block_efficiency(alpha, 3) for alpha in alphas] == pytest.approx([1 + 3 * rate for rate in rates])


@pytest.mark.slow
def test_every_device_makes_a_plan(bare):
    for device in DEVICES.values():
        made = make_plan(bare, 50, None, Setting(device, published("h200"), "int4"))
        assert all(draft.step_seconds < made.target.step_seconds for draft in made.drafts)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1e300, float("nan")])
def test_a_budget_that_no_draft_can_have(bare, budget):
    with pytest.raises(ShapeError, match=r"no draft can have .*M parameters\n  wanted: .*1,000,000M"):
        make_plan(bare, budget, None, SETTING)


def test_a_budget_that_holds_nothing_reports_the_smallest(bare):
    with pytest.raises(ShapeError, match=r"smallest for this target has \d+\.\d+M") as caught:
        make_plan(bare, 0.5, None, SETTING)
    assert caught.value.exit_code == 2


def test_a_family_that_transformers_does_not_know_is_planned_at_its_stand_ins_size(bare):
    known = make_plan(bare, 50, None, SETTING)
    Path(bare.path).write_text(json.dumps(LLAMA | {"model_type": "riddle", "architectures": ["RiddleForCausalLM"]}))
    unknown = make_plan(bare, 50, None, SETTING)
    assert (unknown.target.family, unknown.target.parameters) == ("riddle", known.target.parameters)
    assert {draft.family for draft in unknown.drafts} == {"llama"}
    assert all("does not list it" in draft.notes[0] for draft in unknown.drafts)
    assert [draft.parameters for draft in unknown.drafts] == [draft.parameters for draft in known.drafts]


def test_of_experts_only_those_that_a_token_meets_count_for_the_default_budget(bare):
    """1/60 of all of them would be a draft of 1/5 of what a step reads."""
    experts = {"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "decoder_sparse_step": 1}
    Path(bare.path).write_text(json.dumps(LLAMA | {"model_type": "qwen3_moe", "architectures": None} | experts))
    made = make_plan(bare, None, None, SETTING)
    best = next(draft for draft in made.drafts if draft.costed)
    assert best.family == "qwen3"
    assert best.parameters < made.target.parameters / 200


def test_the_command_prints_a_plan_of_a_bare_configuration(bare, fastdraft):
    ended = fastdraft("plan", bare.path, "--params", "50M", "--device", "h200", "--json")
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    assert made["target"]["vocab_rows"] == LLAMA["vocab_size"]
    assert all(draft["parameters"] <= 1.5 * 50e6 for draft in made["drafts"])
    table = fastdraft("plan", bare.path, "--params", "0.05B", "--device", "h200")
    assert (table.code, "break-even alpha" in table.out, "gamma 8" in table.out) == (0, True, True), table.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--params", "many"], "--params: found many, wanted a number and k, M or B"),
        (["--params", "-5M"], "--params: found -5M"),
        (["--weights", "int3"], "--weights: found int3, wanted one of bf16, int8, int4"),
        (["--device", "abacus"], "no figures for a device `abacus`"),
        (["--device", "h200", "--params", "1k"], "smallest for this target has"),
    ],
)
def test_what_cannot_be_planned(bare, fastdraft, arguments, said):
    ended = fastdraft("plan", bare.path, *arguments)
    assert (ended.code, said in ended.err, "  do: " in ended.err, ended.out) == (2, True, True, ""), ended.err
