"""The draft's shape, derived from a target and a budget: nearest dense family, padded vocabulary, tied embeddings."""

from fastdraft.models.shape.budget import default_budget_millions, nearby_shapes, smallest
from fastdraft.models.shape.derive import derive
from fastdraft.models.shape.draft_shape import DraftShape
from fastdraft.models.shape.families import FAMILIES

__all__ = ["FAMILIES", "DraftShape", "default_budget_millions", "derive", "nearby_shapes", "smallest"]
