"""A phase of training: PT, CP and FT alike."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from fastdraft.config.part import Fraction, Part


def _positive(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")


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
# What each asks of the target: its distribution at every token, or the log-probability of the token that it sampled.
DISTRIBUTION_OBJECTIVES = {"forward_kl", "reverse_kl", "jensen_shannon", "total_variation"}
SAMPLE_OBJECTIVES = {"sampled_total_variation", "block_length"}


class TrainPart(Part):
    """One phase of training; every phase runs the same loop."""

    mix: dict[str, PositiveFloat] = Field(min_length=1, description="Weight of each source in the batches.")
    train_tokens: PositiveInt = Field(description="Tokens trained on in this phase.")
    batch_size: PositiveInt = Field(16, description="Sequences in one optimizer step.")
    micro_batch_size: PositiveInt | None = Field(
        None, description="Sequences in one forward of a process; otherwise all of its own."
    )
    sequence_tokens: PositiveInt = Field(512, description="Tokens of a sequence.")
    objective: ObjectiveName | dict[ObjectiveName, PositiveFloat] = Field(
        "cross_entropy",
        description="Loss of a token, or weights of several, like `{forward_kl: 0.5, total_variation: 0.5}`: on the "
        "text; against the target's distribution; or on the recorded log-probability of what the target wrote. "
        "docs/align.md",
    )
    teacher_logits: Literal["online", "offline"] = Field(
        "online",
        description="The target's distribution: by a forward of the target on every batch, or as "
        "`synthesize.top_logprobs` "
        "stored it.",
    )
    teacher: str | None = Field(
        None,
        min_length=1,
        description="Model whose online distribution is learned in the target's place, like a smaller sibling: "
        "of the target's "
        "vocabulary, a hub id, a folder or `demo`.",
    )
    teacher_fraction: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Share of the rows that the live target (or `teacher`) reads; of the others the text is learned.",
    )
    temperature: PositiveFloat | Literal["per_sequence"] = Field(
        1.0,
        description="Temperature of both distributions in losses against the target's distribution; "
        "`per_sequence`: that of each sequence of "
        "`synthetic`, 1 where it is greedy or text of a corpus.",
    )
    on_policy: Fraction = Field(
        0.0,
        description="Share of the rows that the draft itself goes on with, for losses against the live target's "
        "distribution.",
    )
    block_gamma: PositiveInt = Field(5, description="Drafted tokens of a block in the objective `block_length`.")
    block_decay: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Weighting by place in the block: drafted token j counts block_decay^(j - 1) in the gradient of "
        "`block_length`.",
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="Muon for matrices and AdamW for the rest, or AdamW."
    )
    muon_learning_rate: PositiveFloat = Field(0.02, description="Peak learning rate of the matrices under Muon.")
    learning_rate: PositiveFloat = Field(0.003, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay of matrices.")
    gradient_clip: PositiveFloat = Field(1.0, description="Largest global gradient norm.")
    schedule: Literal["warmup_stable_decay", "cosine"] = Field(
        "warmup_stable_decay", description="Learning-rate shape."
    )
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up.")
    decay_fraction: Fraction = Field(0.4, description="Last share of the steps, over which the rate falls to zero.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Autocast, and what the teacher runs in; master weights are always fp32. auto: bf16 where the "
        "device multiplies matrices faster in it, else fp32.",
    )
    compile: bool = Field(False, description="torch.compile the forward pass (needs a C++ compiler on CPU).")
    activation_checkpointing: bool = Field(
        False, description="Compute each layer again in the backward pass: less memory, a third more time."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="A step whose loss is no number, or explodes: stop, or leave it out and count it."
    )
    head_chunk_tokens: PositiveInt = Field(1024, description="Tokens whose logits exist at one time.")
    checkpoint_seconds: PositiveFloat = Field(60, description="Seconds between checkpoints.")
    held_out_every_tokens: PositiveInt = Field(
        250_000,
        description="Tokens between measures of held-out loss and block efficiency (`evaluate.validation_prompts`).",
    )
    held_out_sequences: PositiveInt = Field(32, description="Held-out sequences a source for the loss.")
    keep: Literal["last", "best"] = Field(
        "last", description="The draft that the phase leaves: the last, or the one of the highest block efficiency."
    )
    early_stopping_patience: PositiveInt | None = Field(
        None,
        description="The phase ends where block efficiency has not risen for so many measures, once the rate has "
        "fallen: the decay of `decay_fraction` begins then.",
    )

    @property
    def objectives(self) -> dict[str, float]:
        """The weight of each objective."""
        return (
            {self.objective: 1.0} if isinstance(self.objective, str) else {str(n): w for n, w in self.objective.items()}
        )

    @property
    def needs_teacher(self) -> bool:
        """Is a online distribution learned: does the target, or `teacher` in its place, read what the draft is trained
        on?
        """
        return self.teacher_logits == "online" and bool(DISTRIBUTION_OBJECTIVES & self.objectives.keys())

    @property
    def needs_recorded_data(self) -> bool:
        """Is what was recorded with the target's answers part of the loss?"""
        return bool(self.recorded_keys) or self.temperature == "per_sequence"

    @property
    def recorded_keys(self) -> list[str]:
        """The keys whose losses hang on what was recorded with the target's answers."""
        sampled = [f"objective {name}" for name in self.objectives if name in SAMPLE_OBJECTIVES]
        return [*sampled, *(["teacher_logits offline"] if self.teacher_logits == "offline" else [])]

    @field_validator("objective", mode="before")
    @classmethod
    def _known_objectives(cls, found: Any) -> Any:
        """Names and positive weights; said here, because a union would name each of its types."""
        weights = found if isinstance(found, dict) else {str(found): 1.0}
        sound = [name in OBJECTIVES and _positive(weight) for name, weight in weights.items()]
        if not sound or not all(sound):
            raise ValueError(f"found {found}, wanted one of {', '.join(OBJECTIVES)}, or positive weights of some")
        return found

    @field_validator("temperature", mode="before")
    @classmethod
    def _known_temperature(cls, found: Any) -> Any:
        if found != "per_sequence" and not _positive(found):
            raise ValueError(f"found {found}, wanted a number above 0, or per_sequence")
        return found

    @model_validator(mode="after")
    def _has_teacher_logits(self) -> TrainPart:
        if self.teacher_logits == "offline" and not DISTRIBUTION_OBJECTIVES & self.objectives.keys():
            raise ValueError(
                f"teacher_logits is offline; give an objective of the distribution: "
                f"{', '.join(sorted(DISTRIBUTION_OBJECTIVES))}"
            )
        if not self.needs_teacher and (self.teacher or self.teacher_fraction < 1):
            raise ValueError(
                f"{'teacher' if self.teacher else 'teacher_fraction'} is for a online distribution; found "
                f"teacher_logits {self.teacher_logits}, "
                f"objective {', '.join(self.objectives)}"
            )
        if self.on_policy and not (self.needs_teacher and self.objectives.keys() <= DISTRIBUTION_OBJECTIVES):
            raise ValueError(
                f"on_policy is for the live target's distribution alone, which judges any words; found teacher_logits "
                f"{self.teacher_logits}, objective {', '.join(self.objectives)}"
            )
        if self.on_policy and self.teacher_fraction < 1:
            raise ValueError(
                f"on_policy wants the distribution of all rows, teacher_fraction is {self.teacher_fraction:g}"
            )
        if self.teacher_logits == "offline" and self.temperature != 1:
            raise ValueError(f"teacher_logits is offline at temperature 1, temperature is {self.temperature}")
        return self
