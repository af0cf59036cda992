"""Optional packages, imported where they are needed and named when they are not there."""

import importlib
from types import ModuleType

from vitlet.errors import MissingDependencyError


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: the name to import, such as "onnxruntime".
        extra: the vitlet extra that brings it, such as "runtime".
        why: what it is needed for, to complete "X is needed to ...".

    Raises:
        MissingDependencyError: it is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingDependencyError(
            f'{module.split(".")[0]} is needed to {why}: pip install "vitlet[{extra}]"'
        ) from None
