"""How fast the packaged target writes: transformers' `generate` with static batches beside our engine, taking turns.

    .venv/bin/python benchmarks/synthesis.py [--max-new-tokens 128] [--prompts 256] [--rounds 3]

Prompts are windows of 32 tokens of the standard library; T = 0.6. Counted are the tokens that are kept: those behind a
row's end-of-text token are `generate`'s waste. `cpu` divides by the process's own seconds, which other processes on the
machine disturb less than the clock's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.config import SynthesizePart, TargetPart
from fastdraft.models import target
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.decode import generate
from fastdraft.synthesize.engines import batch_size

PART, EOS, BATCH, PROMPT_TOKENS, TEMPERATURE = TargetPart(path="demo"), 0, 64, 32, 0.6
LIBRARY: tuple[ModuleType, ...] = (argparse, inspect, json, time, __import__("decimal"), __import__("typing"))


def prompts(count: int) -> np.ndarray:
    """(R,T) windows of source code."""
    sources = [inspect.getsource(module) for module in LIBRARY if hasattr(module, "__file__")]
    tokens = np.array(target.open_tokenizer(PART)("\n".join(sources)).input_ids)
    starts = np.random.default_rng(7).integers(0, len(tokens) - PROMPT_TOKENS, count)
    return np.stack([tokens[start : start + PROMPT_TOKENS] for start in starts])


def static_batches(model: PreTrainedModel, prompts_RT: np.ndarray, tokens: int) -> int:
    """transformers' generate, 64 rows at a time."""
    kept = 0
    for start in range(0, len(prompts_RT), BATCH):
        inputs_BT = torch.from_numpy(prompts_RT[start : start + BATCH])
        sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0}
        with torch.inference_mode():
            texts_BT = model.generate(
                inputs_BT,
                attention_mask=torch.ones_like(inputs_BT),
                max_new_tokens=tokens,
                pad_token_id=EOS,
                **sampling,
            )
        written_BN = texts_BT[:, PROMPT_TOKENS:]
        ended_BN = (written_BN == EOS).long().cumsum(1)
        kept += int((ended_BN - (written_BN == EOS).long() == 0).sum())
    return kept


def ours(model: PreTrainedModel, rows_at_once: int, prompts_RT: np.ndarray, tokens: int) -> int:
    """Our engine on one shard of rows."""
    coins_RN = torch.from_numpy(np.random.default_rng(7).random((len(prompts_RT), tokens)))
    rows = generate(
        model, list(prompts_RT), SamplingParams(TEMPERATURE), tokens, frozenset({EOS}), coins_RN, rows_at_once
    )
    return sum(len(row.tokens) for row in rows)


def measured(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Best tokens per CPU second and per second of the clock; the ways take turns."""
    best: dict[str, tuple[float, float]] = dict.fromkeys(ways, (0.0, 0.0))
    for _ in range(rounds):
        for name, way in ways.items():
            cpu, clock = time.process_time(), time.monotonic()
            tokens = way()
            found = tokens / (time.process_time() - cpu), tokens / (time.monotonic() - clock)
            best[name] = max(best[name][0], found[0]), max(best[name][1], found[1])
            print(f"{name:42} {found[0]:7,.0f} tokens/s cpu {found[1]:7,.0f} clock", flush=True)
    return best


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prompts_RT, tokens = prompts(options.prompts), options.max_new_tokens
    exact, half = (target.open_model(PART, torch.device("cpu"), kind) for kind in (torch.float32, torch.bfloat16))
    ways = {
        f"generate, static, 64, {name}": partial(static_batches, model, prompts_RT, tokens)
        for name, model in (("fp32", exact), ("bf16", half))
    }
    for name, model, rows in (("fp32", exact, 64), ("fp32", exact, 256), ("bf16", half, 64)):
        ways[f"ours, {rows} rows, {name}"] = partial(ours, model, rows, prompts_RT, tokens)
    part = SynthesizePart(mix={"any": 1}, prompts=1, max_prompt_tokens=PROMPT_TOKENS, max_new_tokens=tokens)
    kind = target.precision_of(PART, "auto", torch.device("cpu")).dtype
    rows = batch_size(part, PART, exact.config.max_position_embeddings, kind)
    model = target.open_model(PART, torch.device("cpu"), kind)
    ways[f"ours, by default {rows} rows, {kind}"] = partial(ours, model, rows, prompts_RT, tokens)
    best = measured(ways, options.rounds)
    first = next(iter(best.values()))
    print(
        f"\n| {options.prompts} prompts, up to {tokens} tokens, {torch.get_num_threads()} threads | tokens/s (cpu) | |"
    )
    print("|---|---|---|")
    for name, found in best.items():
        print(f"| {name} | {found[0]:,.0f} | {found[0] / first[0]:.2f}x |")


if __name__ == "__main__":
    main()
