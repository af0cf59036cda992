"""What artefacts are compared with: a bundle's golden outputs, or a model that is run afresh."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.spec import Preprocess
from vitlet.errors import BundleError, UsageError
from vitlet.export.cases import Case, read_cases
from vitlet.runtime.manifest import Manifest
from vitlet.runtime.progress import Progress
from vitlet.runtime.safetensors import load_file

if TYPE_CHECKING:
    from torch import nn

    from vitlet.export.reference import Reference
    from vitlet.export.trace import Graph


class Truth:
    """What artefacts are compared with, and what helps to explain a difference.

    Attributes:
        name: for the report.
        cases: graph -> inputs with the right answers.
        preprocess: how pictures become the artefacts' floats: what the bundle says.
        wanted: how pictures become the source's floats; the same, unless the bundle is wrong.
        labels: class names of the logits, if any.
        prompts: (class names, (classes, D) unit embeddings, logit scale) of a CLIP-style bundle.
        graphs: the deployable torch graphs, for weights of Core ML and for layers; empty where
            torch is not used.
        reference: the compiled file that is the truth, if it is one.
    """

    def __init__(
        self,
        name: str,
        golden: Mapping[str, NDArray[Any]],
        preprocess: Preprocess | None,
        *,
        wanted: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        prompts: tuple[Sequence[str], NDArray[np.float32], float] | None = None,
        graphs: Sequence[Graph] = (),
        cases: dict[str, list[Case]] | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.name = name
        self.cases = read_cases(golden) if cases is None else cases
        self.preprocess = preprocess
        self.wanted = wanted or preprocess
        self.labels = labels
        self.prompts = prompts
        self.graphs = {graph.name: graph for graph in graphs}
        self.reference = reference


def _prompts(
    manifest: Manifest, folder: Path
) -> tuple[Sequence[str], NDArray[np.float32], float] | None:
    prompts = manifest.prompts
    if prompts is None:
        return None
    table = load_file(folder / prompts.file)["embeddings"].astype(np.float32)
    return prompts.classes, table, prompts.logit_scale


def golden_truth(manifest: Manifest, folder: Path) -> Truth:
    """Read a bundle's golden file.

    Raises:
        BundleError: there is none, or it makes no sense.
    """
    if not manifest.golden:
        raise BundleError(
            f"{folder.name} has no golden file: verify it against the model it was made from"
        )
    golden: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys(manifest.golden.values()):
        golden.update(load_file(folder / name))
    return Truth(
        "the bundle's golden outputs",
        golden,
        manifest.preprocess,
        labels=manifest.labels,
        prompts=_prompts(manifest, folder),
    )


def _zoo_model(
    name: str, weights: str | os.PathLike[str] | None, manifest: Manifest | None
) -> nn.Module:
    """Build the model that a bundle was made from, as far as its name and configuration tell."""
    from vitlet.models.registry import create_model, model_info

    info = model_info(name)
    if weights is None and info.weights is None:
        raise UsageError(
            f"{name} has no weights of its own, and random ones prove nothing: say with weights "
            "(--weights) which checkpoint the artefacts were made from"
        )
    used = manifest.model if manifest is not None and manifest.model.get("name") == name else {}
    # What the registry says anyway is not passed on: that would mean another model than the
    # published one, whose weights then do not apply.
    plain = {key: _plain(value) for key, value in info.config.items()}
    given = {
        key: value
        for key, value in used.get("config", {}).items()
        if key not in plain or plain[key] != _plain(value)
    }
    return create_model(name, None if weights is None else Path(weights), **given)


def _plain(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def model_truth(
    against: str | os.PathLike[str] | nn.Module,
    weights: str | os.PathLike[str] | None,
    images: list[Path] | None,
    manifest: Manifest | None,
    folder: Path,
    step: Progress,
) -> Truth:
    """Run a model on pictures, noise and worst cases.

    Args:
        against: a zoo name or a module.
        weights: the checkpoint of a zoo name.
        images: pictures to use as the real ones; None takes those that vitlet brings.
        manifest: of the bundle to check, if it is one.
        folder: of that bundle.
        step: told of each step.

    Raises:
        UsageError: no such model, no weights, or another kind of input than the bundle's.
    """
    from vitlet.compress.reparameterize import reparameterize
    from vitlet.export.golden import make_golden
    from vitlet.export.trace import graphs

    if isinstance(against, str | os.PathLike):
        against = str(against)
        with step(f"build {against}"):
            model = _zoo_model(against, weights, manifest)
    else:
        if weights is not None:
            raise UsageError("weights go with a zoo name, not with a module")
        model = against
    info = getattr(model, "info", None)
    theirs = manifest.preprocess if manifest else None
    # The model's own description counts for the truth: the bundle's may be what is wrong.
    wanted = info.preprocess if info else theirs
    name = against if isinstance(against, str) else type(model).__name__
    if theirs and wanted and (theirs.size, theirs.mode) != (wanted.size, wanted.mode):
        raise UsageError(
            f"the bundle takes {theirs.mode} pictures of {theirs.size}, {name} takes "
            f"{wanted.mode} of {wanted.size}: they are not the same model"
        )
    with step(f"run {name} on the inputs"):
        shape = (wanted.channels, *wanted.size) if wanted else None
        merged = manifest is None or manifest.model.get("reparameterized", True)
        deployable = graphs(reparameterize(model) if merged else model, shape)
        golden = make_golden(model, deployable, wanted, images=images)
    return Truth(
        f"{name}, run in torch",
        golden,
        theirs or wanted,
        wanted=wanted,
        labels=manifest.labels if manifest else None,
        prompts=_prompts(manifest, folder) if manifest else None,
        graphs=deployable,
    )
