"""Schema of a training phase: pretraining (PT), continued pretraining (CP) and alignment (FT)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, field_validator, model_validator

from fastdraft.config.part import (
    BatchSize,
    Count,
    Fraction,
    Gamma,
    Mark,
    Part,
    SampleSize,
    Seconds,
    SequenceTokens,
    Total,
)
from fastdraft.system import limits
from fastdraft.system.validation import shortened


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


ObjectiveName = Literal[
    "cross_entropy",
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "total_variation",
    "sampled_total_variation",
    "block_length",
]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)
# The first need the teacher's distribution at every token, the second the log-probability of the token that the target
# sampled.
DISTRIBUTION_OBJECTIVES = {"forward_kl", "reverse_kl", "jensen_shannon", "total_variation"}
SAMPLE_OBJECTIVES = {"sampled_total_variation", "block_length"}


class TrainPart(Part):
    """One phase of training. All phases run the same loop."""

    mix: dict[str, PositiveFloat] = Field(min_length=1, description="Weight of each source.")
    train_tokens: Total = Field(description="Number of tokens to train on.")
    batch_size: BatchSize = Field(16, description="Sequences per optimizer step, over all processes.")
    micro_batch_size: Annotated[BatchSize | None, Mark.NO_RESULT] = Field(
        None, description="Sequences per forward pass of a process; by default all sequences of that process."
    )
    sequence_tokens: SequenceTokens = Field(512, description="Length of a training sequence.")
    objective: ObjectiveName | dict[ObjectiveName, PositiveFloat] = Field(
        "cross_entropy",
        description="Loss per token, or a weighted sum such as `{forward_kl: 0.5, total_variation: 0.5}`. "
        "`cross_entropy` needs only the text; `sampled_total_variation` and `block_length` need the target's recorded "
        "log-probabilities; the others need the teacher's distribution. See docs/align.md.",
    )
    teacher_logits: Literal["online", "offline"] = Field(
        "online",
        description="Source of the teacher's distribution: online, a forward pass of the teacher on every batch; "
        "offline, the stored `synthesize.top_logprobs`.",
    )
    teacher: str | None = Field(
        None,
        min_length=1,
        description="Online teacher to use instead of the target, such as a smaller model of its family: a hub id, "
        "a folder, `demo` or `smollm2`. It must have the target's vocabulary.",
    )
    teacher_fraction: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Fraction of the sequences that the online teacher reads; the rest use cross entropy.",
    )
    temperature: PositiveFloat | Literal["per_sequence"] = Field(
        1.0,
        description="Temperature of both distributions in losses against the teacher's distribution. `per_sequence`: "
        "the temperature at which the completion was sampled; 1 for greedy completions and corpus text.",
    )
    on_policy: Fraction = Field(
        0.0,
        description="Fraction of the sequences that the draft continues itself, for on-policy distillation from the "
        "online teacher.",
    )
    block_gamma: Gamma = Field(5, description="Drafted tokens per block in the objective `block_length`.")
    block_decay: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="The gradient of `block_length` weights drafted token j of a block by block_decay^(j - 1).",
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="`muon`: Muon for matrices and AdamW for the rest. `adamw`: AdamW for all."
    )
    muon_learning_rate: PositiveFloat = Field(0.02, description="Peak learning rate of Muon.")
    learning_rate: PositiveFloat = Field(0.003, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay, applied to matrices only.")
    gradient_clip: PositiveFloat = Field(1.0, description="Maximum global gradient norm.")
    schedule: Literal["warmup_stable_decay", "cosine"] = Field(
        "warmup_stable_decay", description="Learning-rate schedule."
    )
    warmup_steps: int = Field(50, ge=0, le=limits.TOTAL, description="Steps of linear warm-up.")
    decay_fraction: Fraction = Field(
        0.4, description="Fraction of the steps, at the end, over which the learning rate decays to zero."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Precision of autocast and of the teacher; master weights are always fp32. auto: bf16 if the "
        "device multiplies matrices faster in it, else fp32.",
    )
    compile: bool = Field(False, description="Use torch.compile (on CPU it needs a C++ compiler).")
    activation_checkpointing: Annotated[bool, Mark.NO_RESULT] = Field(
        False, description="Recompute each layer in the backward pass: less memory, a third more time."
    )
    on_nonfinite: Annotated[Literal["stop", "skip"], Mark.NO_RESULT] = Field(
        "stop", description="If the loss is NaN or infinite, or explodes: stop, or skip the step and count it."
    )
    head_chunk_tokens: BatchSize = Field(1024, description="Tokens whose logits are in memory at a time.")
    sampled_softmax: Count | None = Field(
        None,
        description="Number of tokens, drawn at random, that stand in the loss for all tokens that are not in the "
        "batch; by default all have logits. For drafts that are mostly output layer. See docs/align.md.",
    )
    checkpoint_seconds: Annotated[Seconds, Mark.NO_RESULT] = Field(60, description="Seconds between checkpoints.")
    held_out_every_tokens: Total = Field(
        250_000,
        description="Tokens between validations, rounded up to whole steps: held-out loss, and block efficiency on "
        "`evaluate.validation_prompts`.",
    )
    held_out_sequences: SampleSize = Field(32, description="Held-out sequences per source for the held-out loss.")
    keep: Literal["last", "best"] = Field(
        "last", description="Keep the last draft, or the one with the best block efficiency."
    )
    early_stopping_patience: Count | None = Field(
        None,
        description="Number of validations without a gain in block efficiency after which the phase ends early: the "
        "learning-rate decay of `decay_fraction` starts then.",
    )

    @property
    def objectives(self) -> dict[str, float]:
        """The weight of each objective."""
        if isinstance(self.objective, str):
            return {self.objective: 1.0}
        return {str(name): weight for name, weight in self.objective.items()}

    @property
    def needs_teacher(self) -> bool:
        """Whether an online teacher reads the training batches."""
        return self.teacher_logits == "online" and bool(DISTRIBUTION_OBJECTIVES & self.objectives.keys())

    @property
    def needs_recorded_data(self) -> bool:
        """Whether the loss uses data that was recorded with the target's completions."""
        return bool(self.recorded_keys) or self.temperature == "per_sequence"

    @property
    def recorded_keys(self) -> list[str]:
        """The settings that need log-probabilities recorded with the target's completions, for error messages."""
        sampled = [f"objective {name}" for name in self.objectives if name in SAMPLE_OBJECTIVES]
        return [*sampled, *(["teacher_logits offline"] if self.teacher_logits == "offline" else [])]

    @property
    def _is_offline_alone(self) -> bool:
        """Whether every term of the loss is a divergence from stored distributions, or cross entropy."""
        return self.teacher_logits == "offline" and not SAMPLE_OBJECTIVES & self.objectives.keys()

    @field_validator("objective", mode="before")
    @classmethod
    def _known_objectives(cls, objective: Any) -> Any:
        """Check names and weights here: pydantic's error would list every type of the union."""
        weights = objective if isinstance(objective, dict) else {str(objective): 1.0}
        if not weights or not all(name in OBJECTIVES and _positive(weight) for name, weight in weights.items()):
            raise ValueError(
                f"found {shortened(str(objective))}, wanted one of {', '.join(OBJECTIVES)}, or positive weights of some"
            )
        return objective

    @field_validator("temperature", mode="before")
    @classmethod
    def _known_temperature(cls, temperature: Any) -> Any:
        if temperature != "per_sequence" and not _positive(temperature):
            raise ValueError(f"found {shortened(str(temperature))}, wanted a number above 0, or per_sequence")
        return temperature

    @model_validator(mode="after")
    def _teacher_settings_agree(self) -> TrainPart:
        settings = f"found teacher_logits {self.teacher_logits}, objective {', '.join(self.objectives)}"
        if self.teacher_logits == "offline" and not DISTRIBUTION_OBJECTIVES & self.objectives.keys():
            wanted = ", ".join(sorted(DISTRIBUTION_OBJECTIVES))
            raise ValueError(f"teacher_logits is offline, which needs one of the objectives {wanted}")
        if not self.needs_teacher and (self.teacher or self.teacher_fraction < 1):
            key = "teacher" if self.teacher else "teacher_fraction"
            raise ValueError(f"{key} needs an online teacher; {settings}")
        if self.on_policy and not (self.needs_teacher and self.objectives.keys() <= DISTRIBUTION_OBJECTIVES):
            raise ValueError(f"on_policy needs an online teacher and only objectives of its distribution; {settings}")
        if self.on_policy and self.teacher_fraction < 1:
            raise ValueError(f"on_policy needs teacher_fraction 1, found {self.teacher_fraction:g}")
        if self.sampled_softmax and not (self.objectives.keys() == {"cross_entropy"} or self._is_offline_alone):
            raise ValueError(f"sampled_softmax needs cross_entropy or a distribution stored offline; {settings}")
        if self.teacher_logits == "offline" and self.temperature != 1:
            raise ValueError(f"teacher_logits offline needs temperature 1, found {self.temperature}")
        return self
