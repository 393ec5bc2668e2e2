"""A damaged config.json is refused with an error that names the file, or makes a plan; nothing else happens."""

import json
import resource
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdraft.config import TargetPart
from fastdraft.planning.devices import published
from fastdraft.planning.plan import Setting, make_plan
from fastdraft.system.errors import UserError

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


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(values=damaged())
def test_a_damaged_configuration_is_planned_or_refused(target, values):
    Path(target.path).write_text(json.dumps(values))
    started, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(UserError):
        assert make_plan(target, None, None, SETTING).target.parameters > 0
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GIGABYTES * 1e6  # kilobytes
