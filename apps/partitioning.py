"""What the verbs of `vitlet partition` share: which model, which pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitlet.apps import source
from vitlet.apps.hints import existing
from vitlet.apps.lists import words
from vitlet.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from vitlet.data.labelled import LabelledImages
    from vitlet.data.spec import Preprocess

FASHION = "fashion-mnist"


@dataclass
class FullModel:
    """The model that is split, checked when it is made; `build` builds it.

    Attributes:
        name: a zoo name, or "pkg.module:function".
        weights: checkpoint of a zoo name.
        random_weights: whether a model without a checkpoint is meant.
        config: further arguments of `create_model`.
        preprocess: JSON file of `vitlet.data.spec.Preprocess`; None takes the model's own.
        seed: of random weights.
        warnings: what the user must be told before the work starts.
    """

    name: str
    weights: Path | None = None
    random_weights: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Path | None = None
    seed: int = 0
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from vitlet.models.registry import model_info

        if source.is_factory(self.name):
            if self.weights is not None or self.random_weights or self.config:
                raise UsageError(
                    f"{self.name} builds and loads the model itself: --weights, --random-weights "
                    "and --config are for zoo names"
                )
            return
        info = model_info(self.name)
        if self.weights is not None:
            existing(self.weights, "the checkpoint")
            if self.random_weights:
                raise UsageError("--weights and --random-weights exclude each other")
        elif info.weights is None and not self.random_weights:
            raise UsageError(
                f"{self.name} comes without weights: give --weights CHECKPOINT, or "
                "--random-weights to see what a split of it costs"
            )
        elif self.random_weights:
            self.warnings.append(f"{self.name} has random weights: its answers mean nothing")

    def build(self) -> nn.Module:
        """Return the model, in eval mode."""
        from vitlet._extras import require

        require("torch", extra="torch", why="split a model")
        if source.is_factory(self.name):
            return source.call_factory(self.name)
        from vitlet.models.registry import create_model

        if self.random_weights:
            import torch

            torch.manual_seed(self.seed)
        return create_model(self.name, self.weights, **self.config)

    def spec(self) -> Preprocess | None:
        """Return the preprocessing that was given, or None for the model's own.

        Raises:
            UsageError: the file cannot be read or says something else.
        """
        from vitlet.data.spec import Preprocess

        if self.preprocess is None:
            return None
        existing(self.preprocess, "the preprocessing")
        try:
            data = json.loads(self.preprocess.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {self.preprocess}: {error}") from None
        if not isinstance(data, dict):
            raise UsageError(f"{self.preprocess} must hold a table, as `vitlet info --json` prints")
        return Preprocess.from_json(data)


def read_config(text: str | None) -> dict[str, int | float]:
    """Return "dim=256,depth=3" as arguments of `create_model`.

    Raises:
        UsageError: a part that is not NAME=NUMBER.
    """
    config: dict[str, int | float] = {}
    for part in words(text or ""):
        name, _, value = part.partition("=")
        try:
            config[name.strip()] = float(value) if "." in value else int(value)
        except ValueError:
            raise UsageError(
                f"--config takes NAME=NUMBER, separated by commas, got {part!r}"
            ) from None
    return config


def read_pictures(name: str, part: Literal["train", "test"]) -> LabelledImages:
    """Read "fashion-mnist", or a folder with one folder of images per class.

    A folder that holds the folders `train` and `test` stands for the one of them that is wanted.

    Raises:
        UsageError: there is no such folder, or it holds no pictures.
    """
    from vitlet.data.labelled import fashion_mnist, image_folder

    if name == FASHION:
        return fashion_mnist(part)
    folder = existing(Path(name), "the data")
    both = all((folder / one).is_dir() for one in ("train", "test"))
    return image_folder(folder / part if both else folder)
