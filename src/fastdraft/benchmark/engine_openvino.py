"""OpenVINO GenAI: three LLMPipelines over one pair of exports, without a draft, with it, and with prompt lookup.

From its sources (2026): a prompt's forward emits one token, and blocks begin after it. For greedy text, `m_batch_sizes`
are the tokens that each target forward emitted. For sampled text, a drafted token x is accepted with probability
q(x) / p(y), where y is another sample from p, and the replacement of a rejected token is sampled one position too late
(`validate_candidate`, src/cpp/src/sampling/sampler.cpp). Text sampled with a draft therefore does not have the target's
distribution. Prompt lookup compares tokens, which keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel

from fastdraft.benchmark.engine import (
    LOOKUP_NGRAM,
    Arm,
    BenchRequest,
    Engine,
    OnePassModels,
    PairFiles,
    Setting,
    TimedCompletion,
)
from fastdraft.models.logits_reader import Reader
from fastdraft.models.openvino import EXACT, EXTRA, F32, F32_WITH_CACHE, logits_of, open_pipeline, token_inputs
from fastdraft.planning.probe import usable_cores
from fastdraft.system.errors import BenchError
from fastdraft.system.optional_packages import need

# KV cache of both models; the engine divides it between them.
CACHE_GIGABYTES = 1


class OpenVino(Engine):
    """OpenVINO GenAI."""

    name = "OpenVINO GenAI"
    modules = tuple((name, EXTRA) for name in ("openvino", "openvino_genai", "openvino_tokenizers"))
    packages = ("openvino-genai", "openvino", "optimum-intel", "nncf")
    rules = "OpenVINO GenAI"
    format = "openvino"
    weights = ("int8", "int8_sym", "int4", "int4_sym", "fp16")
    settings = (
        Setting("defaults", {}),
        Setting("f32 inference", F32),
        Setting("f32 inference and KV cache", F32_WITH_CACHE),
    )
    exact = Setting("f32, without dynamic quantisation", EXACT, exact=True)
    drafts_first = False
    keeps_distribution = False
    greedy_draft = False

    @classmethod
    def devices(cls) -> Sequence[str]:
        """OpenVINO's names: CPU, GPU, GPU.1, NPU."""
        devices: list[str] = need("openvino", EXTRA).Core().available_devices
        return sorted(devices, key=lambda name: (name != "CPU", name))

    @classmethod
    def hardware(cls, device: str) -> str:
        """The full name of the device; for a processor also the number of usable cores."""
        name = str(need("openvino", EXTRA).Core().get_property(device, "FULL_DEVICE_NAME")).strip()
        return f"{name}, {usable_cores()} cores" if device == "CPU" else name

    @classmethod
    def open(cls, files: PairFiles, setting: Setting) -> OpenedOpenVino:
        """The pair; each pipeline is opened when first used."""
        return OpenedOpenVino(files, setting.properties)

    @classmethod
    def one_pass_models(cls, files: PairFiles) -> OnePassModels:
        """Both models on the CPU, exact except for their rounded weights."""
        target, draft = (Reader(logits_of(folder)) for folder in (files.target, files.draft))
        return OnePassModels(cast(PreTrainedModel, target), cast(PreTrainedModel, draft))

    @classmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """The Python calls."""
        properties = "".join(f", {name}={value!r}" for name, value in setting.properties.items())
        return (
            f'draft = openvino_genai.draft_model(DRAFT, "{device}"{properties}); '
            f'openvino_genai.LLMPipeline(TARGET, "{device}", draft_model=draft{properties})'
            f".generate(.., num_assistant_tokens={gamma})"
        )


