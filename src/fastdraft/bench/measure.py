"""A pair timed in an engine: every arm in turn on the same prompts, so that what else the machine does meets all alike.

Dimensions: B prompts, N tokens of a text, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel

from fastdraft.bench.engine import LOOKUP, NONE, Arm, Asked, Engine, Files, Opened, Setting, Timed
from fastdraft.bench.equality import Texts, difference
from fastdraft.bench.predict import predictions, scored
from fastdraft.data.shards import Tokens
from fastdraft.results.bench import ArmResult, Cell, Difference, Predicted, Steps, spread
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system.errors import BenchError
from fastdraft.system.progress import Bar

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Plan:
    """What is timed."""

    tasks: Mapping[str, Sequence[Tokens]]
    sampling_settings: Sequence[SamplingParams]
    gammas: Sequence[int]
    tokens: int
    repeats: int
    seed: int

    @property
    def arms(self) -> list[Arm]:
        """Without a draft, with prompt lookup, with the draft at every gamma."""
        return [NONE, LOOKUP, *(Arm("draft", gamma) for gamma in self.gammas)]


class Readers(NamedTuple):
    """Both models as the one-pass evaluation calls them."""

    target: PreTrainedModel
    draft: PreTrainedModel


# (repeat, task, prompt, arm) -> what came of it
Runs = Mapping[tuple[int, str, int, Arm], Timed]


class Bench(NamedTuple):
    """A pair in an engine, and what is timed there."""

    engine: type[Engine]
    files: Files
    plan: Plan
    readers: Readers


def measured(
    bench: Bench, setting: Setting, sampling_settings: Sequence[SamplingParams]
) -> tuple[list[Steps], list[Cell]]:
    """All arms under some distributions in one setting; BenchError where a draft is given and not used, or no text goes
    on.
    """
    pair, plan = bench.engine.open(bench.files, setting), bench.plan
    _warm_up(pair, plan)
    every: list[Steps] = []
    cells: list[Cell] = []
    for sampling in sampling_settings:
        runs = _runs(pair, plan, sampling, setting.name)
        _check(bench.engine, plan, runs)
        steps = [_steps(plan, sampling, setting.name, runs, repeat) for repeat in range(plan.repeats)]
        every += steps
        cells += [_cell(bench, sampling, task, runs, steps) for task in plan.tasks]
    return every, cells


def texts_of(bench: Bench) -> tuple[int, list[Difference]]:
    """Greedy texts in the exact setting: how many were held against `none`, and where they are not equal."""
    plan, exact = bench.plan, bench.engine.exact
    pair, arms = bench.engine.open(bench.files, exact), plan.arms[1:]
    found: list[Difference | None] = []
    with Bar(f"greedy, {exact.name}", sum(map(len, plan.tasks.values())), "prompts") as bar:
        for task, prompts in plan.tasks.items():
            for place, prompt in enumerate(prompts):
                asked = Asked(prompt, SamplingParams(0.0), plan.tokens)
                plain = pair.complete(asked, NONE).tokens
                for arm in arms:
                    texts = Texts(prompt, plain, pair.complete(asked, arm).tokens)
                    found.append(difference(bench.readers.target, task, place, arm, texts))
                bar.advance(1)
    return len(found), [each for each in found if each is not None]


def _warm_up(pair: Opened, plan: Plan) -> None:
    """Each arm once: pipelines are opened, kernels made, memory touched."""
    prompt = next(iter(plan.tasks.values()))[0]
    for arm in plan.arms:
        pair.complete(Asked(prompt, plan.sampling_settings[0], min(plan.tokens, WARM_UP_TOKENS)), arm)


def _runs(pair: Opened, plan: Plan, sampling: SamplingParams, where: str) -> Runs:
    """Every arm on a prompt, then the next prompt, then all again, the other way round."""
    runs: dict[tuple[int, str, int, Arm], Timed] = {}
    total = plan.repeats * sum(map(len, plan.tasks.values()))
    what = f"{where}, {'greedy' if sampling.greedy else f'T = {sampling.temperature:g}'}"
    with Bar(what, total, "prompts") as bar:
        for repeat in range(plan.repeats):
            for task, prompts in plan.tasks.items():
                for place, prompt in enumerate(prompts):
                    asked = Asked(prompt, sampling, plan.tokens, plan.seed + repeat)
                    for arm in plan.arms[:: -1 if repeat % 2 else 1]:
                        runs[repeat, task, place, arm] = pair.complete(asked, arm)
                    bar.advance(1)
    return runs


def _check(engine: type[Engine], plan: Plan, runs: Runs) -> None:
    """BenchError where no text of a task goes on behind its first forward, or a draft is ignored."""
    for repeat, task, arm in product(range(plan.repeats), plan.tasks, plan.arms):
        if all(len(run.tokens) == run.blocks[0] for run in _of(runs, plan, repeat, task, arm)):
            raise BenchError(
                f"task {task}, {arm.kind}, gamma {arm.gamma}: every text ends with its first forward, and nothing "
                f"behind it can be timed\n  do: raise --tokens or --prompts, or choose other prompts with --tasks"
            )
    for arm in plan.arms:
        if arm.kind == "draft" and not sum(run.drafted for key, run in runs.items() if key[3] == arm):
            raise BenchError(
                f"{engine.name} was given the draft at gamma {arm.gamma}, and proposed not one token: it ignores the "
                f"draft\n  do: raise --tokens where texts are too short for a block, else check the engine's version; "
                f"docs/deploy.md has the options of each"
            )


def _steps(plan: Plan, sampling: SamplingParams, where: str, runs: Runs, repeat: int) -> Steps:
    """Of one repeat, over all tasks: what a step takes is a matter of the pair, not of the text.

    Taken from the runs themselves: a machine's speed moves by a tenth within seconds, and a model alone is faster. In
    OpenVINO GenAI a draft of 2M beside a target of 292M takes .33 ms a token alone; behind a block of the target .9, or
    1.7 where it has two tokens to read, and .8 after those: caches hold the target's weights, and kernels change with
    the number of tokens. Four tokens so took 3.7 ms for 1.3.
    """
    of = {arm: [run for task in plan.tasks for run in _of(runs, plan, repeat, task, arm)] for arm in plan.arms}
    blocks = {gamma: _block(of[Arm("draft", gamma)]) for gamma in plan.gammas}
    return Steps(
        setting=where,
        temperature=sampling.temperature,
        repeat=repeat,
        target_seconds=_pace(of[NONE]),
        draft_seconds={gamma: block[0] / gamma for gamma, block in blocks.items()},
        block_seconds={gamma: block[1] for gamma, block in blocks.items()},
    )


def _block(runs: Sequence[Timed]) -> tuple[float, float]:
    """Seconds of a block that are the draft's, and the others."""
    blocks = sum(len(run.blocks) - 1 for run in runs)
    drafting, behind = sum(run.drafting_seconds for run in runs), sum(run.seconds_behind for run in runs)
    return drafting / blocks, (behind - drafting) / blocks


