"""What is in a file, one reader per format; nothing is executed, nothing outside is followed."""

from __future__ import annotations

from pathlib import Path

from vitlet.apps.readers.contents import Contents
from vitlet.errors import UsageError


def read(path: Path) -> Contents:
    """Return what is in a file or bundle; the name's ending says which reader to use.

    Raises:
        UsageError: no reader for this ending.
        CorruptInputError: the file is damaged.
    """
    from vitlet.apps.readers import bundle_folder, tensors_file

    name = path.name.removesuffix(".unverified")
    if bundle_folder.is_bundle(path):
        return bundle_folder.read(path)
    if name.endswith((".mlpackage", ".mlmodel")):
        from vitlet.apps.readers import coreml_file

        return coreml_file.read(path)
    if name.endswith(".onnx"):
        from vitlet.apps.readers import onnx_file

        return onnx_file.read(path)
    if name.endswith((".so", ".dylib")):
        from vitlet.apps.readers import library_file

        return library_file.read(path)
    if name.endswith(tensors_file.SUFFIXES):
        return tensors_file.read(path)
    raise UsageError(
        f"cannot tell what {path} is: expected a bundle, .onnx, .mlpackage, .tvm.so, "
        ".safetensors or .pt"
    )


def is_checkpoint(path: Path) -> bool:
    """Tell by its ending whether a file holds weights and nothing else."""
    from vitlet.apps.readers.tensors_file import SUFFIXES

    return path.name.endswith(SUFFIXES)
