"""OpenVINO and OpenVINO GenAI: convert a model, open it, generate greedily, read its logits, time its steps."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdraft.data.shards import Tokens
from fastdraft.models.logits_reader import Logits
from fastdraft.models.pretrained import false_alarms
from fastdraft.system.errors import ExportError
from fastdraft.system.optional_packages import need
from fastdraft.system.progress import suppressed_logs

EXTRA = "openvino"
MODEL_FILE = "openvino_model.xml"
# The defaults compute in bf16 with an 8-bit KV cache, and quantise activations of quantised weights: greedy texts then
# differ from those of float32. EXACT rounds nothing but the stored weights.
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
F32_WITH_CACHE = F32 | {"KV_CACHE_PRECISION": "f32"}
EXACT: dict[str, Any] = F32_WITH_CACHE | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
# Tokens before those that are timed.
PROMPT_TOKENS = 8
# Prompts of timed runs have ids below this; every timed model has at least as many.
SMALLEST_VOCABULARY = 128
# Logged in every export. optimum-intel 2.1 reads the `torch_dtype` of a configuration, and makes masks by
# `cache_position`, which transformers 5.5 deprecates. torch's tracer reads a model's loss as well.
EXPORT_WARNINGS = (
    "`torch_dtype` is deprecated",
    "`cache_position` is deprecated as an arg",
    "`loss_type=None` was set in the config",
)


def convert(model_folder: Path, compression: dict[str, Any] | None = None) -> Any:
    """The model as an OVModelForCausalLM of optimum-intel, its weights compressed by these settings of nncf.

    ExportError if optimum-intel cannot convert this family.
    """
    intel = need("optimum.intel", EXTRA)
    settings = intel.OVWeightQuantizationConfig(**compression) if compression else None
    try:
        return intel.OVModelForCausalLM.from_pretrained(
            model_folder, export=True, compile=False, load_in_8bit=False, quantization_config=settings
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"optimum-intel cannot convert the model in {model_folder}: {reason}\n  do: choose another format or engine"
        ) from error


@contextmanager
def quiet_export(model_folder: Path) -> Iterator[None]:
    """Suppress warnings that mean nothing to users, and nncf's tables; send its progress bar to stderr."""
    nncf_log = logging.getLogger("nncf")
    level = nncf_log.level
    with (
        warnings.catch_warnings(),
        suppressed_logs("transformers", *EXPORT_WARNINGS, *false_alarms(model_folder)),
        redirect_stdout(sys.stderr),
    ):
        warnings.simplefilter("ignore")
        nncf_log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            nncf_log.setLevel(level)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer of transformers as OpenVINO models: tokenizer and detokenizer."""
    pair = need("openvino_tokenizers", EXTRA).convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), pair, strict=True):
        need("openvino", EXTRA).save_model(model, folder / f"{name}.xml")


def open_pipeline(folder: Path, device: str = "CPU", **settings: Any) -> Any:
    """An exported folder as an LLMPipeline of OpenVINO GenAI."""
    return need("openvino_genai", EXTRA).LLMPipeline(folder, device, **settings)


def token_inputs(prompt: Tokens) -> Any:
    """One prompt, as ids and mask, for `generate` of an LLMPipeline."""
    tensor = need("openvino", EXTRA).Tensor
    ids = prompt[None]
    return need("openvino_genai", EXTRA).TokenizedInputs(tensor(ids), tensor(np.ones_like(ids)))


def generate_greedily(pipeline: Any, prompt: Tokens, tokens: int) -> Any:
    """The engine's result of one greedy completion of exactly `tokens` tokens: end-of-text tokens do not stop it."""
    config = need("openvino_genai", EXTRA).GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
    return pipeline.generate(token_inputs(prompt), config)


def logits_of(folder: Path) -> Logits:
    """The logits of an exported model on the CPU, computed exactly: only its weights are rounded."""
    compiled = need("openvino", EXTRA).Core().compile_model(folder / MODEL_FILE, "CPU", EXACT)
    input_names = {port.get_any_name() for port in compiled.inputs}

    def logits(text: Tokens) -> Tensor:
        inputs = {
            "input_ids": text[None],
            "attention_mask": np.ones_like(text)[None],
            "position_ids": np.arange(len(text))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits_1TV = compiled.create_infer_request().infer({key: inputs[key] for key in input_names})["logits"]
        return torch.from_numpy(logits_1TV[0].copy())

    return logits


def step_seconds(folder: Path, block_tokens: int = 1, tokens: int = 64, repeats: int = 5) -> float:
    """Measured seconds of one step over `block_tokens` tokens, the median of repeats.

    With one token these are steps of a greedy completion of `tokens`; with more, forwards over a block without context.
    """
    pipeline = open_pipeline(folder)
    if block_tokens > 1:
        return block_seconds(pipeline, block_tokens, repeats)
    return median(decode_seconds(pipeline, tokens) for _ in range(repeats))


def decode_seconds(pipeline: Any, tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> float:
    """Seconds of a step over one token: the median over a greedy completion of `tokens`."""
    durations = generate_greedily(pipeline, _new_prompt(prompt_tokens), tokens).perf_metrics.raw_metrics.m_durations
    return float(median(durations[1:])) * 1e-6


def block_seconds(pipeline: Any, tokens: int, repeats: int = 3) -> float:
    """Seconds of a forward over a block of `tokens` without context: the median of repeats.

    A first forward is not counted. A block of another length than the one before costs 0.2 ms more per layer, and in
    speculative decoding a target sees blocks of one length.
    """
    results = [generate_greedily(pipeline, _new_prompt(tokens), 1) for _ in range(repeats + 1)]
    return median(float(result.perf_metrics.get_ttft().mean) for result in results[1:]) * 1e-3


def _new_prompt(tokens: int) -> Tokens:
    """A prompt that the engine has not cached: its ids are random, seeded by the clock. No time depends on them."""
    return np.random.default_rng(perf_counter_ns()).integers(0, SMALLEST_VOCABULARY, tokens)
