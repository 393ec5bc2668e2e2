"""Plan a draft before training: possible shapes, their predicted speed-up on a device, the cost of making one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, computed_field

from fastdraft.config import DraftPart, Recipe, SynthesizePart, TargetPart, TrainPart
from fastdraft.maths.acceptance import alpha_of_block_efficiency
from fastdraft.models import pretrained
from fastdraft.models.shape import DraftShape, default_budget, derive, nearby_shapes
from fastdraft.models.shape.target_sizes import sizes
from fastdraft.planning import step_times, training_cost
from fastdraft.planning.devices import DEVICES, Device
from fastdraft.planning.model_size import BITS, ModelSize, weight_bytes
from fastdraft.planning.step_times import GAMMAS, StepTimes
from fastdraft.planning.training_cost import PAPER_DEVICE, PAPER_DEVICES
from fastdraft.system import limits
from fastdraft.system.errors import ShapeError

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Tokens in the context while the pair decodes: an instruction and half an answer.
CONTEXT_TOKENS = 512


class Figures(BaseModel):
    """Base of all parts of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedTarget(Figures):
    """A target: bytes of its weights at each precision, seconds of its step on one token."""

    name: str
    family: str
    parameters: int
    vocab_rows: int
    tied: bool
    context_tokens: int
    bytes_at: dict[str, float]
    step_seconds: float


class Pays(Figures):
    """The speed-up of a draft at an acceptance alpha: at the best gamma, and at each gamma."""

    alpha: float
    best_gamma: int
    speedup: float
    speedup_at: dict[int, float]


class Candidate(Figures):
    """A possible draft. c = its parameters / the target's. `break_even_alpha` None: it never pays.

    costed: the stages of the plan are those of this draft.
    """

    family: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    parameters: int
    embedding_parameters: int
    other_parameters: int
    c: float
    bytes_at: dict[str, float]
    widths: str
    step_seconds: float
    break_even_alpha: float | None
    pays: tuple[Pays, ...]
    costed: bool
    notes: tuple[str, ...]


class StageCost(Figures):
    """The cost of a stage: `hours` on one training device, `paper_hours` on the paper's 8 Gaudi 2."""

    stage: str
    tokens: int
    flops: float
    hours: float
    paper_hours: float
    disk_bytes: float


class Guide(Figures):
    """A draft of the paper after its three stages: acceptance rate at gamma 3 by task, and the alpha it implies."""

    draft: str
    acceptance_rate: dict[str, float]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def alpha(self) -> dict[str, float]:
        """The alpha with the block efficiency of the rate, if every token had the same acceptance."""
        taus = {task: 1 + 3 * rate for task, rate in self.acceptance_rate.items()}
        return {task: alpha_of_block_efficiency(tau, 3) or 0.0 for task, tau in taus.items()}


class Plan(Figures):
    """A plan, printed as tables or as JSON.

    draft_from: where the size of the draft that is costed comes from: the recipe, a budget, or the default budget.
    """

    target: PlannedTarget
    device: Device
    training_device: Device
    weights: str
    context_tokens: int
    drafts: tuple[Candidate, ...]
    draft_from: Literal["recipe", "budget", "default"]
    guide: tuple[Guide, ...]
    recipe: str
    stages: tuple[StageCost, ...]


def _guide(draft: str, *rates: float) -> Guide:
    tasks = ("CNN/DailyMail", "TinyStories", "Dolly", "HumanEval")
    return Guide(draft=draft, acceptance_rate=dict(zip(tasks, rates, strict=True)))


# FastDraft (arXiv:2411.11055), table 1: acceptance rate at gamma 3, T = 0.6, after PT, CP and FT.
PAPER = (
    _guide("Phi-3-mini, 50M", 0.369, 0.306, 0.370, 0.562),
    _guide("Llama-3.1-8B, 150M", 0.307, 0.266, 0.334, 0.649),
)


