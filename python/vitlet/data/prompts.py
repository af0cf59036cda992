"""Prompt templates: class names become the sentences whose embeddings classify an image.

Averaging over several sentences per class ("ensembling", Radford et al. 2021, section 3.1.4) makes
the classifier less dependent on any one wording.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitlet.errors import UsageError

__all__ = ["TEMPLATES", "expand"]

# "imagenet" holds the seven sentences that CLIP's authors found to do nearly as well as all eighty.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "default": ("a photo of a {}.",),
    "none": ("{}",),
    "imagenet": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "photo": (
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a close-up photo of a {}.",
        "a bright photo of a {}.",
        "a dark photo of a {}.",
    ),
}


def expand(classes: Sequence[str], templates: str | Sequence[str] = "default") -> list[list[str]]:
    """Put every class name into every template.

    Args:
        classes: class names, such as ["dog", "cat"].
        templates: a name in `TEMPLATES`, or sentences that each hold ``{}`` once.

    Returns:
        One list of sentences per class, in the order given.

    Raises:
        UsageError: there are no classes, a name is empty or given twice, or a template has no
            ``{}``.
    """
    if isinstance(classes, str):
        raise UsageError(f"classes must be a list of names, got the single text {classes!r}")
    names = [name.strip() for name in classes]
    if not names or "" in names:
        raise UsageError(f"expected one or more class names, none of them empty, got {names}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"class {twice!r} is given more than once")
    return [[sentence.replace("{}", name) for sentence in _sentences(templates)] for name in names]


def _sentences(templates: str | Sequence[str]) -> Sequence[str]:
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{}" not in templates:
            raise UsageError(
                f"templates must be one of {', '.join(TEMPLATES)}, or a sentence with {{}} for the "
                f"class name, got {templates!r}"
            )
        templates = [templates]
    for sentence in templates:
        if sentence.count("{}") != 1:
            raise UsageError(f"a template must hold {{}} exactly once, got {sentence!r}")
    if not templates:
        raise UsageError("expected at least one template")
    return templates
