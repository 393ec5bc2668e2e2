"""Time a pair in an engine: all arms take turns on the same prompts, so that other load on the machine affects all.

Dimensions: B prompts, N tokens of a text, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from fastdraft.benchmark.engine import (
    LOOKUP,
    NONE,
    Arm,
    BenchRequest,
    Engine,
    OnePassModels,
    OpenedPair,
    PairFiles,
    Setting,
    TimedCompletion,
)
from fastdraft.benchmark.equality import first_difference
from fastdraft.benchmark.predict import predictions, with_logprobs
from fastdraft.data.shards import Tokens
from fastdraft.results.bench import ArmResult, Cell, Difference, Prediction, Steps, spread
from fastdraft.results.formatting import sampling_text
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system.errors import BenchError
from fastdraft.system.progress import Bar

WARM_UP_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What is timed: the prompts of each task, the sampling parameters, the gammas."""

    tasks: Mapping[str, Sequence[Tokens]]
    sampling_settings: Sequence[SamplingParams]
    gammas: Sequence[int]
    max_new_tokens: int
    repeats: int
    seed: int

    @property
    def arms(self) -> list[Arm]:
        """Without a draft, with prompt lookup, with the draft at every gamma."""
        return [NONE, LOOKUP, *(Arm("draft", gamma) for gamma in self.gammas)]


# (repeat, task, prompt number, arm) -> completion
Runs = Mapping[tuple[int, str, int, Arm], TimedCompletion]


class Bench(NamedTuple):
    """A pair in an engine, and what is timed there."""

    engine: type[Engine]
    files: PairFiles
    plan: BenchPlan
    models: OnePassModels


def measure(
    bench: Bench, setting: Setting, sampling_settings: Sequence[SamplingParams]
) -> tuple[list[Steps], list[Cell]]:
    """Time all arms in one setting of the engine.

    BenchError if the engine ignores the draft, or if all texts of a task end with their first forward.
    """
    pair, plan = bench.engine.open(bench.files, setting), bench.plan
    _warm_up(pair, plan)
    all_steps: list[Steps] = []
    cells: list[Cell] = []
    for sampling in sampling_settings:
        runs = _run(pair, plan, sampling, setting.name)
        _check(bench.engine, plan, runs)
        steps = [_steps(plan, sampling, setting.name, runs, repeat) for repeat in range(plan.repeats)]
        all_steps += steps
        cells += [_cell(bench, sampling, task, runs, steps) for task in plan.tasks]
    return all_steps, cells


def compare_greedy_texts(bench: Bench) -> tuple[int, list[Difference]]:
    """Decode greedily in the exact setting: the number of texts compared with `none`, and their differences."""
    plan, exact = bench.plan, bench.engine.exact
    pair, arms = bench.engine.open(bench.files, exact), plan.arms[1:]
    differences: list[Difference | None] = []
    with Bar(f"greedy, {exact.name}", sum(map(len, plan.tasks.values())), "prompts") as bar:
        for task, prompts in plan.tasks.items():
            for number, prompt in enumerate(prompts):
                request = BenchRequest(prompt, SamplingParams(0.0), plan.max_new_tokens)
                plain = pair.complete(request, NONE).tokens
                for arm in arms:
                    tokens = pair.complete(request, arm).tokens
                    differences.append(
                        first_difference(bench.models.target, prompt, plain, tokens, task=task, number=number, arm=arm)
                    )
                bar.advance(1)
    return len(differences), [difference for difference in differences if difference is not None]


def _warm_up(pair: OpenedPair, plan: BenchPlan) -> None:
    """Run each arm once, so that pipelines are open, kernels compiled and memory mapped."""
    prompt = next(iter(plan.tasks.values()))[0]
    request = BenchRequest(prompt, plan.sampling_settings[0], min(plan.max_new_tokens, WARM_UP_TOKENS))
    for arm in plan.arms:
        pair.complete(request, arm)


def _run(pair: OpenedPair, plan: BenchPlan, sampling: SamplingParams, setting: str) -> Runs:
    """All arms on a prompt, then the next prompt; every second repeat has the arms in reverse order."""
    runs: dict[tuple[int, str, int, Arm], TimedCompletion] = {}
    total = plan.repeats * sum(map(len, plan.tasks.values()))
    with Bar(f"{setting}, {sampling_text(sampling.temperature)}", total, "prompts") as bar:
        for repeat in range(plan.repeats):
            for task, prompts in plan.tasks.items():
                for number, prompt in enumerate(prompts):
                    request = BenchRequest(prompt, sampling, plan.max_new_tokens, plan.seed + repeat)
                    for arm in plan.arms[:: -1 if repeat % 2 else 1]:
                        runs[repeat, task, number, arm] = pair.complete(request, arm)
                    bar.advance(1)
    return runs


def _check(engine: type[Engine], plan: BenchPlan, runs: Runs) -> None:
    """BenchError if no text of a task continues after its first forward, or if a draft is ignored."""
    for repeat, task, arm in product(range(plan.repeats), plan.tasks, plan.arms):
        if all(len(run.tokens) == run.blocks[0] for run in _select(runs, plan, repeat, task, arm)):
            raise BenchError(
                f"task {task}, {arm.kind}, gamma {arm.gamma}: every text ends with its first forward, and there is "
                f"nothing to time after it\n"
                f"  do: raise --tokens or --prompts, or choose other prompts with --tasks"
            )
    for arm in plan.arms:
        if arm.kind == "draft" and not sum(run.drafted for key, run in runs.items() if key[3] == arm):
            raise BenchError(
                f"{engine.name} proposed no token with the draft at gamma {arm.gamma}: it ignores the draft\n"
                f"  do: raise --tokens if the texts are too short for a block, else check the engine's version; "
                f"docs/deploy.md lists the options of each engine"
            )


