"""A recipe is a whole run: YAML plus `key=value` overrides, one strict and frozen `Recipe`.

The schema below is the one source of keys, types, defaults and descriptions: `fastdraft recipe schema` and
docs/recipe.md are printed from it, and a stage receives only its own part.
"""

from fastdraft.config.corpus import SlurmPart, SourcePart, TokenizePart
from fastdraft.config.evaluation import EvaluatePart
from fastdraft.config.models import STARTS, STARTS_FROM_MODEL, DraftPart, TargetPart
from fastdraft.config.part import Part, Share
from fastdraft.config.recipe import Recipe
from fastdraft.config.synthesis import PromptSetPart, RecordedPart, ServerPart, SynthesizePart
from fastdraft.config.training import OBJECTIVES, OF_THE_LAW, OF_THE_SAMPLE, ObjectiveName, TrainPart

__all__ = [
    "OBJECTIVES",
    "OF_THE_LAW",
    "OF_THE_SAMPLE",
    "STARTS",
    "STARTS_FROM_MODEL",
    "DraftPart",
    "EvaluatePart",
    "ObjectiveName",
    "Part",
    "PromptSetPart",
    "Recipe",
    "RecordedPart",
    "ServerPart",
    "Share",
    "SlurmPart",
    "SourcePart",
    "SynthesizePart",
    "TargetPart",
    "TokenizePart",
    "TrainPart",
]
