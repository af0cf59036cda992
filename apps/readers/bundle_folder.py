"""Reads a bundle: its manifest, checked against its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitlet.apps.readers.contents import Contents, folder_size
from vitlet.runtime.bundle import open_bundle
from vitlet.runtime.manifest import MANIFEST, Artifact


def is_bundle(path: Path) -> bool:
    """Tell whether a folder claims to be a bundle."""
    return path.is_dir() and ((path / MANIFEST).exists() or path.suffix == ".vitlet")


def read(path: Path) -> Contents:
    """Return what the manifest says; every file is compared with its hash first.

    Raises:
        BundleError: the bundle is damaged, changed or unsafe.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    contents = Contents(path, "vitlet bundle", folder_size(path))
    labels, prompts = manifest.labels, manifest.prompts
    contents.facts = {
        "model": manifest.model.get("name"),
        "licence": manifest.model.get("licence"),
        "checkpoint": manifest.model.get("checkpoint_sha256") or "none",
        "made by": f"vitlet {manifest.vitlet}",
        "input": _input(manifest.preprocess),
        "labels": f"{len(labels)} ({_some(labels)})" if labels else "none",
        "prompts": f"{len(prompts.classes)} ({_some(prompts.classes)})" if prompts else "none",
        "files": f"{len(manifest.files)}, all as the manifest says",
    }
    for artifact in manifest.artifacts:
        if "accelerate_table" in artifact.details:
            contents.facts[f"accelerated {artifact.graph}"] = _accelerated(artifact)
        contents.parts.append(_part(artifact, folder_size(bundle.file(artifact.file))))
        status = artifact.verification.get("status")
        if status == "not run":
            contents.note(f"{artifact.file} was never verified: run `vitlet verify`")
        elif status != "passed":
            contents.problem(f"{artifact.file}: verification {status}")
    return contents


def _part(artifact: Artifact, size: int) -> dict[str, Any]:
    return {
        "file": artifact.file,
        "target": artifact.target,
        "graph": artifact.graph,
        "precision": artifact.precision,
        "bytes": size,
        "preprocess": artifact.preprocess,
        "inputs": [[s.name, s.dtype, list(s.shape)] for s in artifact.inputs],
        "outputs": [[s.name, s.dtype, list(s.shape)] for s in artifact.outputs],
        "custom_ops": list(artifact.custom_ops),
        "toolchain": artifact.toolchain,
        "details": artifact.details,
        "verification": artifact.verification,
    }


def _accelerated(artifact: Artifact) -> str:
    """Say how many layers call our kernels, and where their times were measured."""
    table = artifact.details["accelerate_table"]
    counts = [
        (way, number)
        for ways in table["chosen"].get(artifact.graph, {}).values()
        for way, number in ways.items()
    ]
    ours = sum(number for way, number in counts if way != "plain")
    place = f"{table.get('processor', 'a processor')}, {table.get('isa', 'any instructions')}"
    if ours == 0:
        return f"no layer: none is faster in vitlet's kernels ({place})"
    return f"{ours} of {sum(number for _, number in counts)} layers, as measured on {place}"


def _input(spec: Any) -> str:
    height, width = spec.size
    resize = f"shortest side to {spec.resize_to}, centre crop" if spec.resize_to else "squashed"
    return f"{spec.mode} {height}x{width}, {resize}, {spec.interpolation}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
