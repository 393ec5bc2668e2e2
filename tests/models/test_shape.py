"""A draft's shape: within its budget to the parameter, of its target's vocabulary, wide before deep, for any family."""

import math
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fastdraft.config import DraftPart
from fastdraft.models import draft
from fastdraft.models.architecture import parameters
from fastdraft.models.pretrained import load
from fastdraft.models.shape import FAMILIES, default_budget_millions, derive, nearby_shapes, smallest
from fastdraft.models.shape.families import STAND_INS
from fastdraft.planning.model_size import ModelSize
from fastdraft.system.errors import ShapeError

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"
PUBLISHED = [path.name for path in sorted(CONFIGS.glob("*")) if path.is_dir()] or ["none"]
SMALL = {"vocab_size": 131, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8}
SMALL_GPT2 = {"vocab_size": 131, "n_embd": 256, "n_layer": 3, "n_head": 8, "n_inner": 600, "n_positions": 97}


def small(family: str = "llama", **more: object):
    """A target of 3 layers; where its family has such keys, 2 of its 8 heads hold keys and values."""
    values = SMALL | {"num_key_value_heads": 2, "intermediate_size": 600, "pad_token_id": 0} | more
    if family == "gpt2":
        return AutoConfig.for_model(family, **SMALL_GPT2 | more)
    if family == "gpt_neox":
        del values["num_key_value_heads"]
    if family in FAMILIES and FAMILIES[family].names.head_size:
        values = {"head_dim": 32} | values
    return AutoConfig.for_model(family, **values)


def published(name: str):
    if not CONFIGS.is_dir():
        pytest.skip("no published configurations at ../shared/data/configs, beside the repository")
    return AutoConfig.from_pretrained(CONFIGS / name)


def built(shape) -> int:
    return sum(p.numel() for p in AutoModelForCausalLM.from_config(shape.open_config()).parameters())


def phi3_mini():
    sizes = {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192}
    return AutoConfig.for_model("phi3", num_hidden_layers=32, num_attention_heads=32, **sizes)


def test_the_papers_draft_for_phi_3_mini():
    """512 wide, 10 deep, 50M: FastDraft (arXiv:2411.11055), table 1."""
    shape = derive(phi3_mini(), DraftPart(params_millions=50))
    assert (shape.hidden_size, shape.layers) == (512, 10)


# Each family


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("millions", [0.2, 1.0, 7.0])
def test_every_family_within_every_budget(family, millions):
    """The count is the built model's; a layer more would break the budget."""
    target = small(family)
    shape = derive(target, DraftPart(params_millions=millions))
    assert shape.parameters == built(shape) <= millions * 1e6
    config = shape.open_config()
    assert (config.model_type, config.vocab_size, config.tie_word_embeddings) == (family, 131, True)
    assert config.max_position_embeddings == target.max_position_embeddings
    assert shape.embedding_parameters + shape.other_parameters == shape.parameters
    assert shape.embedding_parameters == shape.output_parameters == 131 * config.hidden_size
    deeper = DraftPart(hidden_size=config.hidden_size, layers=config.num_hidden_layers + 1)
    assert derive(target, deeper).parameters > millions * 1e6


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_shape_reports_what_was_built(family):
    """Whatever the family calls its sizes."""
    shape = derive(small(family), DraftPart(hidden_size=192, layers=6, intermediate_size=77))
    model = AutoModelForCausalLM.from_config(shape.open_config())
    widths = {size for weight in model.parameters() for size in weight.shape}
    config = shape.open_config()
    assert (shape.hidden_size, shape.layers, shape.heads) == (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    )
    assert (shape.family, shape.vocab_rows, shape.intermediate_size) == (family, 131, 77)
    assert widths & {77, 2 * 77}
    assert shape.heads * shape.head_size == 192
    key_rows = shape.kv_heads * shape.head_size
    fused = {shape.heads * shape.head_size + 2 * key_rows}  # phi3, gpt2, gpt_neox: queries, keys and values in one
    assert widths & ({key_rows} | fused)
    assert shape.kv_heads == (shape.heads if family in ("gpt2", "gpt_neox") else 2)
    assert shape.notes == ()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_draft_of_every_family_writes_and_opens_as_it_was_saved(family, tmp_path):
    """Tied too where the family seldom is."""
    shape = derive(small(family), DraftPart(hidden_size=64, layers=3))
    model = draft.new(shape, seed=3).eval()
    model.save_pretrained(tmp_path)
    again = load(tmp_path, torch.float32).eval()
    tokens = torch.tensor([[1, 2, 3, 5, 7]])
    assert model(tokens).logits.isfinite().all()
    assert torch.equal(model(tokens).logits, again(tokens).logits)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert again.num_parameters() == shape.parameters


