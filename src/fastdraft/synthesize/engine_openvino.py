"""The engine `openvino`: OpenVINO GenAI's continuous batching on CPU, iGPU or NPU, token ids in and out.

The target is exported once, without compression, to a folder of the stage. A target folder that already contains
openvino_model.xml is used as it is (for example quantised). Log-probabilities are raw; `rescore` corrects them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdraft.models.openvino import F32_WITH_CACHE, MODEL_FILE, convert, quiet_export
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import KeyedRequest, LogprobsMode, Shard
from fastdraft.synthesize.key_set import KeySet
from fastdraft.system.files import atomic_write
from fastdraft.system.optional_packages import need

CACHE_GIGABYTES = 2


class OpenVinoEngine:
    """The target in OpenVINO GenAI."""

    logprobs_mode: LogprobsMode = "raw"

    def __init__(self, folder: Path, device: str, decoding: DecodingParams) -> None:
        genai = need("openvino_genai", "openvino")
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs = CACHE_GIGABYTES, decoding.batch_size
        scheduler.dynamic_split_fuse = False
        self._decoding, self._genai = decoding, genai
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, device, F32_WITH_CACHE)

    def shards(self, requests: Iterable[KeyedRequest], stored: KeySet) -> Iterator[Shard]:
        """Completions in the order in which they end; waiting requests join as soon as others have ended."""
        tensor = need("openvino", "openvino").Tensor
        waiting = (row for row in requests if row.key not in stored)
        running: dict[int, tuple[KeyedRequest, Any]] = {}
        rows: list[Completion] = []
        for step in range(1 << 62):
            while len(running) < 2 * self._decoding.batch_size and (row := next(waiting, None)) is not None:
                request_id = step << 16 | len(running)
                prompt = tensor(row.request.prompt[None].astype(np.int64))
                running[request_id] = row, self._pipeline.add_request(request_id, prompt, self._settings(row))
            if not running:
                break
            self._pipeline.step()
            for request_id, (row, handle) in list(running.items()):
                if handle.get_status() != self._genai.GenerationStatus.RUNNING:
                    del running[request_id]
                    rows.append(_completion(row, handle))
            if len(rows) >= self._decoding.shard_prompts:
                yield Shard(rows)
                rows = []
        yield Shard(rows)

    def _settings(self, row: KeyedRequest) -> Any:
        sampling, settings = row.request.sampling, self._genai.GenerationConfig()
        settings.max_new_tokens, settings.logprobs = self._decoding.max_new_tokens, 1
        settings.stop_token_ids = set(self._decoding.eos)
        settings.do_sample = not sampling.greedy
        if not sampling.greedy:
            settings.temperature, settings.top_p = sampling.temperature, sampling.top_p
            settings.rng_seed = int(row.key, 16) % 2**31
            if sampling.top_k:
                settings.top_k = sampling.top_k
        return settings


def _completion(row: KeyedRequest, handle: Any) -> Completion:
    (output,) = handle.read_all()
    tokens = np.array(output.generated_ids, np.int64)
    logp = np.minimum(np.array(output.generated_log_probs, np.float32), 0)
    return Completion(row.key, row.request.prompt, tokens, logp, row.request.sampling, row.request.index)


def openvino_folder(target: Path, scratch: Path) -> Path:
    """The folder with the target as OpenVINO IR: its own, or one in `scratch` to which it is exported once."""
    if (target / MODEL_FILE).is_file():
        return target
    folder = scratch / "openvino"
    if not (folder / MODEL_FILE).is_file():
        with quiet_export(target):
            model = convert(target)
        with atomic_write(folder) as part:
            model.save_pretrained(part)
    return folder
