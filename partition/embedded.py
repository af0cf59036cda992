"""The split of `vit_fashion` that ships with the package: three sub-models and their fusion.

`assets/fashion_split` is a work folder without the full model, whose weights are embedded already;
`scripts/train_demo.py --split` trained it on Fashion-MNIST.
"""

from __future__ import annotations

import os
import shutil
from importlib import resources
from pathlib import Path

from vitlet.errors import StorageError, UnsupportedError
from vitlet.models.deit import DeiT
from vitlet.partition.work import save_full

MODEL = "vit_fashion"
DEVICES = ("kitchen", "hall", "garage")


def embedded_split(work: str | os.PathLike[str]) -> None:
    """Lay out the embedded split as a work folder, for `vitlet.partition.splitting.export_planned`.

    Raises:
        StorageError: it cannot be written.
    """
    from vitlet.models.registry import create_model

    with resources.as_file(resources.files("vitlet.partition") / "assets/fashion_split") as assets:
        try:
            shutil.copytree(assets, Path(work), dirs_exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {work}: {error.strerror or error}") from error
    model = create_model(MODEL)
    if not isinstance(model, DeiT):
        raise UnsupportedError(f"{MODEL} is not a plain ViT")
    save_full(model, Path(work))