def test_what_is_tuned_to_the_targets_width_is_set_anew():
    granite = small("granite", attention_multiplier=0.0078125, logits_scaling=16.0, residual_multiplier=0.22)
    config = derive(granite, DraftPart(hidden_size=128, layers=2)).config
    assert (config["logits_scaling"], config["residual_multiplier"], config["embedding_multiplier"]) == (1, 1, 1)
    assert config["attention_multiplier"] == config["head_dim"] ** -0.5
    gemma = derive(small("gemma3_text", query_pre_attn_scalar=168), DraftPart(hidden_size=128, layers=2)).config
    assert gemma["query_pre_attn_scalar"] == gemma["head_dim"]


# Published targets


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("millions", [50, pytest.param(120, marks=pytest.mark.slow)])
def test_published_targets(name, millions):
    target = published(name)
    shape = derive(target, DraftPart(params_millions=millions))
    assert 0.8 * millions * 1e6 < shape.parameters <= millions * 1e6
    assert shape.parameters == parameters(shape.open_config())
    assert shape.family == target.model_type
    assert shape.vocab_rows == target.vocab_size
    config = shape.open_config()
    assert config.max_position_embeddings == target.max_position_embeddings
    assert (config.bos_token_id, config.eos_token_id) == (target.bos_token_id, target.eos_token_id)
    assert getattr(config, "rope_parameters", None) == getattr(target, "rope_parameters", None)
    assert shape.hidden_size % 64 == 0
    assert shape.hidden_size <= target.hidden_size
    assert shape.head_size in (64, 128)
    assert shape.layers == 1 or shape.notes == ()


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_values_are_shared_as_in_the_target_as_near_as_heads_divide(name):
    target = published(name)
    fraction = (getattr(target, "num_key_value_heads", None) or target.num_attention_heads) / target.num_attention_heads
    for shape in nearby_shapes(target, DraftPart(params_millions=100)):
        possible = [n for n in range(1, shape.heads + 1) if shape.heads % n == 0]
        off = {n: abs(math.log(n / shape.heads / fraction)) for n in possible}
        assert off[shape.kv_heads] == min(off.values())


def test_the_published_configurations_are_counted():
    if not CONFIGS.is_dir():
        pytest.skip("no published configurations at ../shared/data/configs, beside the repository")
    assert len(list(CONFIGS.glob("*/config.json"))) >= 10


# Targets whose own family no draft can be of

WRAPPED = {
    "llava": ("llama", {"model_type": "llama"}),
    "mistral3": ("mistral", {"model_type": "mistral"}),
    "gemma3": ("gemma3_text", {"model_type": "gemma3_text"}),
    "qwen2_5_vl": ("qwen2", {"model_type": "qwen2_5_vl_text"}),
    "qwen3_vl": ("qwen3", {"model_type": "qwen3_vl_text"}),
    "qwen3_vl_moe": ("qwen3", {"model_type": "qwen3_vl_moe_text"}),
    "llama4": ("llama", {"model_type": "llama4_text"}),
    "mllama": ("llama", {"model_type": "mllama_text_model"}),
}


@pytest.mark.parametrize("family", sorted(STAND_INS.keys() & CONFIG_MAPPING.keys()))
def test_a_stand_in_keeps_what_a_draft_must_fraction(family):
    target = AutoConfig.for_model(family, vocab_size=131, bos_token_id=7, eos_token_id=[5, 3], pad_token_id=11)
    shape = derive(target, DraftPart(params_millions=1))
    assert shape.family == STAND_INS[family].family
    assert any(f"`{family}`, the draft a `{shape.family}`: {STAND_INS[family].reason}" in note for note in shape.notes)
    assert shape.parameters == built(shape) <= 1e6
    config = shape.open_config()
    assert (config.vocab_size, config.tie_word_embeddings) == (131, True)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (7, [5, 3], 11)
    assert config.max_position_embeddings == getattr(target, "max_position_embeddings", 2048)
    assert not [key for key in config.to_dict() if "expert" in key]


