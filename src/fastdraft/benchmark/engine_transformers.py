"""transformers' assisted generation: one process, torch's kernels, on the CPU or an accelerator.

evaluate/assisted.py turns off three of its defaults: a gamma that changes during generation, blocks that are cut short
if the draft is less than 40 % sure, and double warping of a sampling draft. The prompt's forward verifies the first
block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
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
from fastdraft.evaluation.assisted import generate
from fastdraft.models.pretrained import cache_name, open_model
from fastdraft.system.manifest import device_name
from fastdraft.system.precision import fastest

WARM_UP, REPEATS, CONTEXT_TOKENS = 3, 31, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Transformers(Engine):
    """transformers."""

    name = "transformers"
    modules = ()
    packages = ("transformers", "torch")
    rules = "transformers, generate"
    format = None
    weights = tuple(DTYPES)
    settings = (Setting("as it is", {}),)
    exact = Setting("fp32 arithmetic", {}, exact=True)
    drafts_first = True
    keeps_distribution = True
    greedy_draft = False

    @classmethod
    def devices(cls) -> Sequence[str]:
        """torch's names."""
        accelerator, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        return [*(f"{accelerator.type}:{index}" for index in range(count) if accelerator), "cpu"]

    @classmethod
    def default_weights(cls, device: str) -> str:
        """bf16 if the device multiplies matrices faster in it, else fp32."""
        return fastest(torch.device(device)).name

    @classmethod
    def hardware(cls, device: str) -> str:
        """torch's description of the device."""
        return device_name(torch.device(device))

    @classmethod
    def open(cls, files: PairFiles, setting: Setting) -> OpenedTransformers:
        """Both models on the device."""
        return OpenedTransformers(files, _models(files, setting.exact))

    @classmethod
    def one_pass_models(cls, files: PairFiles) -> OnePassModels:
        """The models of the exact setting."""
        return _models(files, exact=True)

    @classmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """The Python code."""
        return (
            f'draft.generation_config.update(num_assistant_tokens={gamma}, num_assistant_tokens_schedule="constant", '
            f"assistant_confidence_threshold=0.0); target.generate(.., assistant_model=draft)"
        )


def _models(files: PairFiles, exact: bool) -> OnePassModels:
    """Target and draft with their weights at the given precisions; `exact`: computing in fp32 with these weights."""
    return OnePassModels(
        target=_model(files.target, files.target_weights, files.device, exact or files.target_weights == "fp32"),
        draft=_model(files.draft, files.draft_weights, files.device, exact or files.draft_weights == "fp32"),
    )


@lru_cache(maxsize=2)
def _model(folder: Path, weights: str, device: str, fp32: bool) -> PreTrainedModel:
    """A model, opened once for the settings that use it in turn."""
    model = open_model(folder, device, DTYPES[weights])
    opened: PreTrainedModel = model.float() if fp32 else model
    return opened


class OpenedTransformers:
    """Both models, in one process."""

    def __init__(self, files: PairFiles, models: OnePassModels) -> None:
        self._files, self._target, self._draft = files, models.target, models.draft

    def complete(self, request: BenchRequest, arm: Arm) -> TimedCompletion:
        """Complete the prompt with `generate`; hooks time the forwards of both models."""
        draft = self._draft if arm.kind == "draft" else None
        lookup = {"prompt_lookup_num_tokens": arm.gamma, "max_matching_ngram_size": LOOKUP_NGRAM}
        with torch.random.fork_rng(), _timed_forwards(self._target) as forwards, _timed_forwards(self._draft) as steps:
            torch.manual_seed(request.seed)
            started = perf_counter()
            tokens = generate(
                request.prompt,
                request.sampling,
                self._target,
                request.max_new_tokens,
                self._files.eos,
                draft=draft,
                gamma=arm.gamma or None,
                prompt_lookup=lookup if arm.kind == "lookup" else {},
            )
            seconds = perf_counter() - started
        tokens = tokens[: request.max_new_tokens]  # prompt lookup exceeds this length
        end = len(request.prompt) - 1 + len(tokens)
        ends = [len(request.prompt) - 1, *(min(forward.past, end) for forward in forwards[1:]), end]
        blocks = tuple(after - before for before, after in pairwise(ends))
        read = sum(forward.tokens for forward in forwards)
        drafted = read - len(request.prompt) - (len(forwards) - 1)
        first = forwards[0].ended
        drafting = sum(step.ended - step.started for step in steps if step.started > first)
        return TimedCompletion(tokens, seconds, first - started, blocks, drafted, drafting)


@torch.inference_mode()
def step_seconds(model: PreTrainedModel, block_tokens: int) -> float:
    """Median seconds of a forward over a block after CONTEXT_TOKENS, with the choice of each token."""
    context = torch.arange(CONTEXT_TOKENS, device=model.device)[None] % model.config.vocab_size
    name = cache_name(model)
    cache = model(input_ids=context, use_cache=True)[name]
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        started = perf_counter()
        model(input_ids=context[:, :block_tokens], use_cache=True, **{name: cache}).logits.argmax(-1).tolist()
        seconds.append(perf_counter() - started)
        cache.crop(-block_tokens)
    return median(seconds[WARM_UP:])


class _Forward(NamedTuple):
    """One forward: its start, the tokens in its cache, the tokens it processed, its end."""

    started: float
    past: int
    tokens: int
    ended: float


@contextmanager
def _timed_forwards(model: PreTrainedModel) -> Iterator[list[_Forward]]:
    """A list that grows by one entry with each forward of the model."""
    name = cache_name(model)
    starts: list[tuple[float, int, int]] = []
    forwards: list[_Forward] = []

    def before(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get(name)
        past = cache.get_seq_length() if cache is not None else 0
        starts.append((perf_counter(), past, kwargs["input_ids"].shape[1]))

    def after(*_: Any) -> None:
        if model.device.type != "cpu":
            torch.accelerator.synchronize()
        forwards.append(_Forward(*starts[-1], perf_counter()))

    hooks = model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)
    try:
        yield forwards
    finally:
        for hook in hooks:
            hook.remove()
