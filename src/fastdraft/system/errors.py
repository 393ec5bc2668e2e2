"""The errors of FastDraft, one class for each kind of failure.

A message gives what was found, what was wanted, where, and, on a last line that starts with "do:", the remedy.
"""


class FastDraftError(Exception):
    """FastDraft failed."""

    exit_code = 1


class NonFiniteLoss(FastDraftError):
    """The loss became NaN or infinite, or exploded. The last checkpoint is kept."""


class ProofError(FastDraftError):
    """An export does not reproduce the outputs of its draft."""


class UnequalOutput(FastDraftError):
    """Greedy text with a draft differs from the target's own."""


class CheckpointError(FastDraftError):
    """No valid checkpoint exists where one is needed."""


class VerificationError(FastDraftError):
    """Real speculative decoding disagrees with the one-pass evaluation, or cannot be compared with it."""


class MainProcessFailed(FastDraftError):
    """The main process failed and reported why. The other processes raise this error, and end without a message.

    Their exit code is 0, so that a launcher reports the main process, and its exit code, as the failure.
    """

    exit_code = 0


class UserError(FastDraftError):
    """The user can fix it. It is printed without a traceback."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe has a wrong key, type or value."""


class TargetError(UserError):
    """A target cannot be opened or used."""


class CorpusError(UserError):
    """A source has no valid documents, or too few."""


class TaskError(UserError):
    """An evaluation task is unknown, or has no prompts."""


class RecordingError(UserError):
    """Recorded completions are missing, or come from another target."""


class ShapeError(UserError):
    """No shape of a draft fits its budget."""


class RunError(UserError):
    """A run folder is in use, or belongs to something else."""


class CardError(UserError):
    """A card is missing, broken or from another version."""


class ShardError(UserError):
    """Token shards do not match their card."""


class ServerError(UserError):
    """A server cannot be reached, or does not serve the target."""


class DeviceError(UserError):
    """The speed of a device is unknown."""


class DependencyError(UserError):
    """A required package is missing or too old."""


class MissingExtra(UserError):
    """An optional package is not installed."""


class ExportError(UserError):
    """A format, or the engine that reads it, does not support the draft."""


class BenchError(UserError):
    """An engine cannot time the pair with these options, or does not use the draft."""


class VocabularyMismatch(UserError):
    """The draft does not have its target's vocabulary."""


class RepairError(UserError):
    """The repaired draft cannot be written to the given folder."""


class PlayError(UserError):
    """The playground cannot use a prompt, a port or a pair."""


class OutOfMemory(UserError):
    """A training step does not fit into the memory of the device."""


class DiskFull(UserError):
    """No space is left on the disk."""


class Stopped(KeyboardInterrupt):
    """The command was asked to end by SIGTERM. The exit code is 0; the same command resumes later."""
