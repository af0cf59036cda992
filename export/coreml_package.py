"""Writes an `.mlpackage` so that the same model gives the same bytes."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://vitlet.invalid/mlpackage")
_ITEMS = (
    ("com.apple.CoreML/model.mlmodel", "model.mlmodel", "CoreML Model Specification"),
    ("com.apple.CoreML/weights", "weights", "CoreML Model Weights"),
)


def finish_package(model: Any, path: Path) -> None:
    """Write a coremltools MLModel as the package `path`.

    coremltools numbers the parts of a package with random UUIDs and lets protobuf order its maps
    as it likes. Here the UUIDs are derived from the parts' paths and the maps are sorted.

    Args:
        model: of type mlprogram, with its weights on disk.
        path: the folder to make.
    """
    data = path / "Data" / "com.apple.CoreML"
    data.mkdir(parents=True)
    specification = model.get_spec().SerializeToString(deterministic=True)
    (data / "model.mlmodel").write_bytes(specification)
    (data / "weights").mkdir()
    for file in sorted(Path(model.weights_dir).iterdir()):
        # Not copytree: its error is a list of errors, this one says what is wrong.
        shutil.copyfile(file, data / "weights" / file.name)
    entries = {
        str(uuid.uuid5(_NAMESPACE, item)): {
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": item,
        }
        for item, name, description in _ITEMS
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": str(uuid.uuid5(_NAMESPACE, _ITEMS[0][0])),
    }
    text = json.dumps(manifest, indent=4, sort_keys=True)
    (path / "Manifest.json").write_text(text, encoding="utf-8")
