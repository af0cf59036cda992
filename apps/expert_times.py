"""The times of a model's dense and shift layers on this machine: `vitlet bench --experts`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vitlet.errors import UsageError

if TYPE_CHECKING:
    from vitlet.compress.expert_latency import ExpertTimes


def measure(name: str, file: Path, threads: int, seconds: float) -> ExpertTimes:
    """Measure the layers of a zoo model, as it is and with additive attention, and write the file.

    Args:
        name: of the model; its weights do not matter.
        file: to write.
        threads: of each call.
        seconds: for each size of layer.

    Raises:
        UsageError: no such model, or it has no linear layer that could become a mixture.
        StorageError: the file cannot be written.
    """
    from vitlet._extras import require

    require("torch", extra="torch", why="build the model")
    import torch

    from vitlet.compress.expert_latency import measure_times, write_times
    from vitlet.compress.shift_add import mixture_sizes, shift_add
    from vitlet.models.registry import create_model, model_info

    model = create_model(name)
    spec = model_info(name).preprocess
    if spec is None:
        raise UsageError(f"{name} takes no images")
    example = torch.zeros(1, spec.channels, *spec.size)
    sizes = mixture_sizes(model, example)
    with suppress(UsageError):  # a model without softmax attention is measured as it is
        sizes += mixture_sizes(shift_add(model)[0], example)
    times = measure_times(sizes, threads=threads, seconds=seconds)
    write_times(times, file)
    return times


def rows(times: ExpertTimes) -> list[tuple[str, ...]]:
    """Return the table's rows; the last column is the share at which both take the same time."""
    return [
        (
            str(inputs),
            str(outputs),
            str(time.tokens),
            f"{time.dense_us:.3f}",
            f"{time.shift_us:.3f}",
            f"{100 * time.shift_us / (time.dense_us + time.shift_us):.0f} %",
        )
        for (inputs, outputs), time in times.layers.items()
    ]