class Setting(NamedTuple):
    """The device and the precision with which the pair decodes, and the device that trains the draft."""

    device: Device
    training_device: Device
    weights: str


def make_plan(
    target: str | TargetPart, draft: float | DraftShape | None, recipe: Recipe | None, setting: Setting
) -> Plan:
    """The plan for a target; its config.json is enough.

    `draft`: its millions of parameters, or the shape that the recipe gives it (`init.shape_of`). Defaults: the paper's
    size as a fraction of the target, and the paper's recipe. ShapeError if no draft fits the budget.
    """
    part = TargetPart(path=target) if isinstance(target, str) else target
    config = pretrained.open_config(part)
    size, costed_recipe = ModelSize.of_config(config), recipe or paper_recipe(part)
    if isinstance(draft, DraftShape):
        budget, best = draft.parameters / 1e6, draft
    else:
        budget = default_budget(config) if draft is None else draft
        if not 0 < budget <= limits.PARAMETERS_MILLIONS:
            raise ShapeError(
                f"no draft can have {budget:g}M parameters\n"
                f"  wanted: more than 0M, at most {limits.PARAMETERS_MILLIONS:,}M\n"
                f"  do: choose another size with --params"
            )
        best = derive(config, DraftPart().model_copy(update={"params_millions": budget}))
    shapes = nearby_shapes(config, DraftPart().model_copy(update={"params_millions": budget}), best)
    return Plan(
        target=_planned_target(part.path, config, size, setting),
        device=setting.device,
        training_device=setting.training_device,
        weights=setting.weights,
        context_tokens=CONTEXT_TOKENS,
        drafts=tuple(_candidate(shape, size, setting, shape is best) for shape in shapes),
        draft_from="recipe" if isinstance(draft, DraftShape) else "default" if draft is None else "budget",
        guide=PAPER,
        recipe=costed_recipe.name,
        stages=tuple(_stages(ModelSize.of_shape(best), size, costed_recipe, setting)),
    )


def paper_recipe(part: TargetPart) -> Recipe:
    """The paper's recipe (section 4): PT on 5B tokens of text, CP on 5B of code and 2.5B of text, FT on synthetic data.

    The paper does not state the size of the synthetic data. 500k answers of 512 tokens are about the size of its prompt
    sets times the four temperatures.
    """
    hub = {
        "text": "HuggingFaceFW/fineweb",
        "code": "bigcode/the-stack-v2-train-smol-ids",
        "prompts": "tatsu-lab/alpaca",
    }
    phase = {"sequence_tokens": 2048, "batch_size": 64}
    return Recipe.model_validate(
        {
            "name": "paper",
            "target": part,
            "draft": {"params_millions": 1},
            "corpus": {name: {"source": "hub", "path": path} for name, path in hub.items()},
            "pretrain": {"mix": {"text": 1}, "train_tokens": 5_000_000_000, **phase},
            "continue": {"mix": {"code": 2, "text": 1}, "train_tokens": 7_500_000_000, **phase},
            "synthesize": {"mix": {"prompts": 1}, "prompts": 500_000, "max_new_tokens": 512},
            "align": {"mix": {"synthetic": 1}, "train_tokens": 256_000_000, **phase},
        }
    )


def _planned_target(name: str, config: Any, size: ModelSize, setting: Setting) -> PlannedTarget:
    text = config.get_text_config()
    return PlannedTarget(
        name=name,
        family=text.model_type,
        parameters=size.parameters,
        vocab_rows=size.vocab_rows,
        tied=size.tied,
        context_tokens=sizes(config).context_tokens,
        bytes_at={weights: weight_bytes(size, weights) for weights in BITS},
        step_seconds=step_times.step_seconds(size, setting.device, setting.weights, 1, CONTEXT_TOKENS),
    )


