"""What comes back from a cluster: logits, and how much of the cluster stands behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import VitletError
from vitlet.partition.plan import Plan
from vitlet.runtime.session import Prediction, load


@dataclass(frozen=True)
class Trace:
    """How one slot's features came.

    Attributes:
        slot: its index.
        device: who answered; empty when nobody did.
        compute: seconds of computing there.
        queue: seconds of waiting there.
        total: seconds from the first attempt to the answer.
        attempts: how often it was asked for.
        hedged: whether a second device was asked while the first had not answered.
    """

    slot: int
    device: str = ""
    compute: float = 0.0
    queue: float = 0.0
    total: float = 0.0
    attempts: int = 0
    hedged: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer to one request of B images.

    Attributes:
        logits: float32 (B, classes).
        probabilities: softmax of the calibrated logits, float64 (B, classes).
        labels: class names.
        missing: slots whose features did not come in time.
        covered_classes: indices of the classes whose slot did answer.
        latency: seconds from submission to this.
        traces: one per slot.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    labels: tuple[str, ...]
    missing: tuple[int, ...]
    covered_classes: tuple[int, ...]
    latency: float
    traces: tuple[Trace, ...]

    @property
    def degraded(self) -> bool:
        """Whether any slot is missing."""
        return bool(self.missing)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the best class of each image, (B,)."""
        return np.asarray(self.probabilities.max(axis=1))

    def predictions(self, topk: int = 5) -> list[list[Prediction]]:
        """Return the best classes of each image, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :topk]
        return [
            [Prediction(self.labels[i], int(i), float(row[i])) for i in best]
            for row, best in zip(self.probabilities, order, strict=True)
        ]

    def to_json(self, topk: int = 5) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        covered = set(self.covered_classes)
        return {
            "images": [
                {
                    "predictions": [asdict(guess) for guess in guesses],
                    "confidence": guesses[0].score,
                    "covered": guesses[0].index in covered,
                }
                for guesses in self.predictions(topk)
            ],
            "missing": list(self.missing),
            "covered_classes": list(self.covered_classes),
            "degraded": self.degraded,
            "latency_ms": round(self.latency * 1e3, 3),
            "slots": [asdict(trace) for trace in self.traces],
        }


class Fuser:
    """Joins features by the plan's fusion.

    Args:
        plan: as `load_plan` opened it.
        threads: threads to compute with.

    Raises:
        BundleError: the fusion's bundle is damaged or is not what the plan says.
        UnsupportedError, MissingDependencyError: nothing in it runs here.
    """

    def __init__(self, plan: Plan, threads: int = 1) -> None:
        self._plan = plan
        self._widths = [slot.features for slot in plan.slots]
        bundle = plan.fusion_bundle()
        self._session = load(bundle.path, threads=threads, graph="fusion", check="used")

    def logits(self, features: list[NDArray[np.float32] | None], rows: int) -> NDArray[np.float32]:
        """Compute logits (B, classes).

        Args:
            features: (B, D_i) per slot in order, None for a missing one.
            rows: B.

        Raises:
            VitletError: the result is not finite.
        """
        parts = [
            np.zeros((rows, width), np.float32) if part is None else part
            for part, width in zip(features, self._widths, strict=True)
        ]
        present = np.array([part is not None for part in features], np.float32)
        feeds = {
            "features": np.concatenate(parts, axis=1),
            "present": np.ascontiguousarray(np.broadcast_to(present, (rows, len(features)))),
        }
        logits = self._session.run(feeds)["logits"]
        if not np.isfinite(logits).all():
            raise VitletError("the cluster's answer is not finite (NaN or infinity)")
        return logits.astype(np.float32, copy=False)

    def answer(
        self,
        features: list[NDArray[np.float32] | None],
        rows: int,
        traces: tuple[Trace, ...],
        latency: float,
    ) -> Answer:
        """Return the whole answer; `latency` is that until now, in seconds."""
        logits = self.logits(features, rows)
        scaled = logits.astype(np.float64) / self._plan.temperature
        scores = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        present = [index for index, part in enumerate(features) if part is not None]
        return Answer(
            logits,
            scores / scores.sum(axis=1, keepdims=True),
            self._plan.labels,
            tuple(index for index, part in enumerate(features) if part is None),
            self._plan.covered_classes(present),
            latency,
            traces,
        )