def test_the_stand_ins_are_counted_and_stand_on_dense_families():
    assert len(STAND_INS.keys() & CONFIG_MAPPING.keys()) >= 30
    assert {row.family for row in STAND_INS.values()} <= FAMILIES.keys()
    assert not STAND_INS.keys() & FAMILIES.keys()


@pytest.mark.parametrize("family", sorted(WRAPPED))
def test_of_a_target_that_reads_more_than_text_the_text_part_counts(family):
    expected, text = WRAPPED[family]
    target = AutoConfig.for_model(family, text_config=text | {"vocab_size": 131, "eos_token_id": 5, "pad_token_id": 0})
    shape = derive(target, DraftPart(params_millions=1))
    assert (shape.family, shape.vocab_rows, shape.open_config().eos_token_id) == (expected, 131, 5)
    assert shape.parameters == built(shape)
    assert f"the target is a `{family}`, which reads more than text" in shape.notes[0]
    own = text["model_type"] == expected
    assert any("the draft a" in note for note in shape.notes) != own


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 40.0,
                "original_max_position_embeddings": 97,
                "mscale": 1.0,
            },
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 97},
        ),
    ],
)
def test_a_stand_in_turns_positions_as_its_target(rope, expected):
    shape = derive(small("mixtral", rope_parameters=rope), DraftPart(hidden_size=64, layers=1))
    assert expected.items() <= shape.open_config().rope_parameters.items()
    assert len(shape.notes) == 1


def test_positions_that_not_every_engine_computes_are_left_out_aloud():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "rope_theta": 7e4}
    target = small("phimoe", rope_parameters=rope | {"short_mscale": 1.0, "long_mscale": 1.1, "factor": 2.0})
    shape = derive(target, DraftPart(hidden_size=64, layers=1))
    assert shape.open_config().rope_parameters["rope_type"] == "default"
    assert shape.open_config().rope_parameters["rope_theta"] == 7e4
    assert "positions of type `longrope` are not copied" in shape.notes[1]


UNKNOWN = {
    "llama's names": {"vocab_size": 131, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 1024, "max_position_embeddings": 97, "rope_theta": 5e5, "eos_token_id": 5},
    "other names": {"padded_vocab_size": 131, "n_embd": 256, "n_head": 4, "multi_query_group_num": 2}
    | {"ffn_hidden_size": 1024, "seq_length": 97, "rotary_emb_base": 5e5, "eos_token_id": 5},
    "a text part": {
        "text_config": PretrainedConfig(
            vocab_size=131,
            hidden_size=256,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=1024,
            max_position_embeddings=97,
            rope_theta=5e5,
            eos_token_id=5,
        )
    },
}


@pytest.mark.parametrize("names", UNKNOWN)
def test_an_unknown_family_gets_a_llama_with_what_can_be_read(names):
    target = PretrainedConfig(**UNKNOWN[names])
    target.model_type = "riddle"
    shape = derive(target, DraftPart(hidden_size=128, layers=2))
    config = shape.open_config()
    assert (shape.family, shape.vocab_rows, shape.intermediate_size) == ("llama", 131, 512)
    assert (shape.heads, shape.kv_heads, shape.head_size) == (2, 1, 64)
    assert (config.max_position_embeddings, config.rope_parameters["rope_theta"]) == (97, 5e5)
    assert (config.eos_token_id, config.bos_token_id) == (5, None)
    assert "the draft a `llama`: the table of families" in shape.notes[-1]
    assert shape.parameters == built(shape)


def test_a_configuration_that_reports_its_vocabulary_alone_is_enough():
    target = PretrainedConfig(vocab_size=131)
    target.model_type = "riddle"
    shape = derive(target, DraftPart(params_millions=50))
    assert 45e6 < shape.parameters <= 50e6
    assert any("states no rotary base" in note for note in shape.notes)


def test_a_configuration_without_a_vocabulary():
    with pytest.raises(ShapeError, match="the `riddle` does not state .*\n  wanted: vocab_size\n  do: add it"):
        target = PretrainedConfig(hidden_size=64)
        target.model_type = "riddle"
        derive(target, DraftPart(params_millions=50))


