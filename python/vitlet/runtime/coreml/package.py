"""Opens a `.mlpackage`: what it says of its inputs and outputs, and one function as a MIL program.

Operations and sizes are looked at before coremltools builds the program: see
`vitlet.runtime.coreml.sizes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlet._extras import require
from vitlet.errors import CorruptInputError, UnsupportedError, UsageError
from vitlet.runtime.coreml.sizes import Sizes
from vitlet.runtime.coreml.table import REFUSED, kernels

# The file's own spelling of operations that the reader renames or unpacks.
_READ = ("const", "write_state")


@dataclass(frozen=True)
class Package:
    """One function of a package.

    Attributes:
        name: the function's.
        functions: names of all functions.
        specification: version of the file format.
        inputs: feature descriptions (protobuf) of the inputs.
        outputs: of the outputs.
        program: the MIL function, with weights.
    """

    name: str
    functions: tuple[str, ...]
    specification: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    program: Any


def read_package(path: Path, function: str | None, limit: int) -> Package:
    """Read one function of a package.

    Args:
        path: the `.mlpackage` folder.
        function: its name; None takes the default one.
        limit: the largest value that may be made, in bytes.

    Raises:
        UsageError: there is no such file or function.
        CorruptInputError: it is no sound package, or asks for more than `limit`.
        UnsupportedError: it is a neural network, or has operations that are not known here; all
            of them are named.
        MissingDependencyError: coremltools or torch is not installed.
    """
    from vitlet.runtime.coreml.quiet import quiet_coremltools

    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    with quiet_coremltools():
        require("torch", extra="coreml", why="execute a Core ML program")
        ct: Any = require("coremltools", extra="coreml", why="read a Core ML program")
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            model = ct.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
        except Exception as error:  # the reader raises anything, from C++ down to AssertionError
            raise _damaged(path, error) from error
        kind = spec.WhichOneof("Type")
        if kind != "mlProgram":
            raise UnsupportedError(
                f"{path} holds a {kind or 'nothing'}, not an ML program: convert it again with "
                'convert_to="mlprogram"'
            )
        names = tuple(sorted(spec.mlProgram.functions))
        name = function or spec.description.defaultFunctionName or "main"
        if name not in names:
            raise UsageError(
                f"{path.name} has no function {name!r}; it has {', '.join(names) or 'none'}"
            )
        for other in names:
            if other != name:
                del spec.mlProgram.functions[other]
        _check(path, spec.mlProgram.functions[name], limit)
        try:
            program = load(
                spec,
                specification_version=spec.specificationVersion,
                file_weights_dir=model.weights_dir,
            ).functions[name]
        except Exception as error:
            raise _damaged(path, error) from error
    described = next((f for f in spec.description.functions if f.name == name), spec.description)
    return Package(
        name,
        names,
        int(spec.specificationVersion),
        tuple(described.input),
        tuple(described.output),
        program,
    )


def _damaged(path: Path, error: Exception) -> CorruptInputError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CorruptInputError(f"{path} is not a sound Core ML package: {first}")


def _check(path: Path, function: Any, limit: int) -> None:
    block = function.block_specializations.get(function.opset)
    if block is None:
        raise CorruptInputError(f"{path} has no program for its own opset {function.opset!r}")
    known = kernels()
    unknown: dict[str, list[str]] = {}
    sizes = Sizes(path, limit)
    for operation, where in _operations(block, "main block"):
        output = operation.outputs[0].name if operation.outputs else "?"
        if operation.type not in known and operation.type not in _READ:
            unknown.setdefault(operation.type, []).append(f"{output} ({where})")
        sizes.look(operation)
    if unknown:
        listed = "; ".join(
            f"{kind} at {', '.join(at[:3])}{f' and {len(at) - 3} more' if len(at) > 3 else ''}"
            + (f": {REFUSED[kind]}" if kind in REFUSED else "")
            for kind, at in sorted(unknown.items())
        )
        raise UnsupportedError(f"{path.name} has operations that vitlet cannot execute: {listed}")


def check_sizes(path: Path, program: Any, limit: int) -> None:
    """Look at every function of a program, whatever its operations are.

    Args:
        path: the package, for messages.
        program: the MIL program as protobuf.
        limit: the largest value that may be made, in bytes.

    Raises:
        CorruptInputError: it asks for more than `limit`.
    """
    for function in program.functions.values():
        for block in function.block_specializations.values():
            sizes = Sizes(path, limit)
            for operation, _ in _operations(block, "main block"):
                sizes.look(operation)


def _operations(block: Any, where: str) -> Iterator[tuple[Any, str]]:
    for operation in block.operations:
        yield operation, where
        name = operation.outputs[0].name if operation.outputs else operation.type
        for number, nested in enumerate(operation.blocks):
            yield from _operations(nested, f"block {number} of {name}")
