r"""The split of `vit_fashion` that ships with the package: three sub-models and their fusion.

`assets/fashion_split` is a work folder without the full model, whose weights are embedded already.
It was made with Debian's dataset-fashion-mnist and three devices of 64 MB and 1e9 MACs a second:

    vitlet partition plan vit_fashion --devices three.toml -o WORK --data fashion-mnist \
        --classes confusable-together --keep 1
    vitlet partition train WORK --data fashion-mnist --limit 8000 --epochs 8 --short-epochs 1 \
        --fusion-epochs 8
"""

from __future__ import annotations

import os
import shutil
from importlib import resources
from pathlib import Path

from vitlet.errors import StorageError, UnsupportedError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.work import save_full

MODEL = "vit_fashion"


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
