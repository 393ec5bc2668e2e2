"""llama.cpp through llama-cpp-python.

The binding compares tokens: the target samples a token at each position, and a drafted token is accepted if it is the
same one. The draft therefore proposes greedily at every temperature, and sampled text keeps the target's distribution.
A prompt's forward emits one token, and blocks begin after it. llama-server has its own sampling and verification: gamma
is the same option there, but its times differ from those of this binding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
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
from fastdraft.data.shards import Tokens
from fastdraft.models.logits_reader import Logits, Reader
from fastdraft.system.manifest import device_name
from fastdraft.system.optional_packages import need

EXTRA = "llamacpp"


class LlamaCpp(Engine):
    """llama.cpp."""

    name = "llama.cpp"
    modules = (("llama_cpp", EXTRA), ("gguf", EXTRA))
    packages = ("llama-cpp-python", "gguf")
    rules = "llama.cpp"
    format = "gguf"
    weights = ("q8_0", "q4_0", "f16", "f32")
    settings = (Setting("defaults", {}),)
    exact = Setting("f32 KV cache", {"kv": "f32"}, exact=True)
    drafts_first = False
    keeps_distribution = True
    greedy_draft = True

    @classmethod
    def devices(cls) -> Sequence[str]:
        """`cpu`, and `gpu` if the library was built for one."""
        return ["cpu", "gpu"] if need("llama_cpp", EXTRA).llama_supports_gpu_offload() else ["cpu"]

    @classmethod
    def hardware(cls, device: str) -> str:
        """The processor's name; the library does not name the GPU."""
        return device_name(torch.device("cpu"))

    @classmethod
    def open(cls, files: PairFiles, setting: Setting) -> OpenedLlamaCpp:
        """The pair, opened when first used."""
        return OpenedLlamaCpp(files, setting)

    @classmethod
    def one_pass_models(cls, files: PairFiles) -> OnePassModels:
        """Both models with keys and values in f32."""
        target, draft = (Reader(_logits(files, folder)) for folder in (files.target, files.draft))
        return OnePassModels(cast(PreTrainedModel, target), cast(PreTrainedModel, draft))

    @classmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """The flags of llama-server, although llama-cpp-python was timed."""
        return f"llama-server -m TARGET -md DRAFT --spec-type draft-simple --spec-draft-n-max {gamma}"


class OpenedLlamaCpp:
    """The target, opened once for each kind of arm, and the draft."""

    def __init__(self, files: PairFiles, setting: Setting) -> None:
        self._files, self._exact = files, bool(setting.properties)
        self._targets: dict[str, Any] = {}

    def complete(self, request: BenchRequest, arm: Arm) -> TimedCompletion:
        """Complete the prompt with the binding's `generate`; drafted tokens pass through a counter."""
        target, proposer = self._target(arm.kind), self._proposer(arm)
        target.reset()
        target.set_seed(request.seed)
        target.draft_model = proposer
        sampling, started = request.sampling, perf_counter()
        stream = target.generate(
            request.prompt.tolist(),
            temp=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=0.0,
            repeat_penalty=1.0,
        )
        tokens, first = [], 0.0
        for token in islice(stream, request.max_new_tokens):
            first = first or perf_counter() - started
            tokens.append(token)
            if token in self._files.eos:
                break
        seconds = perf_counter() - started
        starts = [length - len(request.prompt) for length in proposer.lengths] if proposer else range(1, len(tokens))
        ends = [0, *(start for start in starts if start < len(tokens)), len(tokens)]
        blocks = tuple(after - before for before, after in pairwise(ends))
        drafted, drafting = (proposer.drafted, proposer.seconds) if proposer else (0, 0.0)
        return TimedCompletion(np.array(tokens, np.int64), seconds, first, blocks, drafted, drafting)

    def _target(self, kind: str) -> Any:
        """Opened with the logits of all tokens, which the binding needs for drafts, only if there are proposals."""
        if kind not in self._targets:
            self._targets[kind] = _open(self._files, self._files.target, kind != "none", self._exact)
        return self._targets[kind]

    @cached_property
    def _draft(self) -> Any:
        return _open(self._files, self._files.draft, False, self._exact)

    def _proposer(self, arm: Arm) -> _Proposer | None:
        if arm.kind == "lookup":
            decoding = need("llama_cpp.llama_speculative", EXTRA).LlamaPromptLookupDecoding
            return _Proposer(decoding(LOOKUP_NGRAM, arm.gamma))
        if arm.kind == "draft":
            self._draft.reset()
            return _Proposer(_Greedy(self._draft, arm.gamma))
        return None


class _Proposer:
    """Counts proposed tokens and seconds; `lengths` of the text at each proposal."""

    def __init__(self, decoding: Any) -> None:
        self._decoding, self.lengths, self.drafted, self.seconds = decoding, list[int](), 0, 0.0

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **_: Any) -> npt.NDArray[np.intc]:
        started = perf_counter()
        proposed: npt.NDArray[np.intc] = self._decoding(input_ids)
        self.seconds += perf_counter() - started
        self.lengths.append(len(input_ids))
        self.drafted += len(proposed)
        return proposed


class _Greedy:
    """Proposes gamma tokens with a draft that keeps its KV cache."""

    def __init__(self, model: Any, gamma: int) -> None:
        self._model, self._gamma = model, gamma

    def __call__(self, input_ids: npt.NDArray[np.intc]) -> npt.NDArray[np.intc]:
        stream = self._model.generate(input_ids.tolist(), temp=0.0, repeat_penalty=1.0)
        return np.fromiter(islice(stream, self._gamma), dtype=np.intc)


def _open(files: PairFiles, folder: Path, all_logits: bool, exact: bool) -> Any:
    """Open the GGUF file of a folder; `exact`: keys and values in f32."""
    llama_cpp = need("llama_cpp", EXTRA)
    cache_types = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32} if exact else {}
    (file,) = folder.glob("*.gguf") if folder.is_dir() else [folder]
    return llama_cpp.Llama(
        str(file),
        n_ctx=files.longest_tokens,
        n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(),
        n_gpu_layers=0 if files.device == "cpu" else -1,
        logits_all=all_logits,
        verbose=False,
        **cache_types,
    )


def _logits(files: PairFiles, folder: Path) -> Logits:
    model = _open(files, folder, all_logits=True, exact=True)

    def logits(text: Tokens) -> Tensor:
        model.reset()
        model.eval(text.tolist())
        return torch.from_numpy(model.scores[: len(text)].copy())

    return logits
