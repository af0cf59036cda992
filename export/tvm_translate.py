"""From a traced program to TVM's Relax language, with the operators of vitlet among TVM's own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vitlet._quiet import others_silenced
from vitlet.errors import UnsupportedError, VitletError

if TYPE_CHECKING:
    from vitlet.export.trace import Graph

Convert = Callable[[Any], Mapping[str, Any]]


def translate(graph: Graph, batch: Any, convert: Convert) -> Any:
    """Return the graph as a Relax module with its weights as constants.

    Args:
        graph: from `vitlet.export.trace.graphs`.
        batch: of the program, as `vitlet.export.trace.trace` takes it.
        convert: returns what translates vitlet's operators in a program; see
            `vitlet.export.tvm_ops.convert.converters`.

    Raises:
        UnsupportedError: an operator that TVM does not know, all of them named at once.
    """
    import torch
    from tvm.relax.frontend.torch import from_exported_program
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    from vitlet.export.trace import trace

    program = trace(graph, batch)
    with others_silenced(), torch.no_grad():
        program = program.run_decompositions()
        ours = dict(convert(program))
        known = {**ExportedProgramImporter().create_convert_map(), **ours}
        unknown: dict[str, list[str]] = {}
        for node in program.graph.nodes:
            if node.op == "call_function" and node.target.__name__ not in known:
                unknown.setdefault(str(node.target), []).append(_module_path(node))
        if unknown:
            raise UnsupportedError(
                f"TVM {importlib.metadata.version('apache-tvm')} cannot take "
                + "; ".join(
                    f"{name} (in {', '.join(sorted(set(paths))[:3])})"
                    for name, paths in unknown.items()
                )
                + ": replace these operators, or use the ONNX target"
            )
        try:
            return from_exported_program(
                program,
                keep_params_as_input=False,
                unwrap_unit_return_tuple=True,
                run_ep_decomposition=False,
                custom_convert_map=ours,
            )
        except VitletError:
            raise
        except Exception as error:  # the translator asserts and raises builtins of all kinds
            raise UnsupportedError(
                f"TVM cannot translate graph {graph.name!r}: {last_line(error)}"
            ) from error


def _module_path(node: Any) -> str:
    """Return where in the model an operator comes from, such as "visual.blocks.0.attn"."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if entry[0]]
    return str(paths[-1]) if paths else "the model itself"


def last_line(error: Exception) -> str:
    """Return the end of an error of TVM's, which is what it says of the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
