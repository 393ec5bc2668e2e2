"""transformers' assisted generation: one process, torch's kernels, on the CPU or the first accelerator.

Traps that are set aside (evaluate/assisted.py): gamma that changes as it goes, blocks cut short where the draft is less
than 40 % sure, a sampling draft that is warped twice. The prompt's forward checks the first block.
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

from fastdraft.bench.engine import LOOKUP_NGRAM, Arm, Asked, Engine, Files, Setting, Timed
from fastdraft.evaluate.assisted import generated
from fastdraft.models.target import cache_name, load
from fastdraft.system.manifest import describe
from fastdraft.system.precision import fastest

WARM_UP, REPEATS, CONTEXT_TOKENS = 3, 31, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Transformers(Engine):
    """The engine."""

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
        """As torch names them."""
        here = torch.accelerator.current_accelerator()
        more = [] if here is None else [f"{here.type}:{number}" for number in range(torch.accelerator.device_count())]
        return [*more, "cpu"]

    @classmethod
    def usual_weights(cls, device: str) -> str:
        """bf16 where the device multiplies matrices faster in it, else fp32."""
        return fastest(torch.device(device)).name

    @classmethod
    def hardware(cls, device: str) -> str:
        """As torch knows it."""
        return describe(torch.device(device))

    @classmethod
    def open(cls, files: Files, setting: Setting) -> OpenedTransformers:
        """Both models on the device."""
        return OpenedTransformers(files, *_models(files, setting.exact))

    @classmethod
    def readers(cls, files: Files) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Those of the exact setting."""
        return _models(files, exact=True)

    @classmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """The lines of Python."""
        return (
            f'draft.generation_config.update(num_assistant_tokens={gamma}, num_assistant_tokens_schedule="constant", '
            f"assistant_confidence_threshold=0.0); target.generate(.., assistant_model=draft)"
        )


def _models(files: Files, exact: bool) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Target and draft, each with its weights at the precision asked for; exact: in fp32 arithmetic, also of these."""
    sides = (files.target, files.target_weights), (files.draft, files.draft_weights)
    target, draft = (_model(folder, weights, files.device, exact or weights == "fp32") for folder, weights in sides)
    return target, draft


@lru_cache(maxsize=2)
def _model(folder: Path, weights: str, device: str, fp32: bool) -> PreTrainedModel:
    """A model, opened once for all that is asked of it in turn."""
    model = load(folder, DTYPES[weights]).to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    opened: PreTrainedModel = model.float() if fp32 else model
    return opened


class OpenedTransformers:
    """The two models."""

    def __init__(self, files: Files, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        self._files, self._target, self._draft = files, target, draft

    def complete(self, asked: Asked, arm: Arm) -> Timed:
        """By `generate`; forwards of the target are watched."""
        draft = self._draft if arm.kind == "draft" else None
        lookup = {"prompt_lookup_num_tokens": arm.gamma, "max_matching_ngram_size": LOOKUP_NGRAM}
        with torch.random.fork_rng(), _watched(self._target) as forwards, _watched(self._draft) as steps:
            torch.manual_seed(asked.seed)
            started = perf_counter()
            tokens = generated(
                *(asked.prompt, asked.sampling, self._target, asked.tokens, self._files.eos, draft, arm.gamma or None),
                lookup=lookup if arm.kind == "lookup" else {},
            )
            seconds = perf_counter() - started
        tokens = tokens[: asked.tokens]  # prompt lookup goes beyond the length asked for
        end = len(asked.prompt) - 1 + len(tokens)
        ends = [len(asked.prompt) - 1, *(min(forward.past, end) for forward in forwards[1:]), end]
        blocks = tuple(after - before for before, after in pairwise(ends))
        read = sum(forward.tokens for forward in forwards)
        drafted = read - len(asked.prompt) - (len(forwards) - 1)
        first = forwards[0].ended
        drafting = sum(step.ended - step.began for step in steps if step.began > first)
        return Timed(tokens, seconds, first - started, blocks, drafted, drafting)


@torch.inference_mode()
def step_seconds(model: PreTrainedModel, block_tokens: int) -> float:
    """A forward over so many tokens with CONTEXT_TOKENS behind them, and the choice of a token: the median."""
    context = torch.arange(CONTEXT_TOKENS, device=model.device)[None] % model.config.vocab_size
    name = cache_name(model)
    cache = model(input_ids=context, use_cache=True)[name]
    taken = []
    for _ in range(WARM_UP + REPEATS):
        started = perf_counter()
        model(input_ids=context[:, :block_tokens], use_cache=True, **{name: cache}).logits.argmax(-1).tolist()
        taken.append(perf_counter() - started)
        cache.crop(-block_tokens)
    return median(taken[WARM_UP:])


class _Forward(NamedTuple):
    """One forward: when it began, tokens in its cache, tokens read, when it ended."""

    began: float
    past: int
    tokens: int
    ended: float


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[_Forward]]:
    """A list that grows by one entry with each forward of the model."""
    name = cache_name(model)
    begun: list[tuple[float, int, int]] = []
    forwards: list[_Forward] = []

    def before(_: Any, __: Any, given: dict[str, Any]) -> None:
        cache = given.get(name)
        past = cache.get_seq_length() if cache is not None else 0
        begun.append((perf_counter(), past, given["input_ids"].shape[1]))

    def after(*_: Any) -> None:
        if model.device.type != "cpu":
            torch.accelerator.synchronize()
        forwards.append(_Forward(*begun[-1], perf_counter()))

    hooks = model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)
    try:
        yield forwards
    finally:
        for hook in hooks:
            hook.remove()
