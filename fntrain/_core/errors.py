"""The errors of the library. Every message names the argument in backticks, says what was expected and what came."""


class ConfigError(ValueError):
    """An argument, or a combination of arguments, that cannot work: raised before anything runs."""


class ArgumentError(ConfigError, TypeError):
    """A call that does not fit the function: an argument it has not, or lacks, or too many of them."""


class ConsumedStateError(ConfigError, RuntimeError):
    """A TrainState whose buffers were donated to a step was used again."""


class DataError(ValueError):
    """A batch or data set that does not fit: wrong length, shape, dtype, structure, or nothing at all."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, found or read."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint holds another tree than the one asked for; the message is the table of differences."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint's content is not what was written: a digest disagrees, or a part is missing."""


class RunLockedError(CheckpointError):
    """Another process is writing to the same run directory."""


class RunMismatchError(ConfigError, CheckpointMismatchError):
    """A run directory holds the run of another task or other data than the call describes."""


class NonFiniteError(FloatingPointError):
    """A loss, gradient or parameter became NaN or infinite."""
