"""Every way to fail, one class each.

FastDraftError                 something of ours went wrong; exit code 1
├── UserError                  the user can fix it; printed without a traceback, exit code 2
│   ├── RecipeError            a recipe's key, type or value
│   ├── TargetError            a target that cannot be opened or used
│   ├── CorpusError            a source with nothing, or too little that is sound, in it
│   ├── TaskError              an evaluation task that is unknown, or gives no prompt
│   ├── RecordingError         recorded completions that are not there, or of another target
│   ├── ShapeError             a draft that cannot be shaped within its budget
│   ├── RunError               a run folder in use, or that belongs to something else
│   ├── CardError              a card that is missing, broken or from another version
│   ├── ShardError             token shards that are not what their card says
│   ├── ServerError            a server that cannot be reached, or serves something else than the target
│   ├── DeviceError            a device whose speed is not known
│   ├── DependencyError        a required package that is missing or older than the lower bound
│   ├── MissingExtra           an optional package that is not installed
│   ├── ExportError            a draft that a format, or the engine that reads it, has no place for
│   ├── BenchError             a pair that an engine cannot be timed with as asked, or that it does not use
│   ├── VocabularyMismatch     a draft that does not speak its target's vocabulary
│   ├── RepairError            a repaired draft that has no place to go
│   ├── OutOfMemory            a step of training that does not fit the device
│   └── DiskFull               no space left while an artefact was written
├── NonFiniteLoss              the loss became NaN or infinite, or exploded; the last good checkpoint is kept
├── ProofError                 an export that does not say what its draft says
├── UnequalOutput              greedy text with a draft that is not the target's own
├── CheckpointError            no sound checkpoint where one must be
├── MainProcessFailed          raised in the other processes of a command, where the main one failed and says why
└── VerificationError                 real speculative decoding disagrees with the one-pass evaluation

Stopped, a KeyboardInterrupt, is no failure: the command was asked to end (SIGTERM), and ends with exit code 0.

A message says what was found, what was wanted, where, and what to do next (a last line that starts with "do:").
"""


class FastDraftError(Exception):
    """Something of ours went wrong."""

    exit_code = 1


class UserError(FastDraftError):
    """Something that the user can fix; printed without a traceback."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe's key, type or value."""


class TargetError(UserError):
    """A target that cannot be opened or used."""


class CorpusError(UserError):
    """A source with nothing, or too little that is sound, in it."""


class TaskError(UserError):
    """An evaluation task that is unknown, or gives no prompt."""


class RecordingError(UserError):
    """Recorded completions that are not there, or of another target."""


class ShapeError(UserError):
    """A draft that cannot be shaped within its budget."""


class RunError(UserError):
    """A run folder in use, or that belongs to something else."""


class CardError(UserError):
    """A card that is missing, broken or from another version."""


class ShardError(UserError):
    """Token shards that are not what their card says."""


class ServerError(UserError):
    """A server that cannot be reached, or serves something else than the target."""


class DeviceError(UserError):
    """A device whose speed is not known."""


class DependencyError(UserError):
    """A required package that is missing or older than the lower bound."""


class MissingExtra(UserError):
    """An optional package that is not installed."""


class ExportError(UserError):
    """A draft that a format, or the engine that reads it, has no place for."""


class BenchError(UserError):
    """A pair that an engine cannot be timed with as asked, or that it does not use."""


class VocabularyMismatch(UserError):
    """A draft that does not speak its target's vocabulary."""


class RepairError(UserError):
    """A repaired draft that has no place to go."""


class PlayError(UserError):
    """What the playground cannot do: a prompt, a port, a pair."""


class OutOfMemory(UserError):
    """A step of training that does not fit the device."""


class DiskFull(UserError):
    """No space left while an artefact was written."""


class NonFiniteLoss(FastDraftError):
    """The loss became NaN or infinite, or exploded; the last good checkpoint is kept."""


class ProofError(FastDraftError):
    """An export that does not say what its draft says."""


class UnequalOutput(FastDraftError):
    """Greedy text with a draft that is not the target's own."""


class CheckpointError(FastDraftError):
    """No sound checkpoint where one must be."""


class MainProcessFailed(FastDraftError):
    """The main process of a command failed and says why; raised in the others, which end without a word.

    A launcher then names the main process, and its exit code, as the one that failed.
    """

    exit_code = 0


class VerificationError(FastDraftError):
    """Real speculative decoding disagrees with the one-pass evaluation."""


class Stopped(KeyboardInterrupt):
    """The command was asked to end (SIGTERM); the same command goes on later."""
