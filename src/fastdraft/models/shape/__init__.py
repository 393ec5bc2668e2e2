"""From a target and a budget to the draft's shape: the nearest dense family, the padded vocabulary, tied embeddings."""

from fastdraft.models.shape.budget import around, default_budget_millions, smallest
from fastdraft.models.shape.derive import derive
from fastdraft.models.shape.draft_shape import DraftShape
from fastdraft.models.shape.families import FAMILIES

__all__ = ["FAMILIES", "DraftShape", "around", "default_budget_millions", "derive", "smallest"]
