"""The sections of a model card with the run's figures; each function yields lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from fastdraft.config import PromptSetPart, SourcePart, SynthesizePart, TrainPart
from fastdraft.data.package_licences import PERMISSIVE
from fastdraft.exporters.evidence import Evidence
from fastdraft.exporters.markdown import plain, table
from fastdraft.exporters.usage import GAMMA
from fastdraft.models.hub import name_of
from fastdraft.results.evaluation import TaskResult
from fastdraft.results.formatting import disagreements, interval, or_dash, sampling_text, speedup_range
from fastdraft.system.energy import energy_text, total_joules

# The licences of documents by kind of source; for other sources the run does not know them.
LICENCES = {
    kind: "permissive, as the packages declare them: "
    + ", ".join(PERMISSIVE.pattern.removeprefix(r"\b(").removesuffix(r")\b").replace("\\", "").split("|"))
    for kind in ("python_code", "python_docstrings")
}


def _objective(part: TrainPart) -> str:
    """The objectives, with weights if there are several; the teacher, and its fraction of the sequences if below 1."""
    weights = part.objectives
    objectives = ", ".join(name if len(weights) == 1 else f"{name} {weight:g}" for name, weight in weights.items())
    teacher = [f"distribution of {name_of(part.teacher)}"] if part.teacher else []
    teacher += [f"of {part.teacher_fraction:.0%} of the rows"] if part.teacher_fraction < 1 else []
    return "; ".join([objectives, *teacher])


def training(evidence: Evidence) -> Iterator[str]:
    """Each phase with tokens, objective, mix, held-out loss and time; hardware, total hours and energy."""
    yield "## Training"
    yield ""
    if not evidence.phases:
        yield "Not recorded: the run that made this draft is not here."
        return
    rows = [
        [
            name,
            f"{phase.card.trained_tokens:,}",
            _objective(phase.part),
            ", ".join(f"{source} {weight:g}" for source, weight in phase.part.mix.items()),
            ", ".join(f"{source} {nats:.3f}" for source, nats in phase.card.held_out_nats.items()),
            _hours(phase.card.cost.seconds),
        ]
        for name, phase in evidence.phases.items()
    ]
    yield from table(["phase", "tokens", "objective", "mix", "held-out nats per token after it", "time"], rows)
    machines = dict.fromkeys(command.device for command in evidence.commands if command.device)
    yield ""
    hours = _hours(sum(cost.seconds for cost in evidence.costs.values()))
    yield f"Hardware: {plain('; '.join(machines) or 'not recorded')}. All stages: {hours}. {_energy(evidence)}"


def data(evidence: Evidence) -> Iterator[str]:
    """The sources with licences and tokens; the completions that the target wrote."""
    yield "## Data"
    yield ""
    if not evidence.sources:
        yield "Not recorded."
        return
    rows = [
        [
            name,
            _place(part),
            part.licence or LICENCES.get(part.source, "not recorded: see the source"),
            f"{card.train.documents:,}",
            f"{card.train.tokens:,}",
            f"{card.held_out.tokens:,}",
        ]
        for name, (part, card) in evidence.sources.items()
    ]
    yield from table(["source", "from", "licence", "documents", "tokens", "tokens held out"], rows)
    if (written := evidence.written) is not None:
        sampling_settings = ", ".join(sampling_text(temperature) for temperature in written.part.temperatures)
        yield ""
        yield (
            f"For alignment the target itself wrote {written.tokens:,} tokens in {written.completions:,} "
            f"completions ({sampling_settings}), after prompts from {plain(_prompts(written.part))}."
        )


def acceptance(evidence: Evidence) -> Iterator[str]:
    """Rates by task and sampling setting, with intervals; the result of the verification."""
    yield "## Acceptance"
    yield ""
    if not evidence.results:
        yield "Not measured."
        return
    yield (
        "On held-out prompts, in one pass over what the target wrote, pooled over tokens, with 95 % intervals over "
        "prompts. alpha is the mean acceptance of a token; block efficiency the tokens emitted per target forward."
    )
    yield ""
    names = [
        "task",
        "sampling",
        "prompts",
        "alpha",
        "alpha without looping texts",
        "best gamma",
        "acceptance rate",
        "block efficiency",
        "MBSU",
    ]
    yield from table(names, [_result(result) for result in evidence.last])
    verified = [(task, result) for task, results in evidence.verified.items() for result in results]
    if verified:
        rates = ", ".join(
            f"{plain(task)} {sampling_text(result.temperature)} {result.real.value:.3f} "
            f"(one pass {result.one_pass.value:.3f})"
            for task, result in verified
        )
        verdict = "disagreed" if disagreements(evidence.verified) else "agreed"
        yield ""
        yield (
            f"Real speculative decoding (transformers, gamma {verified[0][1].gamma}) {verdict}; block efficiency "
            f"{rates}."
        )


def speed(evidence: Evidence) -> Iterator[str]:
    """The speed-up in wall-clock time, if a bench has measured it."""
    yield "## Speed-up"
    yield ""
    if not evidence.speeds:
        yield "Not measured. It depends on engine, device and prompts: `fastdraft bench TARGET DRAFT` measures it."
        return
    rows = [
        [
            speed.where,
            speed.task,
            sampling_text(speed.temperature),
            str(speed.gamma),
            speedup_range(speed.speedup, speed.low, speed.high),
        ]
        for speed in evidence.speeds
    ]
    yield from table(["where", "task", "sampling", "gamma", "wall-clock speed-up"], rows)


def gamma(evidence: Evidence) -> Iterator[str]:
    """The best block length, and when another one may be better."""
    yield "## Which gamma"
    yield ""
    yield from map(plain, evidence.advice)
    if evidence.results:
        best = ", ".join(f"{plain(r.task)} {sampling_text(r.temperature)}: {r.best_gamma}" for r in evidence.last)
        yield (
            f"Where memory bounds the target, gamma {best_gamma(evidence.last)} is best in the mean over tasks "
            f"({best}). Where a block costs more than a token, as on CPUs, a smaller one may be."
        )
    else:
        yield f"Not measured. Begin with {GAMMA}."


def weak(evidence: Evidence) -> Iterator[str]:
    """The half of the tasks with the lowest acceptance."""
    yield "## Where it is weak"
    yield ""
    tasks = dict.fromkeys(result.task for result in evidence.last)
    if len(tasks) < 2:
        yield "Not measured: results on more than one task are needed."
        return
    mean = {task: fmean(result.alpha.value for result in evidence.last if result.task == task) for task in tasks}
    worst = sorted(tasks, key=lambda task: mean[task])[: len(tasks) // 2]
    weakest = ", ".join(f"{plain(task)} (alpha {mean[task]:.3f} in the mean over sampling settings)" for task in worst)
    yield f"Of the tasks above, the lowest acceptance: {weakest}. Other kinds of text were not measured."


def best_gamma(results: Sequence[TaskResult]) -> int:
    """The block length with the best memory-bound speed-up, averaged over tasks and sampling settings."""
    if not results:
        return GAMMA
    gammas = set.intersection(*({at.gamma for at in result.gammas} for result in results))
    return max(sorted(gammas), key=lambda gamma: fmean(result.at(gamma).mbsu.value for result in results))


def _result(result: TaskResult) -> list[str]:
    at = result.at(result.best_gamma)
    return [
        result.task,
        sampling_text(result.temperature),
        str(result.prompts),
        interval(result.alpha),
        or_dash(result.alpha_without_loops),
        str(result.best_gamma),
        interval(at.acceptance_rate),
        interval(at.block_efficiency),
        interval(at.mbsu),
    ]


def _prompts(part: SynthesizePart) -> str:
    """Each prompt source with its weight, and the origin of each prompt set."""
    places = {name: f" ({_place(prompts)})" for name, prompts in part.prompt_sets.items()}
    return ", ".join(f"{name}{places.get(name, '')} {fraction:g}" for name, fraction in part.mix.items())


def _place(part: SourcePart | PromptSetPart) -> str:
    """The origin of documents; only the last part of a local path, because the rest means nothing elsewhere."""
    if part.path is None:
        return part.source
    where = part.path if part.source == "hub" else Path(part.path).name
    return f"{part.source} {where}" + (f" ({part.subset})" if part.subset else "")


def _energy(evidence: Evidence) -> str:
    joules, parts = total_joules([cost.joules for cost in evidence.costs.values()])
    if joules is None:
        return "Energy: not known."
    return f"Energy: {energy_text(joules)} by the machine's own counters ({parts}), other programs included."


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


# In the order of the card.
SECTIONS = (training, data, acceptance, speed, gamma, weak)
