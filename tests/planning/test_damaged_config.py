"""A damaged config.json is refused with an error that names the file, or makes a plan; nothing else happens."""

import json
import resource
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from fastdraft.config import TargetPart
from fastdraft.models import architecture, pretrained
from fastdraft.planning.devices import published
from fastdraft.planning.plan import Setting, make_plan
from fastdraft.system.errors import TargetError, UserError

SETTING = Setting(published("h200"), published("h200"), "int8")
# The most that one configuration may take; the slowest that this test generates takes 3 s.
SECONDS, GIGABYTES = 60, 1.5
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 131,
    "hidden_size": 192,
    "intermediate_size": 500,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 97,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 97},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": None,
    "dtype": "bfloat16",
}
QWEN_MOE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 60}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
CONFIGS = {
    "llama": LLAMA,
    "qwen3_moe": QWEN_MOE | {"decoder_sparse_step": 1, "mlp_only_layers": [], "sliding_window": None, "head_dim": 32},
    "gemma3_text": LLAMA
    | {"model_type": "gemma3_text", "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
    | {"sliding_window": 31, "query_pre_attn_scalar": 32, "head_dim": 32, "rope_parameters": None},
    "gpt2": {"model_type": "gpt2", "vocab_size": 131, "n_embd": 192, "n_layer": 2, "n_head": 3, "n_positions": 97},
    "phi3": LLAMA
    | {"model_type": "phi3", "original_max_position_embeddings": 97, "rope_parameters": None}
    | {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}},
    "jamba": LLAMA | {"model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 16},
    "llava": {
        "model_type": "llava",
        "text_config": LLAMA,
        "vision_config": VISION | {"image_size": 28, "patch_size": 14},
    },
    "riddle": LLAMA | {"model_type": "riddle", "architectures": ["RiddleForCausalLM"], "sliding_window": 31},
}
NUMBERS = st.sampled_from(
    [0, 1, -1, -3, 7, 1 << 31, 10**9, 10**18, 10**400, 0.5, -2.0, 1e300, float("inf"), float("nan")]
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "eight", "default", "\ud800", "\0", "x" * 9999])
RUBBISH = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "0", ""]), SCALARS)
REMOVED = object()


@st.composite
def damaged(draw: st.DrawFn) -> dict:
    """A configuration of one of the families with one to three values removed or replaced, at any depth."""
    values = deepcopy(CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))])
    for _ in range(draw(st.integers(1, 3))):
        part = values
        while True:
            key = draw(st.sampled_from(sorted(part)))
            if not (isinstance(part[key], dict) and part[key]) or draw(st.integers(0, 3)) == 0:
                break
            part = part[key]
        if (value := draw(st.just(REMOVED) | RUBBISH)) is REMOVED:
            del part[key]
        else:
            part[key] = value
        if not values or not part:
            break
    return values


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> TargetPart:
    return TargetPart(path=str(tmp_path_factory.mktemp("target") / "config.json"))


# Found, wanted: sizes that no decoder has, values of the wrong type, and what only the built model or its layers tell.
REFUSED = {
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0\n  wanted: a whole number from 1 to 1,000"),
    "layers below 0": ({"num_hidden_layers": -3}, "num_hidden_layers is -3"),
    "too many layers": ({"num_hidden_layers": 10**18}, "num_hidden_layers is 10{18}"),
    "more key-value heads than heads": ({"num_key_value_heads": 7}, "num_key_value_heads is 7\n  wanted: a divisor of"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "heads not stated": ({"num_attention_heads": None}, "does not state num_attention_heads"),
    "layers not stated": ({"num_hidden_layers": None}, "does not state num_hidden_layers"),
    "a vocabulary of one": ({"vocab_size": 1}, "vocab_size is 1\n  wanted: a whole number from 2"),
    "a text": ({"hidden_size": "eight"}, "hidden_size is 'eight'"),
    "a fraction": ({"hidden_size": 192.5}, "hidden_size is 192.5"),
    "too wide": ({"hidden_size": 10**9}, "hidden_size is 10{9}"),
    "a nested text part": ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers is -1"),
    "too many layers for images": ({"vision_config": {"num_layers": 10**9}}, "vision_config.num_layers is 10{9}"),
    "rope type": (
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        "rope_type is 'spiral'\n  wanted: one of",
    ),
    "rope": ({"rope_parameters": 7}, "rope_parameters is 7"),
    "family": ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
    "activation": ({"hidden_act": "spiral"}, "hidden_act is 'spiral'\n  wanted: one of"),
    "deep": ({"notes": eval("[" * 90 + "]" * 90)}, "nests deeper than 32 levels"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_the_error_names_file_key_found_and_wanted(target, damage, message):
    values = {key: value for key, value in (LLAMA | damage).items() if value is not None}
    Path(target.path).write_text(json.dumps(values))
    with pytest.raises(TargetError, match=f"(?s){Path(target.path).parent}.*{message}.*\n  do: ") as caught:
        make_plan(target, None, None, SETTING)
    assert caught.value.exit_code == 2


# Families that need more than text, or whose configuration has no sizes.
WITHOUT_SIZES = {"blt", "pi0", "pixtral"}


def test_every_decoder_that_transformers_can_write_is_read(tmp_path):
    read = set()
    for family in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
        try:
            config = CONFIG_MAPPING[family]()
        except (StrictDataclassError, ValueError):  # it has parts without a default
            continue
        if architecture.writes_text(config):
            config.save_pretrained(tmp_path)
            with suppress(*[TargetError] if family in WITHOUT_SIZES else []):
                assert pretrained.open_config(tmp_path).model_type == config.model_type
                read.add(family)
    assert len(read) > 150


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, "\ufeff{}", "{}", "", '{"a": 1' + "0" * 5000 + "}"])
def test_a_file_that_holds_no_configuration_is_refused(target, text):
    Path(target.path).write_text(text)
    with pytest.raises(TargetError, match=f"(?s){target.path}.*\n  do: "):
        make_plan(target, None, None, SETTING)
    Path(target.path).write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(TargetError, match=f"{target.path} cannot be read: .*utf-8"):
        make_plan(target, None, None, SETTING)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(values=damaged())
def test_rubbish_is_planned_or_refused_in_bounded_time_and_memory(target, values):
    Path(target.path).write_text(json.dumps(values))
    started, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(UserError):
        assert make_plan(target, None, None, SETTING).target.parameters > 0
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GIGABYTES * 1e6  # kilobytes
