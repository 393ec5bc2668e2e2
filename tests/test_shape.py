"""A draft's shape: within its budget to the parameter, of its target's family and vocabulary, wide before deep."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.errors import ShapeError
from fastdraft.recipe import DraftPart
from fastdraft.shape import FAMILIES, derive

CONFIGS = Path(__file__).parents[2] / "shared" / "data" / "configs"
SMALL = {"vocab_size": 131, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8}


def small(family: str = "llama", **more: object):
    values = SMALL | {"num_key_value_heads": 2, "intermediate_size": 600, "pad_token_id": 0} | more
    return AutoConfig.for_model(family, **values)


def built(shape) -> int:
    return sum(p.numel() for p in AutoModelForCausalLM.from_config(shape.open_config()).parameters())


def test_the_papers_draft_for_phi_3_mini():
    """512 wide, 10 deep, 50M: FastDraft (arXiv:2411.11055), table 1."""
    target = AutoConfig.for_model(
        "phi3", vocab_size=32064, hidden_size=3072, num_hidden_layers=32, num_attention_heads=32, intermediate_size=8192
    )
    shape = derive(target, DraftPart(params_millions=50))
    assert (shape.config["hidden_size"], shape.config["num_hidden_layers"]) == (512, 10)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("millions", [0.2, 1.0, 7.0])
def test_every_family_within_every_budget(family, millions):
    """The count is the built model's; a layer more would break the budget."""
    target = small(family)
    shape = derive(target, DraftPart(params_millions=millions))
    assert shape.parameters == built(shape) <= millions * 1e6
    config = shape.open_config()
    assert (config.model_type, config.vocab_size, config.tie_word_embeddings) == (family, 131, True)
    assert shape.embedding_parameters + shape.other_parameters == shape.parameters
    assert shape.embedding_parameters == 131 * config.hidden_size
    deeper = DraftPart(hidden_size=config.hidden_size, layers=config.num_hidden_layers + 1)
    assert derive(target, deeper).parameters > millions * 1e6


@pytest.mark.parametrize("name", [path.name for path in sorted(CONFIGS.glob("*")) if path.is_dir()] or ["none"])
@pytest.mark.parametrize("millions", [50, pytest.param(120, marks=pytest.mark.slow)])
def test_published_targets(name, millions):
    if not CONFIGS.is_dir():
        pytest.skip("no published configurations at ../shared/data/configs, beside the repository")
    target = AutoConfig.from_pretrained(CONFIGS / name)
    part = DraftPart(params_millions=millions)
    if target.model_type not in FAMILIES:
        with pytest.raises(ShapeError, match=f"family `{target.model_type}`.*\n  wanted: one of .*llama.*\n  do: "):
            derive(target, part)
        return
    shape = derive(target, part)
    config = shape.open_config()
    assert 0.8 * millions * 1e6 < shape.parameters <= millions * 1e6
    assert config.vocab_size == target.vocab_size
    assert config.max_position_embeddings == target.max_position_embeddings
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.hidden_size <= target.hidden_size


def test_the_published_configurations_are_counted():
    if not CONFIGS.is_dir():
        pytest.skip("no published configurations at ../shared/data/configs, beside the repository")
    assert len(list(CONFIGS.glob("*/config.json"))) >= 10


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral", "bloom", "falcon"])
def test_a_family_without_a_rule(family):
    with pytest.raises(ShapeError, match=f"no rule .* family `{family}`.*\n  wanted.*\n  do: ") as caught:
        derive(AutoConfig.for_model(family), DraftPart(params_millions=50))
    assert caught.value.exit_code == 2


def test_what_the_recipe_says_is_taken():
    part = DraftPart(hidden_size=96, layers=5, heads=3, kv_heads=3, intermediate_size=77, context_tokens=61)
    config = derive(small(), part).open_config()
    found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert found == (96, 5, 3, 3)
    assert (config.head_dim, config.intermediate_size, config.max_position_embeddings) == (32, 77, 61)


def test_a_given_depth_or_width_leaves_the_other_to_the_budget():
    for given in ({"layers": 2}, {"hidden_size": 128}):
        part = DraftPart(params_millions=1.0, **given)
        shape = derive(small(), part)
        assert shape.parameters <= 1e6
        names = {"layers": "num_hidden_layers", "hidden_size": "hidden_size"}
        assert all(shape.config[names[key]] == value for key, value in given.items())


def test_a_budget_that_holds_nothing():
    said = r"0.01M parameters cannot be: .* smallest .* has 0\.\d+M, of which 0\.01M embed its 131 tokens\n  do: raise"
    with pytest.raises(ShapeError, match=said):
        derive(small(), DraftPart(params_millions=0.01))


def test_a_shape_beyond_its_own_budget():
    with pytest.raises(ShapeError, match=r"has \d+\.\d+M parameters\n  wanted: 0.1M at most\n  do: leave out"):
        derive(small(), DraftPart(params_millions=0.1, hidden_size=256, layers=3))


@pytest.mark.parametrize(
    "sizes", [{"heads": 5, "kv_heads": 2}, {"heads": 64}, {"head_size": 200}, {"heads": 999}, {"head_size": 1}]
)
def test_sizes_that_do_not_divide(sizes):
    with pytest.raises(ShapeError, match=r"attention heads of .* cannot share .* key-value heads(.|\n)*  do: set"):
        derive(small(), DraftPart(hidden_size=64, layers=2, **sizes))


def test_widths_on_which_the_recipes_heads_do_not_fit_are_passed_over():
    shape = derive(small(), DraftPart(params_millions=2, kv_heads=2))
    assert shape.config["num_attention_heads"] % 2 == 0


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_a_draft_may_be_shallower_or_deeper_than_the_targets_pattern_of_layers(layers):
    target = small("gemma2")
    shape = derive(target, DraftPart(hidden_size=64, layers=layers))
    pattern = (target.layer_types * 3)[:layers]
    assert shape.open_config().layer_types == pattern
    assert shape.parameters == built(shape)


def test_a_draft_of_a_quantised_target_is_not_quantised():
    target = small()
    target.quantization_config = {"quant_method": "gptq", "bits": 4}
    target.auto_map = {"AutoModelForCausalLM": "their_code.Model"}
    config = derive(target, DraftPart(hidden_size=64, layers=1)).config
    assert not {"quantization_config", "auto_map"} & config.keys()


def test_positions_tuned_for_each_dimension_keep_the_size_of_a_head():
    """Phi-3 of 128k tokens has a factor for every pair of a head's dimensions."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 24, "long_factor": [2.0] * 24, "rope_theta": 10000.0}
    target = small("phi3", hidden_size=384, rope_parameters=rope, original_max_position_embeddings=64)
    shape = derive(target, DraftPart(params_millions=1))
    assert shape.open_config().head_dim == 48
    assert shape.parameters == built(shape)


def test_a_shape_survives_its_card():
    shape = derive(small("gemma2"), DraftPart(params_millions=1))
    assert type(shape).model_validate_json(shape.model_dump_json()) == shape
