"""Runs a bundle: images, texts or arrays in, embeddings, logits or labels out; no torch.

session = vitlet.load("mobileclip_s0.vitlet")
session(["cat.jpg", "dog.jpg"])                # (2, 512) float32
session.predict("cat.jpg", topk=3)             # [[Prediction("a cat", 1, 0.98), ...]]
session.encode_text(["a photo of a cat"])      # (1, 512) float32
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import BundleError, UnsupportedError, UsageError, VitletError
from vitlet.runtime.batching import BatchSizes, run_batched
from vitlet.runtime.bundle import Bundle, open_bundle
from vitlet.runtime.engine import Arrays, Engine, check_feeds
from vitlet.runtime.manifest import Artifact, Manifest, Prompts, TensorSpec
from vitlet.runtime.safetensors import load_file
from vitlet.runtime.select import CHECKING, engine_name, open_engine, select

_CHUNK = 64  # images preprocessed at a time: bounds memory, not the batch


@dataclass(frozen=True)
class Prediction:
    """One guess: the class name, its number, and its probability in [0, 1]."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class SessionInfo:
    """What a session runs: model and graph, file, engine with version, threads, inputs, outputs.

    `kernels` says what computes the graph's operators of vitlet: "library" (our kernels),
    "functions" (their definitions in standard operators) or "none" (it has none).
    """

    model: str
    graph: str
    file: str
    precision: str
    preprocess: str
    engine: str
    engine_version: str
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: str = "none"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class _Loaded:
    engine: Engine
    artifact: Artifact | None
    sizes: BatchSizes


def load(
    path: str | os.PathLike[str],
    engine: str = "auto",
    *,
    threads: int = 1,
    graph: str | None = None,
    check: Literal["all", "used"] = "all",
    accelerate: bool = True,
) -> Session:
    """Open a bundle to run it.

    Args:
        path: a bundle folder. A bare `.onnx`, `.tvm.so` or `.mlpackage` is taken too; it has no
            preprocessing or labels, so only `Session.run` works on it, and no hash guards it.
        engine: "auto" (ONNX Runtime when the bundle has ONNX, else TVM), "onnxruntime" or "tvm".
            "coreml" executes the Core ML program with torch, on any system: to check its numbers,
            not at a phone's speed.
        threads: threads to compute with.
        graph: the graph that `session(images)` runs; by default "model", or "image" for CLIP.
        check: compare "all" files with their hashes, or only the ones "used".
        accelerate: let ONNX Runtime run operators of ours in vitlet's kernels, where these pass a
            test on this machine. `Session.info.kernels` says whether they run; so does a warning.

    Raises:
        BundleError: the bundle is damaged, changed or unsafe.
        UsageError: no such engine or graph in it.
        UnsupportedError: nothing in it runs on this machine.
        MissingDependencyError: the engine is not installed.
    """
    if check not in ("all", "used"):
        raise UsageError(f'check must be "all" or "used", got {check!r}')
    if threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    path = Path(path)
    if path.is_file() or path.suffix == ".mlpackage":
        return Session(
            None, _bare_engine(path, engine), graph or "model", threads, path, accelerate
        )
    bundle = open_bundle(path, hashes=check == "all")
    graph = graph or _main_graph(bundle.manifest)
    name, _ = select(bundle, graph, engine)
    return Session(bundle, name, graph, threads, bundle.path, accelerate)


