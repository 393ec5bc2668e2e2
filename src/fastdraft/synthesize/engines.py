"""The table of engines, `ENGINES` at the end: each row opens one. docs/synthesis.md says what each returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.config import SynthesizePart, TargetPart
from fastdraft.config.synthesis import CACHE_BYTES, MAX_BATCH_SIZE
from fastdraft.models import pretrained
from fastdraft.models.shape.target_sizes import sizes
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import Engine
from fastdraft.synthesize.engine_openvino import OpenVinoEngine, openvino_folder
from fastdraft.synthesize.engine_ray import RayEngine
from fastdraft.synthesize.engine_recorded import RecordedEngine
from fastdraft.synthesize.engine_server import ServerEngine
from fastdraft.synthesize.engine_transformers import TransformersEngine
from fastdraft.synthesize.engine_vllm import VllmEngine
from fastdraft.system.precision import Precision


@dataclass(frozen=True)
class EngineSetup:
    """What an engine needs. `scratch` is a folder for a converted target."""

    target: TargetPart
    part: SynthesizePart
    decoding: DecodingParams
    device: torch.device
    precision: Precision
    context_tokens: int
    scratch: Path

    def open_target(self) -> PreTrainedModel:
        """The target in this process."""
        return pretrained.open_model(self.target, self.device, self.precision.dtype)


def batch_size(part: SynthesizePart, target: TargetPart, context_tokens: int, dtype: torch.dtype) -> int:
    """The recipe's `batch_size`, by default as many prompts as have their keys and values in CACHE_BYTES.

    Each prompt counts with its maximum number of tokens, prompt and completion.
    """
    if part.batch_size:
        return part.batch_size
    has_instructions = part.own_sources & part.mix.keys()
    prompt_tokens = max(part.max_prompt_tokens, part.max_instruction_tokens if has_instructions else 0)
    tokens = min(prompt_tokens + part.max_new_tokens, context_tokens)
    shape = sizes(pretrained.open_config(target))
    bytes_per_prompt = 2 * shape.layers * shape.kv_heads * shape.head_size * tokens * dtype.itemsize
    return max(1, min(MAX_BATCH_SIZE, CACHE_BYTES // bytes_per_prompt))


def transformers(setup: EngineSetup) -> Engine:
    """transformers in this process, or in Ray's workers."""
    if setup.part.ray_workers:
        return RayEngine(setup.target, setup.precision.dtype, setup.part.ray_workers, setup.decoding)
    return TransformersEngine(setup.open_target(), setup.decoding)


def openvino(setup: EngineSetup) -> Engine:
    """OpenVINO GenAI; on the CPU unless torch's device is an Intel GPU."""
    device = "GPU" if setup.device.type == "xpu" else "CPU"
    folder = openvino_folder(pretrained.folder_of(setup.target), setup.scratch)
    return OpenVinoEngine(folder, device, setup.decoding)


def vllm(setup: EngineSetup) -> Engine:
    """vLLM in this process."""
    return VllmEngine(
        folder=pretrained.folder_of(setup.target),
        dtype=str(setup.precision.dtype).removeprefix("torch."),
        trust_remote_code=setup.target.trust_remote_code,
        decoding=setup.decoding,
        share_gpu=setup.part.rescore and setup.decoding.top_logprobs > 0,  # raw rows, which the target rescores
    )


def server(setup: EngineSetup) -> Engine:
    """OpenAI-compatible servers; they are asked for top tokens only if the recipe says that theirs are raw."""
    assert setup.part.server is not None, "checked by the recipe"
    decoding = setup.decoding
    if setup.part.top_logprobs_from != "server":
        decoding = decoding._replace(top_logprobs=0)
    return ServerEngine(setup.part.server, decoding, pretrained.open_tokenizer(setup.target))


def recorded(setup: EngineSetup) -> Engine:
    """Existing answers. With several temperatures in the recipe they count as sampled at T = 1."""
    part = setup.part
    assert part.recorded is not None, "checked by the recipe"
    sampling = SamplingParams(1.0)
    if len(part.temperatures) == 1:
        sampling = SamplingParams(next(iter(part.temperatures)), part.top_k, part.top_p)
    return RecordedEngine(
        part=part.recorded,
        decoding=setup.decoding,
        tokenizer=pretrained.open_tokenizer(setup.target),
        sampling=sampling,
        context_tokens=setup.context_tokens,
        max_records=part.prompts,
    )


ENGINES: dict[str, Callable[[EngineSetup], Engine]] = {
    "transformers": transformers,
    "openvino": openvino,
    "vllm": vllm,
    "server": server,
    "recorded": recorded,
}
