"""The engine `vllm`: vLLM offline. Token ids in, token ids out; log-probabilities of the processed distribution.

vLLM has one mode for all that it says, and the most likely tokens are kept raw: where they are asked for, all is raw,
and rows whose distribution is another are rescored.

It is opened for rows that are missing, and closed behind them: it takes most of a GPU, which training wants next.

Run with vLLM 0.32.0 as it is built for CPUs (docs/synthesis.md); not yet on a GPU.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastdraft.synthesize.completions import Completion, Keys
from fastdraft.synthesize.top_logprobs import top_logprobs_of
from fastdraft.synthesize.write import Decoding, Keyed, Logp, Shard, Unusable
from fastdraft.system.optional_packages import need

# Of a GPU's memory, where the target is opened beside vLLM to read rows again.
SHARED = 0.45


class Vllm:
    """The target in vLLM; `read_again` where rows are rescored in this process, so that it leaves room for that."""

    def __init__(
        self, folder: Path, dtype: str, trust_remote_code: bool, decoding: Decoding, read_again: bool = False
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # its log; results are printed to stdout
        self._vllm, self._decoding = need("vllm", "vllm"), decoding
        self.logp: Logp = "raw" if decoding.top_logprobs else "processed"
        self._read_again = read_again
        self._asked: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            # Before or after temperature, top-k and top-p; greedy rows have 0 (set below).
            "logprobs_mode": "raw_logprobs" if decoding.top_logprobs else "processed_logprobs",
            "max_logprobs": max(decoding.top_logprobs, 1),  # otherwise 20
            "generation_config": "vllm",  # not the model's own: it may set a top-k or a penalty
            "seed": decoding.seed,
        }

    def shards(self, requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        """A shard for each so many requests; vLLM batches them as it likes."""
        waiting = (row for row in requests if row.key not in stored)
        if not (asked := list(islice(waiting, self._decoding.shard_prompts))):
            return
        model = self._open()
        try:
            while asked:
                yield self._answered(model, asked)
                asked = list(islice(waiting, self._decoding.shard_prompts))
        finally:
            model.llm_engine.engine_core.shutdown()  # its process outlives the object: seen 5 s after

    def _open(self) -> Any:
        opens = self._vllm.LLM  # brings `platforms`, which vLLM loads late
        if self._vllm.platforms.current_platform.is_cpu():
            # vLLM 0.32.0 dies of a seeded request whose prompt it reads in pieces (set_offset of a generator).
            return opens(**self._asked, enable_chunked_prefill=False)
        return opens(**self._asked, **({"gpu_memory_utilization": SHARED} if self._read_again else {}))

    def _answered(self, model: Any, asked: list[Keyed]) -> Shard:
        prompts = [{"prompt_token_ids": row.request.prompt.tolist()} for row in asked]
        outputs = model.generate(prompts, [self._settings(row) for row in asked], use_tqdm=False)
        answers = zip(asked, [output.outputs[0] for output in outputs], strict=True)
        return _shard(answers, self._decoding.top_logprobs)

    def _settings(self, row: Keyed) -> Any:
        sampling = row.request.sampling
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            max_tokens=self._decoding.max_new_tokens,
            stop_token_ids=sorted(self._decoding.eos),
            seed=int(row.key, 16) % 2**31,
            logprobs=self._decoding.top_logprobs,  # beside the sampled token's
            detokenize=False,
        )


def _shard(answers: Iterable[tuple[Keyed, Any]], top_logprobs: int) -> Shard:
    rows: list[Completion] = []
    refused: Counter[str] = Counter()
    for row, output in answers:
        try:
            rows.append(_answer(row, output, top_logprobs))
        except Unusable as unusable:
            refused[str(unusable)] += 1
    return Shard(rows, refused)


def _answer(row: Keyed, output: Any, top_logprobs: int) -> Completion:
    tokens = np.array(output.token_ids, np.int64)
    if row.request.sampling.greedy:
        logp = np.zeros(len(tokens), np.float32)
    else:
        pairs = zip(output.token_ids, output.logprobs, strict=True)
        logp = np.minimum(np.array([of_step[token].logprob for token, of_step in pairs], np.float32), 0)
    if not np.isfinite(logp).all():
        raise Unusable("log-probabilities above zero, infinite or NaN")
    top = None
    if top_logprobs:
        top = top_logprobs_of([{i: of.logprob for i, of in step.items()} for step in output.logprobs], top_logprobs)
    return Completion(row.key, row.request.prompt, tokens, logp, row.request.sampling, row.request.index, top)
