"""A whole recipe, and what its parts must agree on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from fastdraft.config.corpus import SourcePart, TokenizePart
from fastdraft.config.evaluation import EvaluatePart
from fastdraft.config.models import DraftPart, TargetPart
from fastdraft.config.part import Part
from fastdraft.config.synthesis import SynthesizePart
from fastdraft.config.training import SAMPLE_OBJECTIVES, TrainPart


class Recipe(Part):
    """A whole run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run, in letters, digits, `.`, `_`, `-`; its folder is runs/NAME by default.",
    )
    seed: int = Field(7, ge=0, description="Every generator starts from it.")
    threads: PositiveInt | None = Field(None, description="CPU threads; otherwise all cores.")
    device: str = Field("auto", description="cpu, cuda, xpu, hpu, or `auto`: the first accelerator, else cpu.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Of several processes each holds the whole draft (DDP), or a shard of it (FSDP2)."
    )
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        (), description="Where the rows of metrics.jsonl go too, by accelerate's trackers; each is an extra."
    )
    target: TargetPart
    draft: DraftPart
    corpus: dict[str, SourcePart] = Field(default_factory=dict, description="Named sources.")
    tokenize: TokenizePart = Field(default_factory=TokenizePart)
    pretrain: TrainPart | None = Field(None, description="PT: from random weights, natural language.")
    continue_: TrainPart | None = Field(None, alias="continue", description="CP: code mixed with text.")
    synthesize: SynthesizePart | None = Field(None, description="The target writes data.")
    align: TrainPart | None = Field(None, description="FT: on what the target wrote.")
    evaluate: EvaluatePart | None = Field(None, description="Measure after every phase.")

    @model_validator(mode="after")
    def _one_split_of_one_file(self) -> Recipe:
        """Sources over the same files hold out the same ones, or what is held out in one is trained on in the other."""
        shares: dict[str, tuple[str, float]] = {}
        for name, part in self.corpus.items():
            files = "python" if part.source.startswith("python_") else f"{part.source}:{part.path}"
            other, fraction = shares.setdefault(files, (name, part.held_out_fraction))
            if fraction != part.held_out_fraction:
                raise ValueError(
                    f"corpus.{other} and corpus.{name} read the same files with held_out_fraction {fraction:g} and "
                    f"{part.held_out_fraction:g}; they must be equal"
                )
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Recipe:
        """Every source that a part names is one of `corpus`, or `synthetic`: what the target wrote."""
        named = {
            "pretrain.mix": self.pretrain.mix if self.pretrain else {},
            "continue.mix": self.continue_.mix if self.continue_ else {},
            "synthesize.mix": self.synthesize.mix if self.synthesize else {},
            "align.mix": self.align.mix if self.align else {},
            "evaluate.tasks": self.evaluate.tasks if self.evaluate else (),
        }
        for where, names in named.items():
            known = {*self.corpus, *(["synthetic"] if where == "align.mix" and self.synthesize else [])}
            if where == "synthesize.mix" and self.synthesize:
                known |= self.synthesize.own_sources
            if unknown := sorted(set(names) - known):
                raise ValueError(f"{where} names {', '.join(unknown)}; this recipe has {', '.join(sorted(known))}")
        return self

    @model_validator(mode="after")
    def _records_exist(self) -> Recipe:
        """Losses on what was recorded with the target's answers have such rows."""
        phases = {"pretrain": self.pretrain, "continue": self.continue_, "align": self.align}
        for name, part in phases.items():
            if part is not None and part.on_policy and self.parallel == "fsdp":
                raise ValueError(f"{name}.on_policy needs the whole draft in each process; set parallel: ddp")
            if part is None or not part.recorded_keys:
                continue
            asked = f"{name} has {', '.join(part.recorded_keys)}"
            if "synthetic" not in part.mix or self.synthesize is None:
                raise ValueError(
                    f"{asked}, which texts of a corpus have no records for; it wants `synthetic` in its mix"
                )
            if part.teacher_logits == "offline" and not self.synthesize.top_logprobs:
                raise ValueError(f"{asked}; give synthesize.top_logprobs, like 16")
            recorded = self.synthesize.recorded
            if recorded and not recorded.logp_field and SAMPLE_OBJECTIVES & part.objectives.keys():
                raise ValueError(f"{asked}; give synthesize.recorded.logp_field")
        return self

    @model_validator(mode="after")
    def _completions_fit_their_rows(self) -> Recipe:
        if self.synthesize and self.align and "synthetic" in self.align.mix:
            prompt, row = self.synthesize.max_prompt_tokens, self.align.sequence_tokens
            if prompt > row:
                raise ValueError(f"align.sequence_tokens is {row}, shorter than synthesize.max_prompt_tokens, {prompt}")
        return self

    @model_validator(mode="after")
    def _can_be_evaluated(self) -> Recipe:
        """What evaluation would miss is said before anything is trained: a draft, and held-out documents."""
        if self.evaluate is None:
            return self
        if self.pretrain is self.continue_ is self.align is None:
            raise ValueError("evaluate has no draft to measure; give pretrain, continue or align")
        bare = [name for name in self.evaluate.tasks if not self.corpus[name].held_out_fraction]
        if bare:
            raise ValueError(f"evaluate.tasks names {', '.join(bare)}, of which held_out_fraction 0 leaves no document")
        return self

    @model_validator(mode="after")
    def _choice_is_measured(self) -> Recipe:
        """A phase that goes by block efficiency measures it."""
        for name, part in {"pretrain": self.pretrain, "continue": self.continue_, "align": self.align}.items():
            if part is None or (part.keep == "last" and part.early_stopping_patience is None):
                continue
            if self.evaluate is None or not self.evaluate.validation_prompts:
                asked = (
                    "keep best" if part.keep == "best" else f"early_stopping_patience {part.early_stopping_patience}"
                )
                raise ValueError(
                    f"{name} has {asked}, and nothing measures it; give evaluate.validation_prompts, like 16"
                )
        return self