@pytest.mark.parametrize("family", ["bloom", "falcon", "cohere", "opt"])
def test_a_known_family_without_a_rule_is_no_unknown_size(family):
    target = AutoConfig.for_model(family, vocab_size=131, hidden_size=256, pad_token_id=0)
    shape = derive(target, DraftPart(params_millions=1))
    assert shape.family == "llama"
    assert f"the target is a `{family}`, the draft a `llama`: the table of families" in shape.notes[0]


def test_the_size_of_a_target_that_cannot_be_built_is_that_of_its_stand_in():
    """All but its own layers' tricks; its text part alone where that can be built."""
    target = small("llama", tie_word_embeddings=False)
    values = {key: getattr(target, key) for key in ("intermediate_size", "num_key_value_heads", *SMALL)}
    unknown = PretrainedConfig(**values)
    unknown.model_type = "riddle"
    assert ModelSize.of_config(unknown) == ModelSize.of_config(target)
    text = {"model_type": "qwen2_vl_text"} | values | {"pad_token_id": 0}
    wrapped = AutoConfig.for_model("qwen2_vl", text_config=text, tie_word_embeddings=False)
    dense = AutoConfig.for_model("qwen2", tie_word_embeddings=True, **values)
    assert ModelSize.of_config(wrapped).body_parameters == ModelSize.of_config(dense).body_parameters


# Sizes


# The rules


