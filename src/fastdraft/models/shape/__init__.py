"""The draft's shape, derived from a target and a budget: nearest dense family, padded vocabulary, tied embeddings."""

from fastdraft.models.shape.derive import default_budget, default_budget_millions, derive, smallest
from fastdraft.models.shape.draft_shape import DraftShape
from fastdraft.models.shape.families import FAMILIES
from fastdraft.models.shape.nearby import nearby_shapes

__all__ = ["FAMILIES", "DraftShape", "default_budget", "default_budget_millions", "derive", "nearby_shapes", "smallest"]
