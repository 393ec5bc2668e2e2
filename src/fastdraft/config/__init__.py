"""The recipe of a run: the schema of its YAML file, strict and frozen.

The schema is the only source of keys, types, defaults and descriptions. `fastdraft recipe schema` and docs/recipe.md
are printed from it. Each stage receives only its own part.
"""

from fastdraft.config.corpus import SlurmPart, SourcePart, TokenizePart
from fastdraft.config.evaluation import EvaluatePart
from fastdraft.config.models import INITS, INITS_FROM_MODEL, DraftPart, TargetPart
from fastdraft.config.part import Fraction, Part
from fastdraft.config.recipe import Recipe
from fastdraft.config.synthesis import PromptSetPart, RecordedPart, ServerPart, SynthesizePart
from fastdraft.config.training import DISTRIBUTION_OBJECTIVES, OBJECTIVES, SAMPLE_OBJECTIVES, ObjectiveName, TrainPart

__all__ = [
    "DISTRIBUTION_OBJECTIVES",
    "INITS",
    "INITS_FROM_MODEL",
    "OBJECTIVES",
    "SAMPLE_OBJECTIVES",
    "DraftPart",
    "EvaluatePart",
    "Fraction",
    "ObjectiveName",
    "Part",
    "PromptSetPart",
    "Recipe",
    "RecordedPart",
    "ServerPart",
    "SlurmPart",
    "SourcePart",
    "SynthesizePart",
    "TargetPart",
    "TokenizePart",
    "TrainPart",
]
