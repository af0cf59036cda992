"""`evaluate`: a plan's bundles, run by ONNX Runtime on pictures whose classes are known.

Sizes and latencies are given for each device and in total, apart: "34 times smaller" is said of one
device, and all devices together may hold more than a third of the full model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlet._extras import require
from vitlet.data.labelled import LabelledImages
from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.ops.resize_normalize import resize_normalize
from vitlet.partition.plan import Plan, load_plan
from vitlet.partition.submodels.judge import Case, Judgement, judge
from vitlet.runtime.bundle import Bundle
from vitlet.runtime.ort import OrtEngine, session_options

if TYPE_CHECKING:
    from torch import nn

_PORTION = 200


@dataclass(frozen=True)
class OnDevice:
    """What one device carries and how fast it is, measured on this machine.

    Attributes:
        name: of the device.
        slots: that it is the first to run.
        bytes: of those slots' compiled files; `stored` counts replicas too.
        stored: of all compiled files that it holds.
        params: of the slots that it runs.
        macs: of the slots that it runs, one image.
        latency: seconds of one image through the slots that it runs, one thread of this machine.
    """

    name: str
    slots: tuple[int, ...]
    bytes: int
    stored: int
    params: int
    macs: int
    latency: float


@dataclass(frozen=True)
class Evaluation:
    """How good a plan is and what it takes.

    Attributes:
        labels: class names.
        shares: share of each class among the pictures.
        judgement: accuracies, with and without losses.
        devices: each by itself.
        fusion_bytes: of the compiled fusion.
        fusion_latency: seconds of one image.
        full: of the full model: "accuracy", "recall", "bytes" and "latency"; None if not given.
    """

    labels: tuple[str, ...]
    shares: tuple[float, ...]
    judgement: Judgement
    devices: tuple[OnDevice, ...]
    fusion_bytes: int
    fusion_latency: float
    full: dict[str, Any] | None = None

    @property
    def total_bytes(self) -> int:
        """Of every compiled file that any device stores, and the fusion."""
        return sum(device.stored for device in self.devices) + self.fusion_bytes

    @property
    def largest_bytes(self) -> int:
        """Of the device that runs the most."""
        return max(device.bytes for device in self.devices)

    @property
    def slowest_latency(self) -> float:
        """Seconds until the last device is done, fusion and transfer left out."""
        return max(device.latency for device in self.devices)

    def lost_share(self, case: Case) -> float:
        """Return the share of pictures whose classes nobody covers in a case."""
        return 1 - sum(self.shares[c] for c in case.covered)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; bytes, and seconds on one thread of this machine."""
        return {
            "labels": list(self.labels),
            "full": self.full,
            "split": self.judgement.to_json(),
            "devices": [{**vars(device), "slots": list(device.slots)} for device in self.devices],
            "fusion": {"bytes": self.fusion_bytes, "latency": self.fusion_latency},
            "per_device": {"bytes": self.largest_bytes, "latency": self.slowest_latency},
            "total": {"bytes": self.total_bytes},
        }

    def table(self) -> str:
        """Return the result as text."""
        from vitlet.partition.tables import evaluation_table

        return evaluation_table(self)


def evaluate(
    plan: Plan | str | Path,
    data: LabelledImages,
    model: nn.Module | None = None,
    *,
    seconds: float = 0.5,
    progress: Callable[[str], object] | None = None,
) -> Evaluation:
    """Run a plan's bundles over labelled pictures and measure them.

    Args:
        plan: with its bundles, or the folder that holds them.
        data: test pictures; their class names must be the plan's.
        model: the full model (DeiT layout), to compare with.
        seconds: how long each latency is measured.
        progress: told in words what is being done.

    Raises:
        UsageError: the data have other classes than the plan.
        BundleError: the plan's folder is damaged.
        MissingDependencyError: onnxruntime is not installed.
    """
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    if data.classes != plan.labels:
        raise UsageError(
            f"the plan's classes are {', '.join(plan.labels[:4])}... ({len(plan.labels)}), the "
            f"data's {', '.join(data.classes[:4])}... ({len(data.classes)}): the class names and "
            "their order must be the same"
        )
    say = progress or (lambda _: None)
    say(f"run {len(plan.slots)} sub-models on {len(data)} pictures")
    bundles = [plan.slot_bundle(slot.index) for slot in plan.slots]
    engines = [_engine(bundle, "features") for bundle in bundles]
    fusion_bundle = plan.fusion_bundle()
    fusion = _engine(fusion_bundle, "fusion")
    features = run_slots(engines, data, plan.preprocess)
    say("join the features, with every device and pair of devices lost")
    judgement = judge(
        lambda missing: fuse(fusion, features, len(plan.slots), missing),
        data.labels,
        [slot.classes for slot in plan.slots],
        [slot.devices for slot in plan.slots],
        plan.temperature,
    )
    say("measure latencies")
    picture = pixels(data, np.arange(1), plan.preprocess)
    latency = [clock(engine.path, {"image": picture}, seconds) for engine in engines]
    feeds = {"features": features[:1], "present": np.ones((1, len(plan.slots)), np.float32)}
    return Evaluation(
        plan.labels,
        tuple((data.counts() / len(data)).tolist()),
        judgement,
        tuple(_on_device(plan, name, bundles, latency) for name in _used(plan)),
        _size(fusion_bundle, "fusion"),
        clock(fusion.path, feeds, seconds),
        None if model is None else _judge_full(model, data, plan.preprocess, seconds),
    )


