"""From a target and a budget to the draft's shape: the nearest dense family, the padded vocabulary, tied embeddings."""

from fastdraft.shape.around import around, default_budget_millions, smallest
from fastdraft.shape.derive import derive
from fastdraft.shape.families import FAMILIES
from fastdraft.shape.form import DraftShape

__all__ = ["FAMILIES", "DraftShape", "around", "default_budget_millions", "derive", "smallest"]