class Session:
    """A bundle that is ready to run; made by `load`. Safe to use from several threads.

    Attributes:
        bundle: the open bundle; None for a bare file.
        manifest: its manifest; None for a bare file.
        engine: name of the engine in use.
        graph: the graph that images go through.
        threads: threads to compute with.
    """

    def __init__(
        self,
        bundle: Bundle | None,
        engine: str,
        graph: str,
        threads: int,
        path: Path,
        accelerate: bool = True,
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest if bundle else None
        self.engine = engine
        self.graph = graph
        self.threads = threads
        self._path = path
        self._accelerate = accelerate
        self._lock = threading.Lock()
        self._graphs: dict[str, _Loaded] = {}
        self._embeddings: NDArray[np.float32] | None = None
        self._loaded(graph)

    @property
    def info(self) -> SessionInfo:
        """What this session runs."""
        loaded = self._loaded(self.graph)
        artifact = loaded.artifact
        return SessionInfo(
            model=str(self.manifest.model.get("name")) if self.manifest else self._path.name,
            graph=self.graph,
            file=artifact.file if artifact else self._path.name,
            precision=artifact.precision if artifact else "unknown",
            preprocess=artifact.preprocess if artifact else "none",
            engine=loaded.engine.name,
            engine_version=loaded.engine.version,
            threads=self.threads,
            inputs=artifact.inputs if artifact else loaded.engine.inputs,
            outputs=artifact.outputs if artifact else loaded.engine.outputs,
            kernels=getattr(loaded.engine, "kernels", "none"),
        )

    def run(self, feeds: Arrays, graph: str | None = None) -> Arrays:
        """Run a graph on arrays of any number of rows, split and padded to its batch sizes.

        Args:
            feeds: input name -> array, of the dtype and (but for the rows) shape of the input.
            graph: by default the session's own.

        Returns:
            output name -> array, a row per row given.

        Raises:
            ShapeError: a name, dtype or shape is not the one asked for.
        """
        loaded = self._loaded(graph or self.graph)
        check_feeds(feeds, loaded.engine.inputs, skip_batch=True)
        return run_batched(loaded.engine.run, loaded.sizes, feeds)

    def __call__(self, images: Any) -> NDArray[np.float32]:
        """Compute logits (B, classes) or unit-length embeddings (B, D) of images.

        A Core ML classifier ends in a softmax; its logits are the logarithms of what it gives.

        Args:
            images: one or several of path, Pillow image or uint8 (H, W, C) array, preprocessed as
                the manifest says; or a float32 (B, C, H, W) array, taken as already preprocessed.

        Returns:
            float32, one row per image.

        Raises:
            ImageError: an image cannot be read.
            UsageError: the session has no images to take: a bare file or a text graph.
        """
        rows = [self._run_images(part) for part in self._parts(images)]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def predict(self, images: Any, topk: int = 5) -> list[list[Prediction]]:
        """Classify images: softmax of the logits, or of the scaled cosine with the prompts.

        Args:
            images: as for calling the session.
            topk: guesses per image, best first; at most one per class.

        Raises:
            UsageError: a CLIP bundle without prompts, or `topk` below 1.
        """
        if topk < 1:
            raise UsageError(f"topk must be at least 1, got {topk}")
        manifest = self._need_manifest("predict")
        prompts = self._prompts(manifest) if manifest.model.get("kind") == "clip" else None
        values = self(images).astype(np.float64)
        names = manifest.labels
        if prompts:
            unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
            values = prompts.logit_scale * (unit @ self._prompt_embeddings(prompts).T)
            names = prompts.classes
        if not np.isfinite(values).all():
            raise VitletError(
                f"{self.info.file} gave values that are not finite (NaN or infinity): "
                "run `vitlet verify` on the bundle"
            )
        scores = np.exp(values - values.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :topk]
        return [
            [
                Prediction(names[i] if names and i < len(names) else str(i), int(i), float(row[i]))
                for i in best
            ]
            for row, best in zip(scores, order, strict=True)
        ]

    def encode_text(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Compute unit-length embeddings (n, D) of texts through the bundle's text graph.

        Raises:
            UsageError: the bundle has no text graph.
        """
        self._need_manifest("encode_text")
        loaded = self._loaded("text")
        from vitlet.data.tokenizer import tokenize

        spec = loaded.engine.inputs[0]
        tokens = np.asarray(tokenize(texts)).astype(spec.dtype)
        return _only(self.run({spec.name: tokens}, "text"))

    def _parts(self, images: Any) -> list[Any]:
        if isinstance(images, list | tuple):
            if not images:
                raise UsageError("expected at least one image, got none")
            return [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
        if isinstance(images, np.ndarray) and images.ndim == 4 and len(images) > _CHUNK:
            return [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
        return [images]

    def _run_images(self, images: Any) -> NDArray[np.float32]:
        manifest = self._need_manifest("session(images)")
        loaded = self._loaded(self.graph)
        spec = loaded.engine.inputs[0]
        artifact = loaded.artifact
        place = artifact.preprocess if artifact is not None else "none"
        if self.graph not in ("model", "image"):
            raise UsageError(f"this session runs the {self.graph} graph: it takes no images")
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            if place != "none":
                raise UsageError(
                    f"{self.info.file} preprocesses by itself and takes uint8 images, "
                    f"not {images.dtype} arrays"
                )
            half = images.dtype == np.float32 and spec.dtype == "float16"
            array = images.astype(np.float16) if half else images
        elif place != "none":
            from vitlet.data.preprocess import resize_crop

            array = resize_crop(images, manifest.preprocess)
        else:
            from vitlet.data.preprocess import preprocess

            array = preprocess(images, manifest.preprocess).astype(spec.dtype, copy=False)
        values = _only(self.run({spec.name: array}))
        if artifact is not None and artifact.details.get("class_labels"):  # Core ML only
            return np.log(np.maximum(values, np.finfo(np.float32).tiny))
        return values

    def _prompts(self, manifest: Manifest) -> Prompts:
        if manifest.prompts is None:
            raise UsageError(
                f"{self._path.name} has no class prompts: export it with --prompts "
                '"a dog,a cat", or compare session(images) with session.encode_text(texts)'
            )
        return manifest.prompts

    def _prompt_embeddings(self, prompts: Prompts) -> NDArray[np.float32]:
        with self._lock:
            if self._embeddings is None:
                assert self.bundle is not None  # a manifest comes from a bundle
                self.bundle.check([prompts.file])
                table = load_file(self.bundle.file(prompts.file)).get("embeddings")
                if table is None or table.ndim != 2 or len(table) != len(prompts.classes):
                    raise BundleError(
                        f"{prompts.file} has no embeddings for {len(prompts.classes)} classes"
                    )
                self._embeddings = table.astype(np.float32)
            return self._embeddings

    def _need_manifest(self, what: str) -> Manifest:
        if self.manifest is None:
            raise UsageError(
                f"{self._path.name} is a bare file without preprocessing or labels, so {what} "
                "cannot work: load the bundle, or use session.run with arrays"
            )
        return self.manifest

    def _loaded(self, graph: str) -> _Loaded:
        """Return a graph's engine; the text tower is loaded when it is first used."""
        with self._lock:
            if graph not in self._graphs:
                self._graphs[graph] = self._load(graph)
            return self._graphs[graph]

    def _load(self, graph: str) -> _Loaded:
        if self.bundle is None:
            if graph != self.graph:
                raise UsageError(f"{self._path.name} is a bare file: it has no graph {graph!r}")
            engine = open_engine(self.engine, self._path, None, self.threads, self._accelerate)
            return _Loaded(engine, None, BatchSizes.of(engine.inputs))
        name, artifact = select(self.bundle, graph, self.engine)
        # Again, even when `load` checked everything: the file may have changed since.
        self.bundle.check([artifact.file])
        path = self.bundle.file(artifact.file)
        engine = open_engine(name, path, artifact, self.threads, self._accelerate)
        for ours, theirs in ((artifact.inputs, engine.inputs), (artifact.outputs, engine.outputs)):
            if [(s.name, s.dtype, len(s.shape)) for s in ours] != [
                (s.name, s.dtype, len(s.shape)) for s in theirs
            ]:
                raise BundleError(f"{artifact.file} takes or gives {theirs}, its entry says {ours}")
        return _Loaded(engine, artifact, BatchSizes.of(artifact.inputs, artifact))


def _main_graph(manifest: Manifest) -> str:
    return "image" if manifest.model.get("kind") == "clip" else "model"


def _only(outputs: Arrays) -> NDArray[np.float32]:
    return next(iter(outputs.values())).astype(np.float32, copy=False)


def _bare_engine(path: Path, engine: str) -> str:
    """Tell from a bare file's ending which engine runs it."""
    engine = engine_name(engine)
    kinds = {".onnx": "onnxruntime", ".so": "tvm", ".mlpackage": CHECKING, ".mlmodel": CHECKING}
    if path.suffix not in kinds:
        raise UsageError(f"{path} is neither a bundle folder nor an .onnx, .tvm.so or .mlpackage")
    if engine == "auto" and kinds[path.suffix] == CHECKING:
        raise UnsupportedError(
            f'{path} is a Core ML model: to check its numbers here, ask for the engine "{CHECKING}"'
        )
    if engine not in ("auto", kinds[path.suffix]):
        raise UsageError(f"{path} runs in {kinds[path.suffix]}, not in {engine}")
    return kinds[path.suffix]