def pixels(
    data: LabelledImages, indices: NDArray[np.int64], spec: Preprocess
) -> NDArray[np.float32]:
    """Return pictures as a model takes them, float32 (B, C, H, W)."""
    height, width = spec.size
    whole = (0, 0, height, width)
    return np.stack(
        [
            resize_normalize(image, spec.size, whole, spec.mean, spec.std)
            for image in data.pixels(indices, spec)
        ]
    )


def run_slots(
    engines: Sequence[OrtEngine], data: LabelledImages, spec: Preprocess
) -> NDArray[np.float32]:
    """Return the features of all slots side by side, (n, sum of sizes)."""
    rows = []
    for begin in range(0, len(data), _PORTION):
        given = pixels(data, np.arange(begin, min(len(data), begin + _PORTION)), spec)
        sent = [engine.run({"image": given})["features"] for engine in engines]
        rows.append(np.concatenate(sent, axis=-1))
    return np.concatenate(rows)


def fuse(
    engine: OrtEngine, features: NDArray[np.float32], slots: int, missing: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return logits (n, classes) without the slots in `missing`."""
    present = np.ones((len(features), slots), np.float32)
    present[:, list(missing)] = 0
    return engine.run({"features": features, "present": present})["logits"]


def clock(model: Path, feeds: Mapping[str, NDArray[Any]], seconds: float) -> float:
    """Return the median seconds of a run of an ONNX file in ONNX Runtime, with one thread.

    It is the thread's own time, not the wall's: what a run takes on a machine with nothing else to
    do. Inputs and output are bound, so that nothing but the engine's work is counted.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime", extra="runtime", why="measure latencies")
    session = runtime.InferenceSession(
        str(model), session_options(runtime, 1, None), providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    end = time.perf_counter() + seconds
    session.run_with_iobinding(binding)
    times: list[float] = []
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.thread_time()
        for _ in range(4):
            session.run_with_iobinding(binding)
        times.append((time.thread_time() - begin) / 4)
    return statistics.median(times)


def _engine(bundle: Bundle, graph: str) -> OrtEngine:
    artifact = _artifact(bundle, graph)
    return OrtEngine(bundle.path / artifact.file, artifact, threads=1)


def _artifact(bundle: Bundle, graph: str) -> Any:
    for artifact in bundle.manifest.artifacts:
        if artifact.graph == graph and artifact.target == "onnx":
            return artifact
    raise UsageError(f"{bundle.path.name} has no ONNX artefact: export the plan to onnx too")


def _size(bundle: Bundle, graph: str) -> int:
    size: int = (bundle.path / _artifact(bundle, graph).file).stat().st_size
    return size


def _used(plan: Plan) -> list[str]:
    """Return the names of devices that hold a slot, in the plan's order."""
    held = {name for slot in plan.slots for name in slot.devices}
    return [device.name for device in plan.devices if device.name in held]


def _on_device(
    plan: Plan, name: str, bundles: Sequence[Bundle], latency: Sequence[float]
) -> OnDevice:
    runs = [slot for slot in plan.slots if slot.primary == name]
    holds = [slot for slot in plan.slots if name in slot.devices]
    return OnDevice(
        name,
        tuple(slot.index for slot in runs),
        sum(_size(bundles[slot.index], "features") for slot in runs),
        sum(_size(bundles[slot.index], "features") for slot in holds),
        sum(slot.params for slot in runs),
        sum(slot.macs for slot in runs),
        sum(latency[slot.index] for slot in runs),
    )


def _judge_full(
    model: nn.Module, data: LabelledImages, spec: Preprocess, seconds: float
) -> dict[str, Any]:
    from vitlet.partition.reference import full_engine

    with full_engine(model, spec) as (engine, size):
        rows = [
            engine.run({"image": pixels(data, np.arange(i, min(len(data), i + _PORTION)), spec)})
            for i in range(0, len(data), _PORTION)
        ]
        said = np.concatenate([row["logits"] for row in rows]).argmax(-1)
        latency = clock(engine.path, {"image": pixels(data, np.arange(1), spec)}, seconds)
    right = said == data.labels
    recall = [
        float(right[data.labels == c].mean()) if (data.labels == c).any() else None
        for c in range(len(data.classes))
    ]
    return {
        "accuracy": float(right.mean()), "recall": recall, "bytes": size, "latency": latency,
    }  # fmt: skip
