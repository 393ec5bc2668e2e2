"""Every way to fail, one class each.

FastDraftError                 something of ours went wrong; exit code 1
├── UserError                  the user can mend it; printed without a traceback, exit code 2
│   ├── RecipeError            a recipe's key, type or value
│   ├── TargetError            a target that cannot be opened or used
│   ├── CorpusError            a source with nothing, or too little that is sound, in it
│   ├── ShapeError             a draft that cannot be shaped within its budget
│   ├── RunError               a run folder in use, or that belongs to something else
│   ├── CardError              a card that is missing, broken or from another version
│   ├── ShardError             token shards that are not what their card says
│   ├── VocabularyMismatch     a draft that does not speak its target's vocabulary
│   └── DiskFull               no space left while an artefact was written
├── NonFiniteLoss              the loss became NaN or infinite; the last good checkpoint is kept
├── CheckpointError            no sound checkpoint where one must be
└── JudgeError                 real speculative decoding disagrees with the one-pass evaluation

A message says what was found, what was wanted, where, and what to do next (a last line that starts with "do:").
"""


class FastDraftError(Exception):
    """Something of ours went wrong."""

    exit_code = 1


class UserError(FastDraftError):
    """Something that the user can mend; printed without a traceback."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe's key, type or value."""


class TargetError(UserError):
    """A target that cannot be opened or used."""


class CorpusError(UserError):
    """A source with nothing, or too little that is sound, in it."""


class ShapeError(UserError):
    """A draft that cannot be shaped within its budget."""


class RunError(UserError):
    """A run folder in use, or that belongs to something else."""


class CardError(UserError):
    """A card that is missing, broken or from another version."""


class ShardError(UserError):
    """Token shards that are not what their card says."""


class VocabularyMismatch(UserError):
    """A draft that does not speak its target's vocabulary."""


class DiskFull(UserError):
    """No space left while an artefact was written."""


class NonFiniteLoss(FastDraftError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class CheckpointError(FastDraftError):
    """No sound checkpoint where one must be."""


class JudgeError(FastDraftError):
    """Real speculative decoding disagrees with the one-pass evaluation."""
