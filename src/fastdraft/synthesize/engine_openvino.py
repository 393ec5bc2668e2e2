"""The engine `openvino`: OpenVINO GenAI's continuous batching, on CPU, iGPU or NPU. Token ids in, token ids out.

The target is exported once, with its weights as they are, to a folder beside the rows; a folder that holds
openvino_model.xml already is taken as it is (quantised, say). Log-probabilities are raw: `rescore` corrects them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastdraft.models.target import false_alarms
from fastdraft.synthesize.completions import Completion, Keys
from fastdraft.synthesize.write import Decoding, Keyed, Logp, Shard
from fastdraft.system.files import atomic_write
from fastdraft.system.optional_packages import need
from fastdraft.system.progress import suppressed_logs

MODEL = "openvino_model.xml"
# The distribution is that of float32 arithmetic; the defaults (bf16, 8-bit cache) are another model's.
STRICT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
CACHE_GIGABYTES = 2
# Logged in every export. optimum-intel 2.1 asks a configuration for its type by its name before transformers 5.0, and
# makes masks by `cache_position`, which transformers 5.5 deprecates. torch's tracer reads all that a model has, the
# loss of one that no one trains among it.
OF_TRACING = (
    "`torch_dtype` is deprecated",
    "`cache_position` is deprecated as an arg",
    "`loss_type=None` was set in the config",
)


class OpenVino:
    """The target in OpenVINO GenAI."""

    logp: Logp = "raw"

    def __init__(self, folder: Path, device: str, decoding: Decoding) -> None:
        genai = need("openvino_genai", "openvino")
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs = CACHE_GIGABYTES, decoding.batch_size
        scheduler.dynamic_split_fuse = False
        self._decoding, self._genai = decoding, genai
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, device, STRICT)

    def shards(self, requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        """Rows in the order in which they end; new requests join as soon as others have ended."""
        waiting = (row for row in requests if row.key not in stored)
        running: dict[int, tuple[Keyed, Any]] = {}
        rows: list[Completion] = []
        for number in range(1 << 62):
            while len(running) < 2 * self._decoding.batch_size and (row := next(waiting, None)) is not None:
                identity = number << 16 | len(running)
                running[identity] = row, self._asked(identity, row)
            if not running:
                break
            self._pipeline.step()
            for identity in [i for i, (_, handle) in running.items() if _finished(self._genai, handle)]:
                rows.append(self._answer(*running.pop(identity)))
            if len(rows) >= self._decoding.shard_prompts:
                yield Shard(rows)
                rows = []
        yield Shard(rows)

    def _asked(self, identity: int, row: Keyed) -> Any:
        tensor = need("openvino", "openvino").Tensor(row.request.prompt[None].astype(np.int64))
        return self._pipeline.add_request(identity, tensor, self._settings(row))

    def _settings(self, row: Keyed) -> Any:
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

    def _answer(self, row: Keyed, handle: Any) -> Completion:
        (output,) = handle.read_all()
        tokens = np.array(output.generated_ids, np.int64)
        logp = np.minimum(np.array(output.generated_log_probs, np.float32), 0)
        return Completion(row.key, row.request.prompt, tokens, logp, row.request.sampling, row.request.index)


def exported(target: Path, scratch: Path) -> Path:
    """The folder with the target in OpenVINO's form: its own, or one that is made of it, once."""
    if (target / MODEL).is_file():
        return target
    folder = scratch / "openvino"
    if not (folder / MODEL).is_file():
        optimum = need("optimum.intel", "openvino")
        with tracing(target):
            model = optimum.OVModelForCausalLM.from_pretrained(target, export=True, compile=False, load_in_8bit=False)
        with atomic_write(folder) as part:
            model.save_pretrained(part)
    return folder


@contextmanager
def tracing(folder: Path) -> Iterator[None]:
    """Without torch's and transformers' words to exporters, which tell users nothing; the model lies in `folder`."""
    with warnings.catch_warnings(), suppressed_logs("transformers", *OF_TRACING, *false_alarms(folder)):
        warnings.simplefilter("ignore")
        yield


def _finished(genai: Any, handle: Any) -> bool:
    return bool(handle.get_status() != genai.GenerationStatus.RUNNING)
