"""A real plan in a few seconds: three sub-models of random weights and a fusion, as ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.models.deit import DeiT
from vitlet.partition.bundles import export_graph, features_graph, fusion_graph
from vitlet.partition.devices import Device
from vitlet.partition.plan import (
    FUSION,
    Fusion,
    Plan,
    Slot,
    load_plan,
    manifest_sha256,
    slot_bundle_name,
    write_plan,
)

PREPROCESS = Preprocess((8, 8), resize_to=8, mean=(0.5,), std=(0.5,), mode="L")
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
CLASSES = ((0, 3, 6), (1, 4), (2, 5))
WIDTHS = (8, 12, 16)  # numbers that each sub-model sends


class TinyFeatures(nn.Module):
    """A small ViT without its head: image (B, 1, 8, 8) -> class token (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.vit = DeiT(dim=dim, depth=2, heads=2, patch_size=4, img_size=8, in_chans=1)
        self.vit.head = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.vit(image)
        return features


class TinyFusion(nn.Module):
    """Learned features where a slot is absent, then one linear layer."""

    def __init__(self, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.missing = nn.Parameter(torch.randn(sum(widths)))
        slots = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        self.register_buffer("spread", torch.eye(len(widths))[slots].T.contiguous())
        self.linear = nn.Linear(sum(widths), classes)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        mask = present @ self.spread
        logits: Tensor = self.linear(features * mask + self.missing * (1 - mask))
        return logits


def tiny_modules(seed: int = 0) -> tuple[list[TinyFeatures], TinyFusion]:
    """The torch modules that `tiny_plan` of the same seed compiles."""
    torch.manual_seed(seed)
    slots = [TinyFeatures(width).eval() for width in WIDTHS]
    for slot in slots:  # larger weights than a fresh model's, so that answers differ by image
        for parameter in slot.parameters():
            parameter.data.mul_(5)
    return slots, TinyFusion(WIDTHS, len(LABELS)).eval()


def tiny_devices() -> tuple[Device, ...]:
    return tuple(
        Device(name, 64_000_000, 1e9, link_rate=1e7, link_latency=1e-3)
        for name in ("alpha", "beta", "gamma")
    )


def tiny_plan(folder: Path, seed: int = 0) -> Plan:
    """Write a plan into `folder`: slot i on device i, and slot 0 on "gamma" too."""
    folder.mkdir(parents=True, exist_ok=True)
    modules, fusion = tiny_modules(seed)
    devices = tiny_devices()
    slots = []
    for index, module in enumerate(modules):
        name = slot_bundle_name(index)
        bundle = export_graph(
            features_graph(module, PREPROCESS, WIDTHS[index]),
            folder / name,
            model={"name": f"tiny-{index}"},
            preprocess=PREPROCESS,
        )
        slots.append(
            Slot(
                index=index,
                classes=CLASSES[index],
                bundle=name,
                sha256=manifest_sha256(folder / name),
                features=WIDTHS[index],
                bytes=bundle.file("features.onnx").stat().st_size,
                params=sum(p.numel() for p in module.parameters()),
                macs=10_000,
                memory=1_000_000,
                latency=1e-5,
                devices=(devices[index].name, "gamma") if index == 0 else (devices[index].name,),
            )
        )
    bundle = export_graph(
        fusion_graph(fusion, sum(WIDTHS), len(WIDTHS), len(LABELS)),
        folder / FUSION,
        model={"name": "tiny-fusion"},
        preprocess=PREPROCESS,
        labels=LABELS,
    )
    plan = Plan(
        vitlet=vitlet.__version__,
        model={"name": "tiny", "config": {}},
        preprocess=PREPROCESS,
        labels=LABELS,
        slots=tuple(slots),
        devices=devices,
        fusion=Fusion(
            FUSION,
            manifest_sha256(folder / FUSION),
            bundle.file("fusion.onnx").stat().st_size,
            sum(WIDTHS) * len(LABELS),
        ),
        strategy={"classes": "balanced-random", "assign": "greedy", "seed": seed},
        calibration={"temperature": 1.5},
    )
    write_plan(plan, folder)
    return load_plan(folder)
