"""Every exception vitlet raises on purpose.

A message says what was expected, what came, and what to do. The command line prints it as one line
and leaves with `exit_code`; no traceback.

    VitletError                       1   anything below
    ├── UsageError (ValueError)       2   a wrong argument, name or combination
    │   └── ShapeError                2   an array or tensor of the wrong shape or dtype
    ├── UnsupportedError              3   an operator or argument that a target cannot take
    ├── VerificationError             4   the artefact was checked and computes something else
    ├── MissingDependencyError        5   an optional package is not installed (ImportError)
    ├── CorruptInputError (ValueError) 6  a damaged or untrusted file
    │   ├── CheckpointError           6   a checkpoint whose tensors do not fit the model
    │   ├── BundleError               6   a bundle that is changed, incomplete or unsafe
    │   └── ImageError                6   an image that cannot be read
    ├── StorageError (OSError)        1   the disk is full or a folder cannot be written
    ├── TrainingError               1   a training run that cannot go on: its loss is not finite
    └── DeadlineError (TimeoutError)  7   a deadline passed or a worker was lost
"""

__all__ = [
    "BundleError",
    "CheckpointError",
    "CorruptInputError",
    "DeadlineError",
    "ImageError",
    "MissingDependencyError",
    "ShapeError",
    "StorageError",
    "TrainingError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
    "VitletError",
]


class VitletError(Exception):
    """Base of every error that vitlet raises on purpose."""

    exit_code = 1


class UsageError(VitletError, ValueError):
    """An argument, name or combination of them that makes no sense here."""

    exit_code = 2


class ShapeError(UsageError):
    """An array or tensor whose shape or dtype is not the one asked for."""


class UnsupportedError(VitletError):
    """An operator or argument that the chosen target cannot take."""

    exit_code = 3


class VerificationError(VitletError):
    """The compiled artefact was run and does not compute the source model's function."""

    exit_code = 4


class MissingDependencyError(VitletError, ImportError):
    """An optional package is needed and not installed."""

    exit_code = 5


class CorruptInputError(VitletError, ValueError):
    """A file that is damaged, truncated, or not to be trusted."""

    exit_code = 6


class CheckpointError(CorruptInputError):
    """A checkpoint that cannot be read or whose tensors do not fit the model."""


class BundleError(CorruptInputError):
    """A bundle that is incomplete, was changed after it was made, or is unsafe to open."""


class ImageError(CorruptInputError):
    """An image file that cannot be read, or is too large to be read safely."""


class StorageError(VitletError, OSError):
    """A file or folder could not be written; nothing half-written is left behind."""


class TrainingError(VitletError):
    """A training run that cannot go on; its last good checkpoint is kept."""


class DeadlineError(VitletError, TimeoutError):
    """A deadline passed, or the worker that held the answer was lost."""

    exit_code = 7