def _candidate(shape: DraftShape, target: ModelSize, setting: Setting, costed: bool) -> Candidate:
    size = ModelSize.of_shape(shape)
    times = step_times.step_times(size, target, setting.device, setting.weights, setting.weights, CONTEXT_TOKENS)
    return Candidate(
        family=shape.family,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        intermediate_size=shape.intermediate_size,
        parameters=shape.parameters,
        embedding_parameters=shape.embedding_parameters,
        other_parameters=shape.other_parameters,
        c=shape.parameters / target.parameters,
        bytes_at={weights: weight_bytes(size, weights) for weights in BITS},
        widths=shape.widths,
        step_seconds=times.draft_seconds,
        break_even_alpha=step_times.break_even_alpha(times),
        pays=tuple(_pays(alpha, times) for alpha in ALPHAS),
        costed=costed,
        notes=shape.notes,
    )


def _pays(alpha: float, times: StepTimes) -> Pays:
    speedup_at = {gamma: step_times.predicted_speedup(alpha, gamma, times) for gamma in GAMMAS}
    best = step_times.best_gamma(alpha, times)
    return Pays(alpha=alpha, best_gamma=best, speedup=speedup_at[best], speedup_at=speedup_at)


def _stages(draft: ModelSize, target: ModelSize, recipe: Recipe, setting: Setting) -> Iterator[StageCost]:
    """The cost of each stage that the recipe has, in the order of the pipeline."""
    phases = {"pretrain": recipe.pretrain, "continue": recipe.continue_}
    trained = sum(part.train_tokens for part in phases.values() if part)
    disk = training_cost.shard_bytes(trained, target.vocab_rows)
    yield StageCost(stage="tokenize", tokens=trained, flops=0, hours=0, paper_hours=0, disk_bytes=disk)
    for name, part in phases.items():
        if part:
            yield _phase(name, part, draft, target, setting)
    if recipe.synthesize:
        yield _synthesis(recipe.synthesize, target, setting)
    if recipe.align:
        yield _phase("align", recipe.align, draft, target, setting)


def _phase(name: str, part: TrainPart, draft: ModelSize, target: ModelSize, setting: Setting) -> StageCost:
    """A phase of training; against a online distribution, with a forward of the target or the teacher on what that
    reads.
    """
    flops = training_cost.training_flops(draft, part.train_tokens, part.sequence_tokens)
    if part.needs_teacher:
        teacher = ModelSize.of_config(pretrained.open_config(part.teacher)) if part.teacher else target
        flops += (
            part.teacher_fraction * part.train_tokens * step_times.forward_flops(teacher, 1, part.sequence_tokens / 2)
        )
    return StageCost(
        stage=name,
        tokens=part.train_tokens,
        flops=flops,
        hours=training_cost.hours(flops, setting.training_device),
        paper_hours=training_cost.hours(flops, DEVICES[PAPER_DEVICE], devices=PAPER_DEVICES),
        disk_bytes=training_cost.checkpoint_bytes(draft, part.optimizer),
    )


def _synthesis(part: SynthesizePart, target: ModelSize, setting: Setting) -> StageCost:
    """Upper bound: every answer has the maximum length."""
    tokens = part.prompts * part.max_new_tokens
    length = part.max_prompt_tokens + part.max_new_tokens // 2
    return StageCost(
        stage="synthesize",
        tokens=tokens,
        flops=step_times.forward_flops(target, tokens, length),
        hours=_generation_hours(target, tokens, setting.training_device, length),
        paper_hours=_generation_hours(target, tokens, DEVICES[PAPER_DEVICE], length) / PAPER_DEVICES,
        disk_bytes=training_cost.completion_bytes(tokens)
        + tokens * training_cost.top_bytes(part.top_logprobs, target.vocab_rows),
    )


def _generation_hours(target: ModelSize, tokens: int, device: Device, context_tokens: int) -> float:
    """Hours on one device in bf16, in batches as large as its memory allows, from 1 to 64."""
    batch_size = max(1, training_cost.most_sequences(target, device, "bf16", context_tokens, 64))
    return training_cost.generation_seconds(target, tokens, device, "bf16", batch_size, context_tokens) / 3600
