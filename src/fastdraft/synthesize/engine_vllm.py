"""The engine `vllm`: vLLM offline, token ids in and out.

vLLM has one `logprobs_mode` for everything. Top tokens are kept raw, so with `top_logprobs` all log-probabilities are
raw, and rows whose distribution differs are rescored; otherwise they are processed.

vLLM is opened only if rows are missing, and closed after them: it takes most of a GPU, which training needs next.

Tested with vLLM 0.32.0 built for CPUs (docs/synthesis.md); not yet on a GPU.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastdraft.synthesize.answer_parsing import parse_logp, parse_top_logprobs
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import KeyedRequest, LogprobsMode, Shard, UnusableAnswer
from fastdraft.synthesize.key_set import KeySet
from fastdraft.system.optional_packages import need

# vLLM's fraction of the GPU's memory when the target is opened next to it for rescoring.
SHARED_GPU_FRACTION = 0.45


class VllmEngine:
    """The target in vLLM. With `share_gpu` it leaves room for the target that rescores in this process."""

    def __init__(
        self, folder: Path, dtype: str, trust_remote_code: bool, decoding: DecodingParams, share_gpu: bool = False
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
        self._vllm, self._decoding, self._share_gpu = need("vllm", "vllm"), decoding, share_gpu
        self.logprobs_mode: LogprobsMode = "raw" if decoding.top_logprobs else "processed"
        self._arguments: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "logprobs_mode": f"{self.logprobs_mode}_logprobs",
            "max_logprobs": max(decoding.top_logprobs, 1),  # the default is 20
            "generation_config": "vllm",  # not the model's, which may set a top-k or a penalty
            "seed": decoding.seed,
        }

    def shards(self, requests: Iterable[KeyedRequest], stored: KeySet) -> Iterator[Shard]:
        """One shard per `shard_prompts` requests; vLLM batches them itself."""
        waiting = (row for row in requests if row.key not in stored)
        if not (group := list(islice(waiting, self._decoding.shard_prompts))):
            return
        model = self._open()
        try:
            while group:
                yield self._complete(model, group)
                group = list(islice(waiting, self._decoding.shard_prompts))
        finally:
            model.llm_engine.engine_core.shutdown()  # its process outlived the object by 5 s

    def _open(self) -> Any:
        model_class = self._vllm.LLM  # loads `vllm.platforms`, which is not there before
        if self._vllm.platforms.current_platform.is_cpu():
            # vLLM 0.32.0 crashes on a seeded request whose prompt it reads in chunks (set_offset of a generator).
            return model_class(**self._arguments, enable_chunked_prefill=False)
        return model_class(
            **self._arguments, **({"gpu_memory_utilization": SHARED_GPU_FRACTION} if self._share_gpu else {})
        )

    def _complete(self, model: Any, group: list[KeyedRequest]) -> Shard:
        prompts = [{"prompt_token_ids": row.request.prompt.tolist()} for row in group]
        outputs = model.generate(prompts, [self._settings(row) for row in group], use_tqdm=False)
        rows, refused = list[Completion](), Counter[str]()
        for row, output in zip(group, outputs, strict=True):
            try:
                rows.append(_completion(row, output.outputs[0], self._decoding.top_logprobs))
            except UnusableAnswer as unusable:
                refused[str(unusable)] += 1
        return Shard(rows, refused)

    def _settings(self, row: KeyedRequest) -> Any:
        sampling = row.request.sampling
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            max_tokens=self._decoding.max_new_tokens,
            stop_token_ids=sorted(self._decoding.eos),
            seed=int(row.key, 16) % 2**31,
            logprobs=self._decoding.top_logprobs,  # in addition to the sampled token's
            detokenize=False,
        )


def _completion(row: KeyedRequest, output: Any, top_logprobs: int) -> Completion:
    """The completion in vLLM's output; UnusableAnswer if its log-probabilities are invalid."""
    tokens = np.array(output.token_ids, np.int64)
    if row.request.sampling.greedy:
        logp = np.zeros(len(tokens), np.float32)
    else:
        pairs = zip(output.token_ids, output.logprobs, strict=True)
        logp = parse_logp(np.minimum([position[token].logprob for token, position in pairs], 0), len(tokens))
    top = None
    if top_logprobs:
        positions = [{i: entry.logprob for i, entry in position.items()} for position in output.logprobs]
        top = parse_top_logprobs(positions, top_logprobs)
    return Completion(row.key, row.request.prompt, tokens, logp, row.request.sampling, row.request.index, top)
