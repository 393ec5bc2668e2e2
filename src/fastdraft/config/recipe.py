"""The whole recipe, and checks across its parts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fastdraft.config.corpus import SourcePart, TokenizePart
from fastdraft.config.evaluation import EvaluatePart
from fastdraft.config.models import DraftPart, TargetPart
from fastdraft.config.part import Name, Parallel, Part
from fastdraft.config.synthesis import SynthesizePart
from fastdraft.config.training import SAMPLE_OBJECTIVES, TrainPart
from fastdraft.system import limits


class Recipe(Part):
    """The recipe of a run."""

    name: Name = Field(
        description="Name of the run: letters, digits, `.`, `_`, `-`. Its folder is runs/NAME by default.",
    )
    seed: int = Field(7, ge=0, le=limits.SEED, description="Seed of all random generators.")
    threads: Parallel | None = Field(None, description="Number of CPU threads; by default all cores.")
    device: str = Field("auto", description="cpu, cuda, xpu, hpu, or `auto` (the first accelerator, else cpu).")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="With several processes: `ddp` replicates the draft, `fsdp` (FSDP2) shards it."
    )
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        (), description="Also log metrics.jsonl to these trackers of accelerate; each needs its extra."
    )
    target: TargetPart
    draft: DraftPart
    corpus: dict[Name, SourcePart] = Field(default_factory=dict, description="Sources of documents, by name.")
    tokenize: TokenizePart = Field(default_factory=TokenizePart)
    pretrain: TrainPart | None = Field(None, description="Pretraining (PT), on natural language.")
    continue_: TrainPart | None = Field(
        None, alias="continue", description="Continued pretraining (CP), on code mixed with text."
    )
    synthesize: SynthesizePart | None = Field(None, description="Synthesis of training data by the target.")
    align: TrainPart | None = Field(None, description="Alignment (FT), on the target's completions.")
    evaluate: EvaluatePart | None = Field(None, description="Evaluation of the draft after every phase.")

    @model_validator(mode="after")
    def _same_files_have_one_split(self) -> Recipe:
        """Two sources with the same files need one held-out split: a document held out in one must not be trained on
        through the other.
        """
        splits: dict[str, tuple[str, float]] = {}
        for name, part in self.corpus.items():
            files = "python" if part.source.startswith("python_") else f"{part.source}:{part.path}"
            first, fraction = splits.setdefault(files, (name, part.held_out_fraction))
            if fraction != part.held_out_fraction:
                raise ValueError(
                    f"corpus.{first} and corpus.{name} read the same files with held_out_fraction {fraction:g} and "
                    f"{part.held_out_fraction:g}; they must be equal"
                )
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Recipe:
        """Every source that a part names is in `corpus`. `align` may also name `synthetic`, the synthesized data."""
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
    def _logprobs_are_recorded(self) -> Recipe:
        """A loss on recorded log-probabilities has data that contains them."""
        for name, part in self.phases.items():
            if part.on_policy and self.parallel == "fsdp":
                raise ValueError(f"{name}.on_policy needs the whole draft in each process; set parallel: ddp")
            if not part.recorded_keys:
                continue
            setting = f"{name} has {', '.join(part.recorded_keys)}"
            if "synthetic" not in part.mix or self.synthesize is None:
                raise ValueError(f"{setting}, which needs recorded completions; add `synthetic` to its mix")
            if part.teacher_logits == "offline" and not self.synthesize.top_logprobs:
                raise ValueError(f"{setting}; give synthesize.top_logprobs, like 16")
            recorded = self.synthesize.recorded
            if recorded and not recorded.logp_field and SAMPLE_OBJECTIVES & part.objectives.keys():
                raise ValueError(f"{setting}; give synthesize.recorded.logp_field")
        return self

    @model_validator(mode="after")
    def _prompts_fit_the_sequences(self) -> Recipe:
        if self.synthesize and self.align and "synthetic" in self.align.mix:
            prompt, sequence = self.synthesize.max_prompt_tokens, self.align.sequence_tokens
            if prompt > sequence:
                raise ValueError(
                    f"align.sequence_tokens is {sequence}, shorter than synthesize.max_prompt_tokens, {prompt}"
                )
        return self

    @model_validator(mode="after")
    def _can_be_evaluated(self) -> Recipe:
        """Before anything is trained: evaluation has a draft, and held-out documents for every task."""
        if self.evaluate is None:
            return self
        if not self.phases:
            raise ValueError("evaluate has no draft to measure; give pretrain, continue or align")
        empty = [name for name in self.evaluate.tasks if not self.corpus[name].held_out_fraction]
        if empty:
            raise ValueError(f"evaluate.tasks names {', '.join(empty)}, but held_out_fraction 0 holds out no document")
        return self

    @model_validator(mode="after")
    def _block_efficiency_is_validated(self) -> Recipe:
        """A phase that keeps the best draft, or stops early, needs block efficiency measured during training."""
        if self.evaluate and self.evaluate.validation_prompts:
            return self
        for name, part in self.phases.items():
            if part.keep == "best" or part.early_stopping_patience is not None:
                setting = (
                    "keep best" if part.keep == "best" else f"early_stopping_patience {part.early_stopping_patience}"
                )
                raise ValueError(
                    f"{name} has {setting}, but block efficiency is not measured; give evaluate.validation_prompts, "
                    "like 16"
                )
        return self

    @property
    def phases(self) -> dict[str, TrainPart]:
        """The phases of training that this recipe has, by the keys that users write."""
        phases = {"pretrain": self.pretrain, "continue": self.continue_, "align": self.align}
        return {name: part for name, part in phases.items() if part is not None}
