"""Where a draft's weights start: at random, with the target's embedding, or from another model, pruned or transplanted.

The recipe's `draft.init` names the way; `first_weights` goes it, `shape_of` says what shape the draft has by it.
"""

from fastdraft.init.donor import digest
from fastdraft.init.first_weights import InitInputs, as_built, first_weights, shape_of

__all__ = ["InitInputs", "as_built", "digest", "first_weights", "shape_of"]
