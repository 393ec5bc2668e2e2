"""OpenVINO GenAI: an LLMPipeline without a draft, one with, one with prompt lookup, over one pair of exports.

Read in its sources (2026): a prompt's forward emits one token, and blocks begin behind it; `m_batch_sizes` are the
tokens that each target forward emitted, of greedy text. Sampled, a drafted token x is accepted with chance q(x) / p(y),
where y is another draw from p, and what replaces a rejected one is drawn one place too far on (`validate_candidate`,
src/cpp/src/sampling/sampler.cpp): text sampled with a draft is not distributed as the target's. Prompt lookup compares
tokens, and is sound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel

from fastdraft.bench.engine import LOOKUP_NGRAM, Arm, Asked, Engine, Files, Setting, Timed
from fastdraft.data.shards import Tokens
from fastdraft.models.logits_reader import Reader
from fastdraft.models.openvino import STRICT, logits_of, open_folder
from fastdraft.models.openvino_llama import EXTRA
from fastdraft.planning.probe import cores
from fastdraft.system.errors import BenchError
from fastdraft.system.optional_packages import need

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
# For keys and values of both models; the engine gives the draft its share.
CACHE_GIGABYTES = 1


class OpenVino(Engine):
    """The engine."""

    name = "OpenVINO GenAI"
    modules = tuple((name, EXTRA) for name in ("openvino", "openvino_genai", "openvino_tokenizers"))
    packages = ("openvino-genai", "openvino", "optimum-intel", "nncf")
    rules = "OpenVINO GenAI"
    format = "openvino"
    weights = ("int8", "int8_sym", "int4", "int4_sym", "fp16")
    settings = (
        Setting("defaults", {}),
        Setting("f32 inference", F32),
        Setting("f32 inference and KV cache", F32 | {"KV_CACHE_PRECISION": "f32"}),
    )
    exact = Setting("f32, without dynamic quantisation", STRICT, exact=True)
    drafts_first = False
    keeps_distribution = False
    greedy_draft = False

    @classmethod
    def devices(cls) -> Sequence[str]:
        """As OpenVINO names them: CPU, GPU, GPU.1, NPU."""
        found: list[str] = need("openvino", EXTRA).Core().available_devices
        return sorted(found, key=lambda name: (name != "CPU", name))

    @classmethod
    def hardware(cls, device: str) -> str:
        """Its full name; of the processor, how many cores this process may use."""
        name = str(need("openvino", EXTRA).Core().get_property(device, "FULL_DEVICE_NAME")).strip()
        return f"{name}, {cores()} cores" if device == "CPU" else name

    @classmethod
    def open(cls, files: Files, setting: Setting) -> OpenedOpenVino:
        """Each of the pipelines is opened when it is first asked."""
        return OpenedOpenVino(files, setting.properties)

    @classmethod
    def readers(cls, files: Files) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Both models on the CPU, exact but for their weights."""
        target, draft = (cast(PreTrainedModel, Reader(logits_of(folder))) for folder in (files.target, files.draft))
        return target, draft

    @classmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """The calls of Python."""
        more = "".join(f", {name}={value!r}" for name, value in setting.properties.items())
        return (
            f'draft = openvino_genai.draft_model(DRAFT, "{device}"{more}); '
            f'openvino_genai.LLMPipeline(TARGET, "{device}", draft_model=draft{more})'
            f".generate(.., num_assistant_tokens={gamma})"
        )