def _steps(plan: BenchPlan, sampling: SamplingParams, setting: str, runs: Runs, repeat: int) -> Steps:
    """Step times of one repeat, over all tasks: a step's time depends on the pair, not on the text.

    They are taken from the timed runs themselves, because the speed of a machine changes by a tenth within seconds, and
    because a model alone is faster. In OpenVINO GenAI a draft of 2M next to a target of 292M takes 0.33 ms a token when
    it runs alone. After a block of the target it takes 0.9 ms, or 1.7 ms if it has two tokens to read, and 0.8 ms for
    the tokens after those: the caches hold the target's weights, and kernels change with the number of tokens. Four
    tokens therefore took 3.7 ms instead of 1.3 ms.
    """
    by_arm = {arm: [run for task in plan.tasks for run in _select(runs, plan, repeat, task, arm)] for arm in plan.arms}
    blocks = {gamma: _block_seconds(by_arm[Arm("draft", gamma)]) for gamma in plan.gammas}
    return Steps(
        setting=setting,
        temperature=sampling.temperature,
        repeat=repeat,
        target_seconds=_seconds_per_token(by_arm[NONE]),
        draft_seconds={gamma: drafting / gamma for gamma, (drafting, _) in blocks.items()},
        block_seconds={gamma: rest for gamma, (_, rest) in blocks.items()},
    )


def _block_seconds(runs: Sequence[TimedCompletion]) -> tuple[float, float]:
    """Seconds per block: those of the draft, and the rest."""
    blocks = sum(len(run.blocks) - 1 for run in runs)
    drafting, decoding = sum(run.drafting_seconds for run in runs), sum(run.decode_seconds for run in runs)
    return drafting / blocks, (decoding - drafting) / blocks


def _cell(bench: Bench, sampling: SamplingParams, task: str, runs: Runs, steps: Sequence[Steps]) -> Cell:
    plan, engine = bench.plan, bench.engine
    texts = [
        Completion("", prompt, run.tokens, np.empty(0, np.float32), sampling)
        for repeat in range(1 if sampling.greedy else plan.repeats)
        for prompt, run in zip(plan.tasks[task], _select(runs, plan, repeat, task, NONE), strict=True)
        if len(run.tokens) > 1
    ]
    scored = with_logprobs(bench.models.target, texts, engine.greedy_draft)
    predicted = predictions(bench.models.draft, scored, plan.gammas, steps, _skipped(engine))
    arms = [_arm_result(bench, arm, sampling, task, runs, predicted.get(arm.gamma)) for arm in plan.arms]
    return Cell(setting=steps[0].setting, task=task, temperature=sampling.temperature, arms=tuple(arms))


def _arm_result(
    bench: Bench, arm: Arm, sampling: SamplingParams, task: str, runs: Runs, predicted: Prediction | None
) -> ArmResult:
    plan = bench.plan
    repeats = [_select(runs, plan, repeat, task, arm) for repeat in range(plan.repeats)]
    plain = [_select(runs, plan, repeat, task, NONE) for repeat in range(plan.repeats)]
    seconds = [_seconds_per_token(repeat) for repeat in repeats]
    plain_seconds = [_seconds_per_token(repeat) for repeat in plain]
    timed = [run for repeat in repeats for run in repeat]
    blocks = [block for run in timed for block in run.blocks[_skipped(bench.engine) :]]
    differences = []
    if sampling.greedy and arm != NONE:
        pairs = zip(plan.tasks[task], plain[0], repeats[0], strict=True)
        compared = (
            first_difference(bench.models.target, prompt, alone.tokens, run.tokens, task=task, number=number, arm=arm)
            for number, (prompt, alone, run) in enumerate(pairs)
        )
        differences = [difference for difference in compared if difference is not None]
    return ArmResult(
        arm=arm.kind,
        gamma=arm.gamma,
        milliseconds_a_token=spread([1e3 * each for each in seconds]),
        first_token_milliseconds=spread([1e3 * run.first_seconds for run in timed]),
        speedup=spread([alone / each for each, alone in zip(seconds, plain_seconds, strict=True)]),
        tokens=sum(len(run.tokens) for run in timed),
        drafted=sum(run.drafted for run in timed),
        block_efficiency=sum(blocks) / len(blocks),
        position_acceptance=_position_acceptance(blocks, arm.gamma) if all(run.sizes_known for run in timed) else (),
        predicted=predicted if arm.kind == "draft" else None,
        equal_fraction=1 - len(differences) / len(plain[0]) if sampling.greedy else None,
        widest_gap=max((each.gap for each in differences if math.isfinite(each.gap)), default=None),
    )


def _skipped(engine: type[Engine]) -> int:
    """Forwards, and tokens, of a text before its first block."""
    return 0 if engine.drafts_first else 1


def _select(runs: Runs, plan: BenchPlan, repeat: int, task: str, arm: Arm) -> list[TimedCompletion]:
    """The completions of all prompts of a task."""
    return [runs[repeat, task, number, arm] for number in range(len(plan.tasks[task]))]


def _seconds_per_token(runs: Sequence[TimedCompletion]) -> float:
    """Seconds per token after the first forward, pooled over prompts."""
    seconds = sum(run.decode_seconds for run in runs)
    return seconds / sum(len(run.tokens) - run.blocks[0] for run in runs)


def _position_acceptance(blocks: Sequence[int], gamma: int) -> tuple[float, ...]:
    """The fraction of blocks in which drafted token j was accepted: those that emitted more than j tokens."""
    return tuple(sum(block > j for block in blocks) / len(blocks) for j in range(1, gamma + 1))
