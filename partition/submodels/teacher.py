"""The full model's answers on a data set, computed once for all that learn from them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from vitlet.checkpoint import load_state_dict
from vitlet.compress.pictures import Pictures
from vitlet.compress.training import save_weights
from vitlet.errors import UsageError
from vitlet.models.deit import Attention, DeiT
from vitlet.partition.submodels.features import logits

_PORTION = 250


def model_digest(model: nn.Module) -> str:
    """Return a SHA-256 of a model's weights with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def answers(model: nn.Module, pictures: Pictures, folder: Path | None = None) -> Tensor:
    """Return the model's log probabilities, (views, n, classes) float32.

    Args:
        model: in eval mode.
        pictures: the data.
        folder: where they are kept for the next run, under a name made of both hashes.

    Raises:
        UsageError: the model has not as many outputs as the data have classes.
        StorageError: `folder` cannot be written.
    """
    bias = model.state_dict().get("head.bias")
    if bias is not None and len(bias) != pictures.classes:
        raise UsageError(
            f"the model gives {len(bias)} classes and the data have {pictures.classes}"
        )
    # A plain ViT's last block need not compute the tokens that nobody reads.
    short = type(model) is DeiT and all(type(block.attn) is Attention for block in model.blocks)
    path = None
    if folder is not None:
        data = pictures.data.fingerprint()
        facts = f"{model_digest(model)} {data} {pictures.views} {pictures.spec}"
        path = folder / f"answers-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
        if path.is_file():
            return load_state_dict(path)["log_probabilities"]
    rows = []
    for view in range(pictures.views):
        for part in torch.split(torch.arange(len(pictures)), _PORTION):
            given = pictures.batch(part, torch.full((len(part),), view))
            told = logits(model, given) if isinstance(model, DeiT) and short else model(given)
            rows.append(torch.log_softmax(told, dim=-1))
    made = torch.cat(rows).reshape(pictures.views, len(pictures), -1)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights({"log_probabilities": made}, path)
    return made


def accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest entry is the label's."""
    return float((log_probabilities.argmax(-1) == labels).float().mean())
