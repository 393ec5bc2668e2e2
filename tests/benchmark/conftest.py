"""An engine with fixed step times: its speculative decoding counts seconds instead of measuring them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdraft.benchmark.engine import Engine, PairFiles, Setting, TimedCompletion
from fastdraft.benchmark.measure import BenchPlan, OnePassModels
from fastdraft.config import TargetPart
from fastdraft.models.pretrained import TOKENIZER_FILES, folder_of
from fastdraft.synthesize.completions import SamplingParams

DRAFT_SECONDS = 0.003
PROMPTS = {"text": [np.array([3, 5, 7]), np.array([2, 29])], "code": [np.array([11, 13, 17])]}


def block_seconds(tokens: int) -> float:
    """Of the target, on so many tokens at once."""
    return 0.02 + 0.001 * tokens


class Counted(Engine):
    """Greedy decoding of two models; `spoils` changes what comes of an arm, `drafts` False ignores the draft."""

    name = "counted"
    packages = ("torch",)
    rules = "transformers, generate"
    format = None
    weights = ("fp32",)
    settings = (Setting("fast", {"fast": True}), Setting("slow", {}))
    exact = Setting("exact", {}, exact=True)
    modules = ()
    drafts_first = False
    keeps_distribution = True
    greedy_draft = False
    readers_of: OnePassModels
    spoils = staticmethod(lambda tokens, _: tokens)
    drafts = True
    draft_seconds, block_seconds = DRAFT_SECONDS, staticmethod(block_seconds)
    asked: list

    @classmethod
    def devices(cls):
        return ["cpu"]

    @classmethod
    def hardware(cls, device):
        return "none"

    @classmethod
    def open(cls, files, setting):
        return _Counted(cls, 1.0 if setting.name == "fast" else 1.5)

    @classmethod
    def one_pass_models(cls, files):
        return cls.readers_of

    @classmethod
    def option(cls, setting, gamma, device):
        return f"gamma={gamma}"


@cache
@torch.inference_mode()
def _next(model, ids):
    """The most likely token; computed once, as all arms and repeats decode the same texts."""
    return int(model(input_ids=torch.tensor(ids)[None]).logits[0, -1].argmax())


class _Counted:
    def __init__(self, engine, factor):
        self.engine, self.factor = engine, factor

    def complete(self, request, arm):
        self.engine.asked.append(arm)
        target, draft = self.engine.readers_of
        ids, blocks, seconds, first, drafted, drafting = request.prompt.tolist(), [], 0.0, 0.0, 0, 0.0
        end = len(ids) + request.max_new_tokens
        while len(ids) < end:
            count = arm.gamma if arm.kind == "draft" and blocks else 0
            proposed = list(ids)
            for _ in range(count):
                proposed.append(_next(draft, tuple(proposed)))
            emitted = 0
            while emitted <= count and len(ids) < end:
                ids.append(_next(target, tuple(ids)))
                emitted += 1
                if len(proposed) < len(ids) or proposed[len(ids) - 1] != ids[-1]:
                    break
            drafted += count
            blocks.append(emitted)
            drafting += self.factor * count * DRAFT_SECONDS
            seconds += self.factor * (count * DRAFT_SECONDS + block_seconds(count + 1))
            first = first or seconds
        tokens = self.engine.spoils(np.array(ids[len(request.prompt) :]), arm)
        return TimedCompletion(tokens, seconds, first, tuple(blocks), drafted if self.engine.drafts else 0, drafting)


@pytest.fixture(scope="session")
def one_pass_models(tiny_llama, perturbed) -> OnePassModels:
    """A target and a draft that half agrees."""
    target = tiny_llama(3)
    return OnePassModels(target, perturbed(target, 0.2, 1))


@pytest.fixture
def counted(one_pass_models) -> type[Engine]:
    """The engine of those two."""
    return type("Counted", (Counted,), {"readers_of": one_pass_models, "asked": []})


@pytest.fixture
def files(tmp_path: Path) -> PairFiles:
    """Of no use to an engine that opens none."""
    return PairFiles(
        target=tmp_path,
        draft=tmp_path,
        target_weights="fp32",
        draft_weights="fp32",
        device="cpu",
        longest_tokens=97,
        eos=frozenset({0}),
    )


@pytest.fixture
def plan() -> Callable[..., BenchPlan]:
    """Greedy, three prompts of two tasks."""

    def build(**more: object) -> BenchPlan:
        usual = {
            "tasks": PROMPTS,
            "sampling_settings": [SamplingParams(0.0)],
            "gammas": (1, 3),
            "max_new_tokens": 23,
            "repeats": 2,
            "seed": 5,
        }
        return BenchPlan(**usual | more)

    return build


@pytest.fixture(scope="session")
def pair(tiny_llama, perturbed, tmp_path_factory) -> dict[str, Path]:
    """The folders of a random target and of a draft that half agrees, with the packaged target's tokenizer."""
    folder, packaged = tmp_path_factory.mktemp("pair"), folder_of(TargetPart(path="demo"))
    target = tiny_llama(3, vocabulary=8192)
    for name, model in (("target", target), ("draft", perturbed(target, 0.1, 1))):
        model.save_pretrained(folder / name)
        for file in TOKENIZER_FILES:
            if (packaged / file).is_file():
                (folder / name / file).write_bytes((packaged / file).read_bytes())
    return {"target": folder / "target", "draft": folder / "draft"}
