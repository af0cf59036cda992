"""`manifest.json`: what a bundle holds, as plain data.

```json
{"schema": 1, "vitlet": "0.1.0",
 "model": {"name": "mobileclip_s0", "family": "mobileclip", "kind": "clip", "config": {},
           "licence": "...", "source": "...", "checkpoint_sha256": null, "params": 53792065},
 "preprocess": {"size": [256, 256], "...": "see vitlet.data.spec.Preprocess"},
 "labels": null,
 "prompts": {"classes": ["a dog"], "templates": ["a photo of {}."], "file": "prompts.safetensors",
             "logit_scale": 100.0},
 "tokenizer": "clip-bpe-77",
 "artifacts": [
   {"target": "onnx", "graph": "image", "file": "image.onnx", "precision": "fp32",
    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 256, 256]}],
    "outputs": [{"name": "embedding", "dtype": "float32", "shape": ["batch", 512]}],
    "preprocess": "none", "custom_ops": [], "toolchain": {"onnx": "1.23.2"},
    "details": {"opset": 20}, "verification": {"status": "passed", "cosine": 0.99999}}],
 "golden": {"image": "golden.safetensors"},
 "files": {"image.onnx": {"sha256": "...", "size": 123}}}
```
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vitlet.data.spec import Preprocess
from vitlet.errors import BundleError, UsageError

SCHEMA = 1
MANIFEST = "manifest.json"

Target = Literal["onnx", "coreml", "tvm"]
TARGETS: tuple[Target, ...] = ("onnx", "coreml", "tvm")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, dtype as numpy spells it, shape with a name for a free size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Artifact:
    """One compiled graph.

    Attributes:
        target: "onnx", "coreml" or "tvm".
        graph: "model" for a classifier; "image" or "text" for a CLIP-style model.
        file: path inside the bundle; a folder for an `.mlpackage`.
        precision: "fp32", "fp16", "int8" (linear weights), "palette4" and so on.
        inputs: what the artefact takes.
        outputs: what it gives.
        preprocess: "none" (a normalized float tensor goes in), "in-graph" (uint8 (B, H, W, C) goes
            in) or "image-type" (Core ML image input with scale and bias).
        custom_ops: names in the domain `ai.vitlet` that the graph uses.
        toolchain: package name -> version, of what made it.
        details: what only this target has: opset, deployment target, triple, compressed tensors.
        verification: the figures of the last verification, {"status": "passed" | "not run" | ...}.
    """

    target: Target
    graph: str
    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Literal["none", "in-graph", "image-type"] = "none"
    custom_ops: tuple[str, ...] = ()
    toolchain: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=lambda: {"status": "not run"})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Artifact:
        """Read back one entry of "artifacts"."""
        specs = {
            side: tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in data[side])
            for side in ("inputs", "outputs")
        }
        return cls(**{**data, **specs, "custom_ops": tuple(data.get("custom_ops", ()))})


@dataclass(frozen=True)
class Prompts:
    """Class names with their text embeddings, so that a device needs the image tower alone.

    Attributes:
        classes: one name per class.
        templates: prompt templates with "{}" for the name; their embeddings are averaged.
        file: safetensors file in the bundle with "embeddings", (classes, dim) float32, unit length.
        logit_scale: what the cosine is multiplied by before the softmax.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    file: str
    logit_scale: float


@dataclass(frozen=True)
class FileEntry:
    """Checksum and size, in bytes, of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """The whole of `manifest.json`; `model` and `golden` are as in the module's example."""

    vitlet: str
    model: dict[str, Any]
    preprocess: Preprocess
    artifacts: tuple[Artifact, ...]
    files: dict[str, FileEntry]
    labels: tuple[str, ...] | None = None
    prompts: Prompts | None = None
    tokenizer: str | None = None
    golden: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def artifact(self, target: str, graph: str) -> Artifact | None:
        """Return the entry for a target and graph, or None."""
        for entry in self.artifacts:
            if entry.target == target and entry.graph == graph:
                return entry
        return None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {**asdict(self), "preprocess": self.preprocess.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Read back what `to_json` wrote.

        Raises:
            BundleError: not a manifest, of another schema, or with missing or unknown fields.
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise BundleError(f"{MANIFEST} is not a vitlet manifest: it has no schema number")
        if data["schema"] != SCHEMA:
            raise BundleError(
                f"{MANIFEST} has schema {data['schema']!r}, this vitlet reads {SCHEMA}: "
                "update vitlet or export again"
            )
        try:
            prompts = data.get("prompts")
            labels = data.get("labels")
            fields = {
                **data,
                "preprocess": Preprocess.from_json(data["preprocess"]),
                "artifacts": tuple(Artifact.from_json(a) for a in data["artifacts"]),
                "files": {name: FileEntry(**entry) for name, entry in data["files"].items()},
                "labels": None if labels is None else tuple(labels),
                "prompts": prompts
                and Prompts(
                    tuple(prompts["classes"]),
                    tuple(prompts["templates"]),
                    prompts["file"],
                    float(prompts["logit_scale"]),
                ),
            }
            return cls(**fields)
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise BundleError(f"{MANIFEST} does not follow schema {SCHEMA}: {error}") from None
