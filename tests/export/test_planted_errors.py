"""Twenty errors, planted in Core ML packages of three models: verify finds and names them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import fill
from planted import PLANTS, Package
from torch import Tensor, nn

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.export.cases import Case, write_cases
from vitlet.export.coreml import export_coreml
from vitlet.export.result import ArtifactResult
from vitlet.export.trace import Graph, graphs
from vitlet.export.truth import Truth
from vitlet.export.verify import verify_artifacts
from vitlet.models import mci
from vitlet.models.deit import deit
from vitlet.runtime.manifest import Artifact

MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.24)
RGB = Preprocess(size=(64, 64), resize_to=64, mean=MEAN, std=STD)
TINY = mci.MCi(
    depths=(1, 1, 1, 1), dims=(16, 32, 64, 64), mlp_ratio=2, mixer_stages=3,
    gated_downsample=False, stem_scale=True, layer_norm=False,
)  # fmt: skip


class NormalizedAgain(nn.Module):
    """What a program does that normalizes pictures which are normalized already."""

    def __init__(self, module: nn.Module, spec: Preprocess) -> None:
        super().__init__()
        self.module = module
        self.mean = torch.tensor(spec.mean).reshape(1, -1, 1, 1)
        self.std = torch.tensor(spec.std).reshape(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.module((x - self.mean) / self.std)


@dataclass(frozen=True)
class Subject:
    """A model with its sound package and right answers."""

    graph: Graph
    spec: Preprocess
    path: Path
    artifact: Artifact
    truth: Truth


def subject(name: str, folder: Path) -> Subject:
    spec, picture, precision = RGB, True, "fp16"
    if name == "casvit":
        model: nn.Module = vitlet.create_model("casvit_fashion")
        spec = model.info.preprocess
    elif name == "deit":
        model = deit(dim=32, depth=2, heads=2, patch_size=8, num_classes=10, img_size=64)
        picture, precision = False, "fp32"
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(mci.SIZES, "tiny", TINY)
            model = mci.AppleMCi("tiny", embed_dim=32)
    model = fill(model).requires_grad_(False)
    (graph,) = graphs(vitlet.reparameterize(model), (spec.channels, *spec.size))
    path = folder / f"{name}.mlpackage"
    artifact = export_coreml(graph, path, precision=precision, preprocess=spec if picture else None)
    cases = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (1, 4, 4, spec.channels))
        large = np.kron(pixels, np.ones((1, spec.size[0] // 4, spec.size[1] // 4, 1)))
        noise = np.random.default_rng(number).integers(0, 256, large.shape)
        mixed = ((large + noise) / 2).astype(np.uint8)  # something to see on every scale
        case = Case("model", f"real_{number}", mixed, np.zeros((1, 1), np.float32))
        output = graph.module(torch.from_numpy(case.floats(spec))).numpy()
        cases.append(replace(case, output=output))
    truth = Truth("torch", write_cases(cases), spec, graphs=[graph])
    return Subject(graph, spec, path, artifact, truth)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    folder = tmp_path_factory.mktemp("sound")
    return {name: subject(name, folder) for name in ("casvit", "deit", "mobileclip")}


def look(path: Path, one: Subject) -> ArtifactResult:
    artifact = replace(one.artifact, file=path.name)
    report = verify_artifacts(path.parent, [artifact], one.truth, subject="test", first_bad=True)
    return report.artifacts[0]


def said(result: ArtifactResult) -> str:
    """Everything that a user reads of a failed artefact."""
    failed = [f"{check.name}: {check.detail}" for check in result.checks if not check.passed]
    return "; ".join((*result.reasons, *failed, str(result.first_bad)))


def plant(kind: str, one: Subject, copy: Path) -> str:
    """Plant an error; return the layer that it is in, or "preprocessing"."""
    if kind == "normalized twice":
        module = NormalizedAgain(one.graph.module, one.spec).eval()
        export_coreml(replace(one.graph, module=module), copy, preprocess=one.spec)
        return "preprocessing"
    parameters = [name for name, _ in one.graph.module.named_parameters()]
    package = Package(one.path, copy, parameters)
    random = np.random.default_rng(zlib.crc32(copy.name.encode()))
    return PLANTS[kind](package, random).layer


CASES = [(name, kind) for name in ("casvit", "deit", "mobileclip") for kind in PLANTS]
CASES += [("casvit", "normalized twice"), ("mobileclip", "normalized twice")]


def test_sound_packages_pass(subjects: dict[str, Subject]) -> None:
    for one in subjects.values():
        result = look(one.path, one)
        assert result.status == "passed", (one.path.name, said(result))


@pytest.mark.slow
def test_nearly_every_planted_error_is_found_and_its_layer_named(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    assert len(CASES) == 20
    missed = []
    for name, kind in CASES:
        copy = tmp_path / f"{name} {kind}.mlpackage"
        layer = plant(kind, subjects[name], copy)
        result = look(copy, subjects[name])
        if result.status != "failed" or layer not in said(result):
            missed.append((name, kind, layer, result.status, said(result)[:300]))
    assert len(missed) <= 1, missed


def test_the_planted_layer_is_the_first_bad_one(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """What an execution alone finds: nothing is known of the weights then."""
    copy = tmp_path / "deit bias.mlpackage"
    layer = plant("bias", subjects["deit"], copy)
    found = look(copy, subjects["deit"]).first_bad
    assert found is not None and found.module == layer
