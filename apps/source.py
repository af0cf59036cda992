"""What a user means by MODEL: a zoo name, a checkpoint file, or a function of their own."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitlet.apps.hints import existing
from vitlet.apps.readers.tensors_file import SUFFIXES
from vitlet.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_path(name: str) -> bool:
    """Tell whether a name is meant as a file or folder; if it must be one, that it exists.

    Raises:
        UsageError: it looks like a path and nothing is there.
    """
    path = Path(name)
    if path.exists() and not _is_zoo_name(name):
        return True
    if "/" in name or name.endswith((*SUFFIXES, ".vitlet", ".onnx", ".mlpackage", ".so")):
        existing(path, "the file")
        return True
    return False


def is_checkpoint(name: str) -> bool:
    """Tell whether a name is meant as a checkpoint file."""
    return is_path(name) and name.endswith(SUFFIXES)


def is_factory(name: str) -> bool:
    """Tell whether a name is "pkg.module:function"."""
    return _FACTORY.fullmatch(name) is not None


def call_factory(name: str) -> nn.Module:
    """Import "pkg.module:function", looked for in the current folder too, and call it.

    Raises:
        UsageError: no such module or function, or what it gives is no torch module.
    """
    from torch import nn

    module_name, function_name = name.split(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise UsageError(
            f"there is no module {module_name!r}, neither installed nor in {here}"
        ) from None
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"the module {module_name} has no function {function_name!r}")
    made = function()
    if not isinstance(made, nn.Module):
        raise UsageError(f"{name}() must give a torch.nn.Module, it gave {type(made).__name__}")
    return made.eval()


def fitting_model(path: Path) -> str | None:
    """Return the zoo model that a checkpoint fits: every tensor that the model wants is in it.

    Raises:
        CheckpointError: the file is damaged or holds more than tensors.
        MissingDependencyError: torch is not installed.
    """
    from vitlet._extras import require

    require("torch", extra="torch", why="compare a checkpoint with the models")
    from vitlet.checkpoint import load_state_dict
    from vitlet.models.nearest import nearest

    state = load_state_dict(path)
    name, shared, wanted = nearest(state)
    return name if shared == wanted else None


def named_model(path: Path) -> str:
    """Return the zoo model that a checkpoint fits.

    Raises:
        UsageError: it fits none exactly.
    """
    name = fitting_model(path)
    if name is None:
        raise UsageError(
            f"{path} fits no model of the zoo as it is: name the one it is meant for, such as "
            f"`vitlet export casvit_xs --weights {path}`"
        )
    return name


def module_for(name: str) -> str | nn.Module:
    """Return what `vitlet.verify` takes for a name: the name of a zoo model, or a module."""
    if is_factory(name):
        return call_factory(name)
    from vitlet.models.registry import model_info

    return model_info(name).name


def _is_zoo_name(name: str) -> bool:
    from vitlet.models.registry import list_models

    return name in list_models()
