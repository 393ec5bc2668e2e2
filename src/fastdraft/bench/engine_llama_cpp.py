"""llama.cpp by llama-cpp-python: the target reads what a draft proposes, and keeps what it would have said itself.

The binding compares tokens: the target draws at each place, and a drafted token stands where it is that very one. So
the draft proposes greedily at every temperature, and what is sampled keeps the target's distribution. A prompt's
forward emits one token, and blocks begin behind it. llama-server draws and checks in its own code: its gamma is the
same option, its times are not those of this binding.
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

from fastdraft.bench.engine import LOOKUP_NGRAM, Arm, Asked, Engine, Files, Setting, Timed
from fastdraft.data.shards import Tokens
from fastdraft.models.logits_reader import Logits, Reader
from fastdraft.system.manifest import describe
from fastdraft.system.optional_packages import need

EXTRA = "llamacpp"


class LlamaCpp(Engine):
    """The engine."""

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
        """The CPU, and `gpu` where the library was built for one."""
        return ["cpu", "gpu"] if need("llama_cpp", EXTRA).llama_supports_gpu_offload() else ["cpu"]

    @classmethod
    def hardware(cls, device: str) -> str:
        """The processor; of a GPU the library says no name."""
        return describe(torch.device("cpu"))

    @classmethod
    def open(cls, files: Files, setting: Setting) -> OpenedLlamaCpp:
        """The target is opened once for each way to decode."""
        return OpenedLlamaCpp(files, setting)

    @classmethod
    def readers(cls, files: Files) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Both models with keys and values in f32."""
        target, draft = (_logits(files, folder) for folder in (files.target, files.draft))
        return cast(PreTrainedModel, Reader(target)), cast(PreTrainedModel, Reader(draft))

    @classmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """llama-server's flags; what was timed is llama-cpp-python."""
        return f"llama-server -m TARGET -md DRAFT --spec-type draft-simple --spec-draft-n-max {gamma}"


class OpenedLlamaCpp:
    """A target for each way to decode, and a draft."""

    def __init__(self, files: Files, setting: Setting) -> None:
        self._files, self._kv = files, bool(setting.properties)
        self._targets: dict[str, Any] = {}

    def complete(self, asked: Asked, arm: Arm) -> Timed:
        """By `generate`; what is drafted passes through a counter."""
        target, proposer = self._target(arm.kind), self._proposer(arm)
        target.reset()
        target.set_seed(asked.seed)
        target.draft_model = proposer
        sampling, started = asked.sampling, perf_counter()
        stream = target.generate(
            asked.prompt.tolist(),
            temp=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=0.0,
            repeat_penalty=1.0,
        )
        tokens, first = [], 0.0
        for token in islice(stream, asked.tokens):
            first = first or perf_counter() - started
            tokens.append(token)
            if token in self._files.eos:
                break
        seconds = perf_counter() - started
        behind = [place - len(asked.prompt) for place in proposer.places] if proposer else [*range(1, len(tokens))]
        ends = [0, *(place for place in behind if place < len(tokens)), len(tokens)]
        blocks = tuple(after - before for before, after in pairwise(ends))
        drafted, drafting = (proposer.drafted, proposer.seconds) if proposer else (0, 0.0)
        return Timed(np.array(tokens, np.int64), seconds, first, blocks, drafted, drafting)

    def _target(self, kind: str) -> Any:
        """With a draft the binding wants the logits of all tokens, which a target without one does not pay for."""
        if kind not in self._targets:
            self._targets[kind] = _open(self._files, self._files.target, kind != "none", self._kv)
        return self._targets[kind]

    @cached_property
    def _draft(self) -> Any:
        return _open(self._files, self._files.draft, False, self._kv)

    def _proposer(self, arm: Arm) -> _Proposer | None:
        if arm.kind == "lookup":
            decoding = need("llama_cpp.llama_speculative", EXTRA).LlamaPromptLookupDecoding
            return _Proposer(decoding(LOOKUP_NGRAM, arm.gamma))
        if arm.kind == "draft":
            self._draft.reset()
            return _Proposer(_Greedy(self._draft, arm.gamma))
        return None


class _Proposer:
    """Counts what passes: `places`, the length of the text at each proposal, tokens proposed, seconds taken."""

    def __init__(self, decoding: Any) -> None:
        self._decoding, self.places, self.drafted, self.seconds = decoding, list[int](), 0, 0.0

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **_: Any) -> npt.NDArray[np.intc]:
        started = perf_counter()
        found: npt.NDArray[np.intc] = self._decoding(input_ids)
        self.seconds += perf_counter() - started
        self.places.append(len(input_ids))
        self.drafted += len(found)
        return found


class _Greedy:
    """So many tokens behind a text, by a draft that keeps what it has read."""

    def __init__(self, model: Any, gamma: int) -> None:
        self._model, self._gamma = model, gamma

    def __call__(self, input_ids: npt.NDArray[np.intc]) -> npt.NDArray[np.intc]:
        written = self._model.generate(input_ids.tolist(), temp=0.0, repeat_penalty=1.0)
        return np.fromiter(islice(written, self._gamma), dtype=np.intc)


def _open(files: Files, folder: Path, all_logits: bool, exact: bool) -> Any:
    """The GGUF file of a folder."""
    llama_cpp = need("llama_cpp", EXTRA)
    exactly = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32} if exact else {}
    (file,) = folder.glob("*.gguf") if folder.is_dir() else [folder]
    return llama_cpp.Llama(
        str(file),
        n_ctx=files.longest_tokens,
        n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(),
        n_gpu_layers=0 if files.device == "cpu" else -1,
        logits_all=all_logits,
        verbose=False,
        **exactly,
    )


def _logits(files: Files, folder: Path) -> Logits:
    model = _open(files, folder, all_logits=True, exact=True)

    def logits(text: Tokens) -> Tensor:
        model.reset()
        model.eval(text.tolist())
        return torch.from_numpy(model.scores[: len(text)].copy())

    return logits