class OpenedOpenVino:
    """The pipelines of a pair under one setting."""

    def __init__(self, files: PairFiles, properties: Mapping[str, Any]) -> None:
        self._files, self._properties = files, dict(properties)
        self._genai = need("openvino_genai", EXTRA)

    def complete(self, request: BenchRequest, arm: Arm) -> TimedCompletion:
        """Complete the prompt in the arm's pipeline; the time of the first token is the engine's own measurement."""
        pipeline, inputs, config = self._prepare(request, arm)
        started = perf_counter()
        result = pipeline.generate(inputs, config)
        seconds = perf_counter() - started
        return _timed(result, seconds)

    def stream(self, request: BenchRequest, arm: Arm, streamer: Any) -> None:
        """Complete the prompt, passing tokens to an openvino_genai.StreamerBase as they are generated."""
        pipeline, inputs, config = self._prepare(request, arm)
        pipeline.generate(inputs, config, streamer)

    def _prepare(self, request: BenchRequest, arm: Arm) -> tuple[Any, Any, Any]:
        """The arm's pipeline and the arguments of its `generate`."""
        pipeline = {"none": self._plain, "lookup": self._lookup, "draft": self._drafting}[arm.kind]
        return pipeline, token_inputs(request.prompt), self._config(request, arm)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """No cache of earlier prompts, which LLMPipeline has by default, and each prompt in one forward."""
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GIGABYTES, False
        scheduler.max_num_batched_tokens = max(self._files.longest_tokens, 256)
        return self._properties | {"scheduler_config": scheduler}

    @cached_property
    def _plain(self) -> Any:
        return _opened(self._files.target, self._files.device, **self._settings)

    @cached_property
    def _lookup(self) -> Any:
        return _opened(self._files.target, self._files.device, prompt_lookup=True, **self._settings)

    @cached_property
    def _drafting(self) -> Any:
        draft = self._genai.draft_model(self._files.draft, self._files.device, **self._properties)
        return _opened(self._files.target, self._files.device, draft_model=draft, **self._settings)

    def _config(self, request: BenchRequest, arm: Arm) -> Any:
        sampling = request.sampling
        config = self._genai.GenerationConfig(max_new_tokens=request.max_new_tokens, do_sample=not sampling.greedy)
        config.stop_token_ids = set(self._files.eos)
        if not sampling.greedy:
            config.temperature, config.top_p, config.rng_seed = sampling.temperature, sampling.top_p, request.seed
        if sampling.top_k:
            config.top_k = sampling.top_k
        if arm.gamma:
            config.num_assistant_tokens = arm.gamma
        if arm.kind == "lookup":
            config.max_ngram_size = LOOKUP_NGRAM
        return config


def _opened(folder: Path, device: str, **settings: Any) -> Any:
    """A pipeline; BenchError if the engine refuses it, for example on a device without paged attention."""
    try:
        return open_pipeline(folder, device, **settings)
    except RuntimeError as error:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise BenchError(
            f"OpenVINO GenAI cannot open {folder} on {device}: {last}\n  do: choose another --device or --weights"
        ) from error


def _timed(result: Any, seconds: float) -> TimedCompletion:
    """The counts of the engine; if its block sizes do not add up to the text, only the number of blocks is used.

    For sampled text it counts one token too many in a block with a rejection, and too few accepted tokens.
    """
    tokens = np.array(result.tokens[0], np.int64)
    sizes = tuple(map(int, result.perf_metrics.raw_metrics.m_batch_sizes))
    first, extended = float(result.perf_metrics.get_ttft().mean) * 1e-3, result.extended_perf_metrics
    known = sum(sizes) == len(tokens)
    blocks = sizes if known else (1, *_even(len(tokens) - 1, len(sizes) - 1))
    if extended is None:
        # Prompt lookup has no counter; a block of n emitted tokens has at least n - 1 proposed ones.
        return TimedCompletion(tokens, seconds, first, blocks, len(tokens) - len(blocks), sizes_known=known)
    drafting = 1e-6 * sum(
        map(float, extended.draft_model_metrics.raw_metrics.m_durations[1:])
    )  # the first is the prompt's
    return TimedCompletion(tokens, seconds, first, blocks, int(extended.get_num_draft_tokens()), drafting, known)


def _even(tokens: int, blocks: int) -> list[int]:
    """Sizes of blocks that divide the tokens as evenly as possible."""
    each, more = divmod(tokens, max(blocks, 1))
    return [each + (index < more) for index in range(max(blocks, 1))] if tokens else []
