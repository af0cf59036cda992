"""Which kernels the schedule rules take, and how they share work among threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm_ffi
from torch import nn
from tvm import tirx
from tvm_modules import graph_of

from vitlet.export import tvm_gemm, tvm_rules
from vitlet.export.tvm import export_tvm


def test_gelu_behind_a_depthwise_convolution_and_a_product_is_scheduled_for_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[int]] = {}

    def watch(rule):
        def schedule(function, tile):
            found = rule(function, tile)
            if found is not None:
                extents: list[int] = []

                def visit(node):
                    if isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL:
                        extents.append(int(node.extent))

                tvm_ffi.structural_walk(found.body, visit)
                made[rule.__module__.rsplit(".", 1)[1]] = extents
            return found

        return schedule

    monkeypatch.setattr(tvm_gemm, "schedule", watch(tvm_gemm.schedule))
    monkeypatch.setattr(tvm_rules.window, "schedule", watch(tvm_rules.window.schedule))
    rules = (tvm_rules.rows.schedule, tvm_rules.window.schedule, tvm_rules.elementwise.schedule)
    monkeypatch.setattr(tvm_rules, "_RULES", rules)
    model = nn.Sequential(
        nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.GELU(), nn.Conv2d(24, 48, 1), nn.Flatten()
    )
    model.shape = (24, 48, 48)  # type: ignore[assignment]
    export_tvm(graph_of(model), tmp_path / "m.tvm.so")
    # Three panels of the product, three tiles of channels: two threads get half of the work each.
    assert len(made["window"]) == 1 and made["window"][0] % 2 == 0
    assert len(made["tvm_gemm"]) == 1 and made["tvm_gemm"][0] % 2 == 0
