"""Ways to run the target: one row each in `ENGINES` at the end. docs/synthesis.md says what each records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.config import SynthesizePart, TargetPart
from fastdraft.config.synthesis import CACHE_BYTES, MOST_PROMPTS
from fastdraft.models import target
from fastdraft.models.shape.target_sizes import sizes
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.engine_openvino import OpenVino, exported
from fastdraft.synthesize.engine_ray import OnRay
from fastdraft.synthesize.engine_recorded import Recorded
from fastdraft.synthesize.engine_server import Servers
from fastdraft.synthesize.engine_transformers import InProcess
from fastdraft.synthesize.engine_vllm import Vllm
from fastdraft.synthesize.write import Decoding, Engine
from fastdraft.system.precision import Precision


@dataclass(frozen=True)
class Setup:
    """What an engine is made from; `scratch` is a folder for what it may have to make of the target."""

    target: TargetPart
    part: SynthesizePart
    decoding: Decoding
    device: torch.device
    precision: Precision
    context_tokens: int
    scratch: Path

    def open_target(self) -> PreTrainedModel:
        """The target in this process."""
        return target.open_model(self.target, self.device, self.precision.dtype)


def batch_size(part: SynthesizePart, whose: TargetPart, context_tokens: int, dtype: torch.dtype) -> int:
    """Prompts answered at once: as many as CACHE_BYTES hold the keys and values of, where the recipe does not say it.

    Each counts with all tokens that it may come to.
    """
    if part.batch_size:
        return part.batch_size
    instructions = part.own_sources & part.mix.keys()
    longest = max(part.max_prompt_tokens, part.max_instruction_tokens) if instructions else part.max_prompt_tokens
    tokens, known = min(longest + part.max_new_tokens, context_tokens), sizes(target.open_config(whose))
    bytes_a_prompt = 2 * known.layers * known.kv_heads * known.head_size * tokens * dtype.itemsize
    return max(1, min(MOST_PROMPTS, CACHE_BYTES // bytes_a_prompt))


def transformers(setup: Setup) -> Engine:
    """This process, or Ray's workers."""
    if setup.part.ray_workers:
        return OnRay(setup.target, setup.precision.dtype, setup.part.ray_workers, setup.decoding)
    return InProcess(setup.open_target(), setup.decoding)


def openvino(setup: Setup) -> Engine:
    """OpenVINO GenAI; on the CPU unless torch's device is one of Intel's."""
    device = "GPU" if setup.device.type == "xpu" else "CPU"
    return OpenVino(exported(target.folder_of(setup.target), setup.scratch), device, setup.decoding)


def vllm(setup: Setup) -> Engine:
    """vLLM in this process."""
    dtype = str(setup.precision.dtype).removeprefix("torch.")
    read_again = setup.part.rescore and setup.decoding.top_logprobs > 0  # rows are raw then
    return Vllm(target.folder_of(setup.target), dtype, setup.target.trust_remote_code, setup.decoding, read_again)


def server(setup: Setup) -> Engine:
    """OpenAI-compatible servers; they are asked for most likely tokens where the recipe says that theirs are raw."""
    assert setup.part.server is not None, "the recipe says so"
    decoding = setup.decoding
    if setup.part.top_logprobs_from != "server":
        decoding = decoding._replace(top_logprobs=0)
    return Servers(setup.part.server, decoding, target.open_tokenizer(setup.target))


def recorded(setup: Setup) -> Engine:
    """Answers that exist already."""
    part = setup.part
    assert part.recorded is not None, "the recipe says so"
    sampling = (
        SamplingParams(next(iter(part.temperatures)), part.top_k, part.top_p)
        if len(part.temperatures) == 1
        else SamplingParams(1.0)
    )
    tokenizer = target.open_tokenizer(setup.target)
    make = partial(Recorded, part.recorded, setup.decoding, tokenizer, sampling)
    return make(setup.context_tokens, part.prompts)


ENGINES: dict[str, Callable[[Setup], Engine]] = {
    "transformers": transformers,
    "openvino": openvino,
    "vllm": vllm,
    "server": server,
    "recorded": recorded,
}
