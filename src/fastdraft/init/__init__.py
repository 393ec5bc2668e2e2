"""The initial weights of a draft: random, with the target's embedding, or from another model (pruned or transplanted).

The recipe's `draft.init` selects one. `shape_of` is the shape of the draft, `first_weights` makes the weights.
"""

from fastdraft.init.first_weights import InitInputs, as_built, first_weights, shape_of

__all__ = ["InitInputs", "as_built", "first_weights", "shape_of"]