@pytest.mark.parametrize(
    ("target_size", "width", "expected"),
    [(128, 512, 128), (128, 320, 64), (64, 320, 64)]
    + [(96, 384, 64), (80, 320, 64), (256, 512, 128), (256, 320, 64), (32, 320, 32), (8, 64, 8)]
    + [(64, 64, 32), (256, 64, 32), (128, 128, 64), (32, 32, 32)],
)
def test_heads_are_of_64_or_128(target_size, width, expected):
    """The target's size where it is one of these, or smaller; half of 64 or 128 where one would fill the width."""
    target = small(hidden_size=1024, head_dim=target_size)
    shape = derive(target, DraftPart(hidden_size=width, layers=1))
    assert (shape.head_size, shape.heads) == (expected, width // expected)
    assert shape.notes == ()


def test_a_width_that_no_such_head_divides_is_remarked_upon():
    shape = derive(small(head_dim=64), DraftPart(hidden_size=96, layers=1))
    assert shape.head_size == 32
    assert "attention heads have size 32" in shape.notes[0]
    asked = derive(small(head_dim=64), DraftPart(hidden_size=96, layers=1, head_size=32))
    assert asked.notes == ()


def test_a_narrow_draft_of_many_layers_is_remarked_upon():
    target = small(vocab_size=30011)
    shape = derive(target, DraftPart(params_millions=3))
    assert shape.hidden_size == 64
    assert "layers of width 64 are slow" in shape.notes[0]
    assert derive(target, DraftPart(hidden_size=64, layers=shape.layers)).notes == ()


def test_widths_in_steps_of_k_quants_are_taken_where_they_are_nearly_as_good():
    """Mistral-7B: 704 is nearer to the aspect aimed at, 768 can be stored in k-quants."""
    target = AutoConfig.for_model("mistral", vocab_size=32768)
    shape = derive(target, DraftPart(params_millions=120))
    assert (shape.hidden_size, shape.layers, shape.intermediate_size) == (768, 12, 2560)
    assert shape.k_quants
    assert shape.widths.endswith("intermediate_size 2560 is a multiple of 256: k-quants throughout")
    other = derive(target, DraftPart(hidden_size=704, layers=15))
    assert not other.k_quants
    assert other.widths.startswith(
        "hidden_size 704 is a multiple of 64, intermediate_size 2560 is a multiple of 256: no"
    )
    odd = derive(target, DraftPart(hidden_size=704, layers=15, intermediate_size=77))
    assert "intermediate_size 77 is no multiple of 64: no k-quants" in odd.widths


def test_a_draft_has_a_layer_that_sees_the_whole_context_where_the_budget_allows():
    """Gemma 3 has one in six; the kinds of layers stay in the target's order, which llama.cpp has in its code."""
    target = AutoConfig.for_model("gemma3_text", vocab_size=9001)
    enough = derive(target, DraftPart(params_millions=9))
    assert enough.config["layer_types"].index("full_attention") == 5
    shallow = derive(target, DraftPart(hidden_size=128, layers=5))
    assert set(shallow.config["layer_types"]) == {"sliding_attention"}
    assert "every layer sees only the last 4096 tokens" in shallow.notes[0]
    assert smallest(target).layers >= 6


# Which drafts are worth a look


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_default_budget_is_the_papers_fraction_or_the_smallest_sensible_draft(name):
    target = published(name)
    count, floor = parameters(target), smallest(target)
    budget = default_budget_millions(count, floor.parameters) * 1e6
    assert floor.layers >= 3
    assert floor.hidden_size >= target.hidden_size / 8 or floor.hidden_size == 256
    assert count / 75 <= budget <= count / 50 or floor.parameters <= budget <= 1.1 * floor.parameters
    assert derive(target, DraftPart(params_millions=budget / 1e6)).layers >= 1


@pytest.mark.parametrize(
    ("target_parameters", "smallest", "expected"),
    [(8_030_261_248, 37_260_032, 130), (3_821_079_552, 12_225_280, 64), (5_786_368, 631_104, 0.64), (600, 599, 0.0006)],
)
def test_the_default_budget_in_numbers(target_parameters, smallest, expected):
    assert default_budget_millions(target_parameters, smallest) == pytest.approx(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_around_a_budget(name):
    target = published(name)
    budget = default_budget_millions(parameters(target), smallest(target).parameters)
    shapes = nearby_shapes(target, DraftPart(params_millions=budget))
    assert 3 <= len(shapes) <= 6
    assert derive(target, DraftPart(params_millions=budget)) in shapes
    assert shapes == sorted(shapes, key=lambda shape: (shape.parameters, shape.layers))
    assert len({(shape.hidden_size, shape.layers, shape.intermediate_size) for shape in shapes}) == len(shapes)
    assert any(shape.parameters < 0.8e6 * budget or shape.parameters > 1.2e6 * budget for shape in shapes)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3_text"])
def test_the_shapes_around_a_shape_that_the_recipe_gives(family):
    part = DraftPart(hidden_size=128, layers=3, context_tokens=61)
    shapes = nearby_shapes(small(family), part)
    assert 3 <= len(shapes) <= 6
    assert derive(small(family), part) in shapes
    assert {shape.open_config().max_position_embeddings for shape in shapes} == {61}


def test_around_reports_where_the_budget_holds_no_draft():
    with pytest.raises(ShapeError, match="is too small: the smallest for this target"):
        nearby_shapes(small(), DraftPart(params_millions=0.01))


# What the recipe says


def test_what_the_recipe_reports_is_taken():
    part = DraftPart(hidden_size=96, layers=5, heads=3, kv_heads=3, intermediate_size=77, context_tokens=61)
    config = derive(small(), part).open_config()
    found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert found == (96, 5, 3, 3)
    assert (config.head_dim, config.intermediate_size, config.max_position_embeddings) == (32, 77, 61)


def test_a_given_depth_or_width_leaves_the_other_to_the_budget():
    deep = derive(small(), DraftPart(params_millions=1.0, hidden_size=128))
    wide = derive(small(), DraftPart(params_millions=1.0, layers=2))
    assert deep.hidden_size == 128
    assert wide.layers == 2
    for larger in (
        {"hidden_size": 128, "layers": deep.layers + 1},
        {"hidden_size": wide.hidden_size + 64, "layers": 2},
    ):
        assert derive(small(), DraftPart(**larger)).parameters > 1e6
    assert max(deep.parameters, wide.parameters) <= 1e6


def test_a_budget_that_holds_nothing():
    message = r"0.01M parameters is too small: .* has (0\.\d+)M, .* 131 tokens alone 0\.01M\n  do: raise"
    with pytest.raises(ShapeError, match=message) as caught:
        derive(small(), DraftPart(params_millions=0.01))
    assert caught.value.exit_code == 2
    smallest_millions = float(re.search(message, str(caught.value))[1])
    assert derive(small(), DraftPart(params_millions=smallest_millions)).layers == 1
    with pytest.raises(ShapeError, match="is too small"):
        derive(small(), DraftPart(params_millions=smallest_millions - 0.01))


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
    target = small("phi3", hidden_size=384, head_dim=48, rope_parameters=rope, original_max_position_embeddings=64)
    shape = derive(target, DraftPart(params_millions=1))
    assert shape.open_config().head_dim == 48
    assert shape.parameters == built(shape)


def test_a_shape_survives_its_card():
    shape = derive(small("gemma2"), DraftPart(params_millions=1))
    assert type(shape).model_validate_json(shape.model_dump_json()) == shape
