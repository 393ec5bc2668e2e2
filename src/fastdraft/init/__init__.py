"""Where a draft's weights start: at random, with the target's embedding, or from another model, pruned or transplanted.

The recipe's `draft.start` names the way; `first_weights` goes it, `shape_of` says what shape the draft has by it.
"""

from fastdraft.init.donor import digest
from fastdraft.init.first_weights import Beginning, as_built, first_weights, shape_of

__all__ = ["Beginning", "as_built", "digest", "first_weights", "shape_of"]
