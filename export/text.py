"""Class names as text embeddings, so that a device classifies with the image tower alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitlet.errors import UsageError
from vitlet.export.trace import UnitEmbedding

_ROWS = 64  # texts per run: bounds the memory


def resolve_templates(templates: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return prompt templates of a name in `vitlet.data.prompts.TEMPLATES`, a text, or texts.

    Raises:
        UsageError: no template, or one without exactly one "{}".
    """
    from vitlet.data.prompts import TEMPLATES

    if templates is None:
        templates = "default"
    if isinstance(templates, str):
        templates = TEMPLATES.get(templates, (templates,))
    if not templates:
        raise UsageError('no prompt template was given: use "{}" for the bare class name')
    for template in templates:
        if template.count("{}") != 1:
            known = ", ".join(TEMPLATES)
            raise UsageError(
                f'{template!r} is no prompt template: it needs one "{{}}" for the class name '
                f"(or be one of {known})"
            )
    return tuple(templates)


def prompt_embeddings(
    text_tower: nn.Module, classes: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """Return (classes, D) unit-length embeddings.

    Each class is the mean of its templates' unit-length embeddings, normalized again (prompt
    ensembling, CLIP, section 3.1.4).

    Raises:
        UsageError: no class, an empty name, or one that comes twice.
    """
    from vitlet.data.prompts import expand
    from vitlet.data.tokenizer import tokenize

    if not classes or not all(name.strip() for name in classes):
        raise UsageError(f"prompts must be class names that are not empty, got {list(classes)}")
    if len(set(classes)) != len(classes):
        raise UsageError(f"prompts must be different from each other, got {list(classes)}")
    texts = [text for row in expand(classes, templates) for text in row]
    tokens = torch.from_numpy(tokenize(texts))
    tower = UnitEmbedding(text_tower).eval()
    with torch.no_grad():
        rows = torch.cat([tower(part) for part in torch.split(tokens, _ROWS)]).double()
    means = rows.reshape(len(classes), len(templates), -1).mean(dim=1)
    means = means / means.norm(dim=-1, keepdim=True)
    return np.ascontiguousarray(means.float().numpy())


def logit_scale(model: nn.Module) -> float:
    """Return what cosines are multiplied by: the stored logarithm's exponential, with its limit."""
    stored = model.logit_scale
    assert isinstance(stored, torch.Tensor)
    # CLIP (Radford et al., 2021) limits the scale to 100, where its code limits it at all.
    limit = float(getattr(model, "largest_scale", 100.0))
    return min(math.exp(float(stored.detach().reshape(-1)[0])), limit)
