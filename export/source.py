"""What is exported: the model, the facts about it, and its class names or prompts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.runtime.manifest import Prompts

if TYPE_CHECKING:
    from torch import nn

PROMPTS = "prompts.safetensors"


@dataclass(frozen=True)
class Source:
    """The model as given, and what the manifest says of it."""

    model: nn.Module
    preprocess: Preprocess
    facts: dict[str, Any]
    labels_file: str | None = None


def read_source(
    model: str | nn.Module,
    weights: str | os.PathLike[str] | None,
    config: Mapping[str, Any] | None,
    spec: Preprocess | None,
) -> Source:
    """Build or take the model and gather the facts for the manifest.

    Raises:
        UsageError: arguments that do not go together, or an input that nobody describes.
        CheckpointError: the checkpoint does not fit.
    """
    from vitlet.models.registry import create_model

    built: Any
    if isinstance(model, str):
        built = create_model(model, None if weights is None else Path(weights), **(config or {}))
    else:
        if weights is not None or config:
            raise UsageError("weights and config go with a zoo name, not with a module")
        built = model
    info = getattr(built, "info", None)
    preprocess = spec or (info.preprocess if info is not None else None)
    if preprocess is None:
        raise UsageError(
            f"{type(built).__name__} has no `info`: give its input with spec=Preprocess(...)"
        )
    checkpoint = Path(weights) if weights is not None else None
    if isinstance(model, str) and weights is None and info is not None and info.weights:
        checkpoint = Path(vitlet.__file__).parent / info.weights
    kind = "clip" if hasattr(built, "text_tower") else "classifier"
    facts = {
        "name": info.name if info else type(built).__name__.lower(),
        "family": info.family if info else "custom",
        "kind": info.kind if info else kind,
        "config": dict(info.config) if info else {},
        "licence": info.licence if info else "",
        "source": info.source if info else "",
        "checkpoint_sha256": _sha256(checkpoint) if checkpoint is not None else None,
        "params": sum(parameter.numel() for parameter in built.parameters()),
    }
    if facts["kind"] == "clip":  # for prompts that are made on the device
        from vitlet.export.text import logit_scale

        facts["logit_scale"] = logit_scale(built)
    return Source(built, preprocess, facts, info.labels if info else None)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Words:
    """Class names, and for a CLIP-style model their embeddings."""

    labels: tuple[str, ...] | None = None
    prompts: Prompts | None = None
    embeddings: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        labels: str | os.PathLike[str] | Sequence[str] | None,
        prompts: Sequence[str] | None,
        templates: str | Sequence[str] | None,
    ) -> Words:
        """Resolve the arguments of the same names of `vitlet.export`.

        Raises:
            UsageError: they do not fit the model.
        """
        clip = source.facts["kind"] == "clip"
        if clip and labels is not None:
            raise UsageError("labels are for a classifier: give a CLIP-style model prompts")
        if not clip and (prompts is not None or templates is not None):
            raise UsageError("prompts and templates are for CLIP-style models: give labels")
        if templates is not None and prompts is None:
            raise UsageError("templates are for prompts, and no prompts were given")
        if prompts is not None:
            from vitlet.export.text import logit_scale, prompt_embeddings, resolve_templates

            chosen = resolve_templates(templates)
            names = tuple([prompts] if isinstance(prompts, str) else prompts)
            tower = cast("nn.Module", source.model.text_tower)
            made = prompt_embeddings(tower, names, chosen)
            scale = logit_scale(source.model)
            return cls(None, Prompts(names, chosen, PROMPTS, scale), made)
        if labels is None and not clip and source.labels_file is not None:
            known = _read_labels(Path(vitlet.__file__).parent / source.labels_file)
            # The file names the classes of the published head, not of one that was replaced.
            return cls(known if len(known) == _classes(source) else None)
        if labels is None:
            return cls()
        names = _read_labels(labels)
        if len(names) != _classes(source):
            raise UsageError(
                f"the model has {_classes(source)} classes, {len(names)} labels were given"
            )
        return cls(names)


def _classes(source: Source) -> int:
    from vitlet.export.trace import graphs

    shape = (source.preprocess.channels, *source.preprocess.size)
    return int(graphs(source.model, shape)[0].outputs[0].shape[1])


def _read_labels(labels: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(labels, str | os.PathLike):
        return tuple(labels)
    try:
        lines = Path(labels).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the labels in {labels}: {reason}") from error
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not names or not all(names):
        raise UsageError(f"{labels} must hold one class name a line, without empty lines")
    return names
