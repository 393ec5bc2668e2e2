"""The table of families: the draft's family for each family of targets, and the reason if it is another one.

`FAMILIES` has the configuration keys of each dense family. A target of another family gets a draft of the nearest dense
one (`STAND_INS`), or of the Llama family if the table does not list it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

UNKNOWN_STANDS_IN = "llama"


class Names(NamedTuple):
    """The keys of a family's configuration.

    None if there is no such key: every head has its own key-value head, or the heads fill the width exactly.
    """

    hidden_size: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_size: str | None = "head_dim"
    intermediate: str = "intermediate_size"
    context_tokens: str = "max_position_embeddings"

    def filled(self, **sizes: int) -> dict[str, Any]:
        """The sizes under these keys; sizes without a key are left out."""
        return {key: size for name, size in sizes.items() if (key := getattr(self, name))}


class Family(NamedTuple):
    """A dense family.

    neutral: keys tuned to the target's width and depth, with the values that undo it; None is head_size**-0.5.
    of_head: the key of the number by whose square root attention scores are divided.
    """

    names: Names = Names()
    neutral: tuple[tuple[str, float | None], ...] = ()
    of_head: str | None = None


class StandIn(NamedTuple):
    """The dense family that a draft uses instead of the target's own, and the reason."""

    family: str
    reason: str


GPT2 = Names("n_embd", "n_layer", "n_head", None, None, "n_inner", "n_positions")
LLAMA = Family()
# Granite is trained with factors that transfer learning rates between widths (arXiv:2203.03466).
GRANITE = (
    *((key, 1.0) for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling")),
    ("attention_multiplier", None),
)
# In Gemma it equals the head size, except in a 27B; llama.cpp always uses the head size.
GEMMA = Family(of_head="query_pre_attn_scalar")

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "phi3", "gemma"), LLAMA),
    **dict.fromkeys(("olmo", "olmo2", "olmo3", "smollm3", "starcoder2", "helium"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "granite": Family(neutral=GRANITE),
    "stablelm": Family(Names(head_size=None)),
    "gpt_neox": Family(Names(kv_heads=None, head_size=None)),
    "gpt2": Family(GPT2),
}

EXPERTS = "it is a mixture of experts: a draft is too small to split into experts, which would only slow its step"
STATE = "some of its layers keep a recurrent state, which engines cannot roll back when a drafted token is rejected"
MULTIMODAL = "its layers also read other inputs than text, and a draft reads only text"
LATENT = "it is a mixture of experts with compressed attention, which saves nothing at a draft's size"

STAND_INS: dict[str, StandIn] = {
    **dict.fromkeys(("mixtral", "minimax_m2"), StandIn("mistral", EXPERTS)),
    "qwen2_moe": StandIn("qwen2", EXPERTS),
    **dict.fromkeys(("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text"), StandIn("qwen3", EXPERTS)),
    **dict.fromkeys(("olmoe", "flex_olmo"), StandIn("olmo2", EXPERTS)),
    **dict.fromkeys(("granitemoe", "granitemoeshared"), StandIn("granite", EXPERTS)),
    "phimoe": StandIn("phi3", EXPERTS),
    **dict.fromkeys(("gpt_oss", "llama4_text", "dbrx", "glm4_moe", "jetmoe", "dots1"), StandIn("llama", EXPERTS)),
    **dict.fromkeys(("ernie4_5_moe", "hunyuan_v1_moe", "aria_text", "solar_open"), StandIn("llama", EXPERTS)),
    **dict.fromkeys(("afmoe", "glm4v_moe_text", "ernie4_5_vl_moe_text"), StandIn("llama", EXPERTS)),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash"), StandIn("llama", LATENT)),
    "qwen3_next": StandIn("qwen3", STATE),
    "granitemoehybrid": StandIn("granite", STATE),
    "recurrent_gemma": StandIn("gemma", STATE),
    **dict.fromkeys(("jamba", "bamba", "falcon_h1", "zamba", "zamba2", "nemotron_h"), StandIn("llama", STATE)),
    **dict.fromkeys(("lfm2", "lfm2_moe", "minimax", "mamba", "mamba2", "falcon_mamba"), StandIn("llama", STATE)),
    **dict.fromkeys(("rwkv", "xlstm"), StandIn("llama", STATE)),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"), StandIn("qwen2", MULTIMODAL)),
    "qwen3_vl_text": StandIn("qwen3", MULTIMODAL),
    "mllama_text_model": StandIn("llama", MULTIMODAL),
    "phi4_multimodal": StandIn("phi3", MULTIMODAL),
    "gemma3n_text": StandIn("gemma3_text", MULTIMODAL),
    "chameleon": StandIn("llama", MULTIMODAL),
}


def stand_in(model_type: str) -> StandIn | None:
    """The family that a draft for this family uses instead; None if it uses the family itself."""
    if model_type in FAMILIES:
        return None
    unknown = StandIn(UNKNOWN_STANDS_IN, "the table of families does not list it")
    return STAND_INS.get(model_type, unknown)