class OpenedOpenVino:
    """The pipelines of a pair under one setting."""

    def __init__(self, files: Files, properties: Mapping[str, Any]) -> None:
        self._files, self._properties = files, dict(properties)
        self._genai, self._openvino = need("openvino_genai", EXTRA), need("openvino", EXTRA)

    def complete(self, asked: Asked, arm: Arm) -> Timed:
        """In the arm's own pipeline; the clock is around the call, the first token's time is the engine's."""
        pipeline, inputs, config = self._prepared(asked, arm)
        started = perf_counter()
        result = pipeline.generate(inputs, config)
        seconds = perf_counter() - started
        return _timed(result, seconds)

    def stream(self, asked: Asked, arm: Arm, streamer: Any) -> None:
        """The same, watched: an openvino_genai.StreamerBase is given tokens as they come."""
        pipeline, inputs, config = self._prepared(asked, arm)
        pipeline.generate(inputs, config, streamer)

    def _prepared(self, asked: Asked, arm: Arm) -> tuple[Any, Any, Any]:
        """The arm's pipeline and its arguments."""
        pipeline = {"none": self._plain, "lookup": self._lookup, "draft": self._drafting}[arm.kind]
        inputs = self._genai.TokenizedInputs(*map(self._openvino.Tensor, _batch(asked.prompt)))
        return pipeline, inputs, self._config(asked, arm)

    @cached_property
    def _scheduled(self) -> dict[str, Any]:
        """Without a cache of old prompts, which LLMPipeline has by default; a prompt in one forward."""
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GIGABYTES, False
        scheduler.max_num_batched_tokens = max(self._files.longest_tokens, 256)
        return self._properties | {"scheduler_config": scheduler}

    @cached_property
    def _plain(self) -> Any:
        return _opened(self._files.target, self._files.device, **self._scheduled)

    @cached_property
    def _lookup(self) -> Any:
        return _opened(self._files.target, self._files.device, prompt_lookup=True, **self._scheduled)

    @cached_property
    def _drafting(self) -> Any:
        draft = self._genai.draft_model(self._files.draft, self._files.device, **self._properties)
        return _opened(self._files.target, self._files.device, draft_model=draft, **self._scheduled)

    def _config(self, asked: Asked, arm: Arm) -> Any:
        config = self._genai.GenerationConfig(max_new_tokens=asked.tokens, do_sample=not asked.sampling.greedy)
        config.stop_token_ids = set(self._files.eos)
        if not asked.sampling.greedy:
            config.temperature, config.top_p, config.rng_seed = (
                asked.sampling.temperature,
                asked.sampling.top_p,
                asked.seed,
            )
        if asked.sampling.top_k:
            config.top_k = asked.sampling.top_k
        if arm.gamma:
            config.num_assistant_tokens = arm.gamma
        if arm.kind == "lookup":
            config.max_ngram_size = LOOKUP_NGRAM
        return config


def _opened(folder: Path, device: str, **settings: Any) -> Any:
    """A pipeline; BenchError where the engine refuses it: a device without paged attention, say."""
    try:
        return open_folder(folder, device, **settings)
    except RuntimeError as error:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise BenchError(
            f"OpenVINO GenAI cannot open {folder} on {device}: {last}\n  do: choose another --device or --weights"
        ) from error


def _batch(prompt: Tokens) -> tuple[Tokens, Tokens]:
    """Ids and mask of one prompt."""
    return prompt[None], np.ones_like(prompt)[None]


def _timed(result: Any, seconds: float) -> Timed:
    """What the engine counted; where its sizes of blocks are not those of the text, their number alone.

    Sampled, a block with a rejection is counted with one token too many, and accepted tokens with too few.
    """
    tokens = np.array(result.tokens[0], np.int64)
    sizes = tuple(map(int, result.perf_metrics.raw_metrics.m_batch_sizes))
    first, extended = float(result.perf_metrics.get_ttft().mean) * 1e-3, result.extended_perf_metrics
    known = sum(sizes) == len(tokens)
    blocks = sizes if known else (1, *_even(len(tokens) - 1, len(sizes) - 1))
    if extended is None:
        # Prompt lookup: no counter of its own; a block of n emitted tokens has n - 1 that were proposed, at least.
        return Timed(tokens, seconds, first, blocks, len(tokens) - len(blocks), sizes_known=known)
    drafting = 1e-6 * sum(map(float, extended.draft_model_metrics.raw_metrics.m_durations[1:]))  # the prompt's first
    return Timed(tokens, seconds, first, blocks, int(extended.get_num_draft_tokens()), drafting, known)


def _even(tokens: int, blocks: int) -> list[int]:
    """So many tokens in so many blocks, as alike as can be."""
    each, more = divmod(tokens, max(blocks, 1))
    return [each + (place < more) for place in range(max(blocks, 1))] if tokens else []