def _cell(bench: Bench, sampling: SamplingParams, task: str, runs: Runs, steps: Sequence[Steps]) -> Cell:
    plan, engine = bench.plan, bench.engine
    texts = [
        Completion("", prompt, run.tokens, np.empty(0, np.float32), sampling)
        for repeat in range(1 if sampling.greedy else plan.repeats)
        for prompt, run in zip(plan.tasks[task], _of(runs, plan, repeat, task, NONE), strict=True)
        if len(run.tokens) > 1
    ]
    known = scored(bench.readers.target, texts, engine.greedy_draft)
    said = predictions(bench.readers.draft, known, plan.gammas, steps, _skipped(engine))
    arms = [_arm(bench, arm, sampling, task, runs, said.get(arm.gamma)) for arm in plan.arms]
    return Cell(setting=steps[0].setting, task=task, temperature=sampling.temperature, arms=tuple(arms))


def _arm(
    bench: Bench, arm: Arm, sampling: SamplingParams, task: str, runs: Runs, predicted: Predicted | None
) -> ArmResult:
    plan = bench.plan
    each = [_of(runs, plan, repeat, task, arm) for repeat in range(plan.repeats)]
    plain = [_of(runs, plan, repeat, task, NONE) for repeat in range(plan.repeats)]
    pace, pace_plain = [_pace(run) for run in each], [_pace(run) for run in plain]
    timed = [run for of_repeat in each for run in of_repeat]
    parted = _parted(bench, arm, task, each[0], plain[0]) if sampling.greedy and arm != NONE else []
    blocks = [block for run in timed for block in run.blocks[_skipped(bench.engine) :]]
    return ArmResult(
        arm=arm.kind,
        gamma=arm.gamma,
        milliseconds_a_token=spread([1e3 * seconds for seconds in pace]),
        first_token_milliseconds=spread([1e3 * run.first_seconds for run in timed]),
        speedup=spread([alone / seconds for seconds, alone in zip(pace, pace_plain, strict=True)]),
        tokens=sum(len(run.tokens) for run in timed),
        drafted=sum(run.drafted for run in timed),
        block_efficiency=sum(blocks) / len(blocks),
        position_acceptance=_shares(blocks, arm.gamma) if all(run.sizes_known for run in timed) else (),
        predicted=predicted if arm.kind == "draft" else None,
        equal_fraction=1 - len(parted) / len(plain[0]) if sampling.greedy else None,
        widest_gap=max((found.gap for found in parted if math.isfinite(found.gap)), default=None),
    )


def _skipped(engine: type[Engine]) -> int:
    """Forwards, and tokens, of a text before its first block."""
    return 0 if engine.drafts_first else 1


def _of(runs: Runs, plan: Plan, repeat: int, task: str, arm: Arm) -> list[Timed]:
    """One for each prompt."""
    return [runs[repeat, task, place, arm] for place in range(len(plan.tasks[task]))]


def _pace(runs: Sequence[Timed]) -> float:
    """Seconds a token behind the first forward, pooled over prompts."""
    seconds = sum(run.seconds_behind for run in runs)
    return seconds / sum(len(run.tokens) - run.blocks[0] for run in runs)


def _shares(blocks: Sequence[int], gamma: int) -> tuple[float, ...]:
    """Of blocks in which drafted token j was accepted: those that emitted more than j."""
    return tuple(sum(block > j for block in blocks) / len(blocks) for j in range(1, gamma + 1))


def _parted(bench: Bench, arm: Arm, task: str, found: Sequence[Timed], plain: Sequence[Timed]) -> list[Difference]:
    """Where an arm's greedy texts are not those of `none`."""
    pairs = zip(bench.plan.tasks[task], plain, found, strict=True)
    texts = [Texts(prompt, alone.tokens, run.tokens) for prompt, alone, run in pairs]
    each = (difference(bench.readers.target, task, place, arm, text) for place, text in enumerate(texts))
    return [parted for parted in each if parted is not None]
