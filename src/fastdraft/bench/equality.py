"""Is greedy text with a draft that without one? Where it is not: by how much the target's two logits differ there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.bench.engine import Arm
from fastdraft.data.shards import Tokens
from fastdraft.results.bench import Difference
from fastdraft.system.errors import UnequalOutput

# In exact settings a block and a single token are summed in other orders, and nothing else differs: logits moved by up
# to 7e-5 (7M parameters, fp32). Ten times that, for larger models.
NEAR_TIE = 1e-3
# In the place of a token where a text has ended.
ENDED = -1


class Texts(NamedTuple):
    """What one prompt was completed with, without a draft and in another arm."""

    prompt: Tokens
    plain: Tokens
    found: Tokens


def difference(target: PreTrainedModel, task: str, prompt: int, arm: Arm, texts: Texts) -> Difference | None:
    """The first of an arm's text from the plain one; None where they are equal."""
    shared = min(len(texts.plain), len(texts.found))
    differs = np.flatnonzero(texts.plain[:shared] != texts.found[:shared])
    if not len(differs) and len(texts.plain) == len(texts.found):
        return None
    place = int(differs[0]) if len(differs) else shared
    two = _at(texts.plain, place), _at(texts.found, place)
    gap = float("inf") if ENDED in two else _gap(target, np.concatenate([texts.prompt, texts.plain[:place]]), two)
    return Difference(task=task, prompt=prompt, arm=arm.kind, gamma=arm.gamma, position=place, tokens=two, gap=gap)


def check(setting: str, differences: Sequence[Difference]) -> None:
    """UnequalOutput where a difference is no near tie: the engine, or the draft's export, is at fault."""
    wrong = [found for found in differences if not found.gap < NEAR_TIE]
    if wrong:
        first = wrong[0]
        raise UnequalOutput(
            f"{setting}: greedy text with {first.arm}, gamma {first.gamma}, is not that without one: task "
            f"{first.task}, prompt {first.prompt}, token {first.position}: {first.tokens[1]} for {first.tokens[0]}, "
            f"whose logits are {first.gap:.2g} apart (a near tie is below {NEAR_TIE:g}); {len(wrong)} texts differ so\n"
            f"  do: report it with the versions of the engine: it does not decode as its target does"
        )


def _at(text: Tokens, place: int) -> int:
    return int(text[place]) if place < len(text) else ENDED


@torch.inference_mode()
def _gap(target: PreTrainedModel, text: Tokens, tokens: tuple[int, int]) -> float:
    """How far apart the target's logits of two tokens are behind a text."""
    ids_1T = torch.from_numpy(text)[None].to(target.device)
    last_V = target(input_ids=ids_1T, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return abs(float(last_V[tokens[0]] - last_V[tokens[1]]))
