"""Checkpoints: read without running their code, and fitted to a model tensor by tensor."""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlet.errors import CheckpointError
from vitlet.models.layouts import renamed, translate
from vitlet.models.positions import fit_positions

log = logging.getLogger(__name__)

# Where training scripts put the weights, the most wanted first.
_WRAPPERS = ("state_dict", "model", "model_ema", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_DEEPEST = 4


def load_state_dict(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """Read a checkpoint's tensors on the CPU.

    `.safetensors` and PyTorch files are told apart by their content. A PyTorch file is read with
    ``weights_only=True``, which runs no code of the file. Wrappers (`state_dict`, `model`,
    `model_ema`, `module.`) are taken off; what was taken is logged.

    Args:
        path: the file.
        key: take this entry, "model_ema" say, where the file has several.

    Raises:
        CheckpointError: no such file, damaged, holding code, or without tensors.
    """
    path = Path(path)
    content = _read(path)
    state, taken = _unwrap(path, content, key)
    if taken:
        others = [name for name in _WRAPPERS if name in content and name != taken[0]]
        also = f" (it also has {', '.join(others)})" if others else ""
        log.info("%s: took %s%s", path.name, " > ".join(taken), also)
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{path.name}: tensor {name!r} is not a plain dense tensor")
    return state


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":  # a zip, or a bare pickle
        return _read_torch(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)  # its own error says what is wrong
    raise CheckpointError(
        f"{path} is neither a safetensors nor a PyTorch file: it starts with {head[:8]!r}"
    )


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {_line(error)}") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        content = _torch_load(path)
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error)
        code = re.search(r"GLOBAL ([\w.]+)", text)
        if code is not None:
            raise CheckpointError(
                f"{path} was refused: it asks to run {code[1]}, and a checkpoint must hold tensors "
                "only; where you trust it, save its state_dict as .safetensors"
            ) from None
        if "Weights only load failed" in text:  # torch goes on to advise loading it unsafely
            detail = re.search(r"Unsupported operand \d+", text)
            raise CheckpointError(
                f"{path} was refused: it is damaged or holds more than tensors "
                f"({detail[0] if detail else type(error).__name__})"
            ) from None
        raise CheckpointError(f"{path} is not a whole PyTorch file: {_line(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _torch_load(path: Path) -> Any:
    with warnings.catch_warnings(), path.open("rb") as file:
        # What that warning fears ends in an error, which is caught.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        # Only the zip format can be mapped, and only by a name that does not promise another.
        mapped = file.read(2) == b"PK" and path.suffix != ".safetensors"
        file.seek(0)
        # argparse.Namespace, in which training scripts keep their options, is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            source = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _unwrap(
    path: Path, content: Mapping[str, Any], key: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors and the names of the wrappers around them."""
    taken: list[str] = []
    if key is not None:
        if not isinstance(content.get(key), Mapping):
            have = ", ".join(map(str, list(content)[:8]))
            raise CheckpointError(f"{path} has no entry {key!r}: it has {have}")
        content, taken = content[key], [key]
    for _ in range(_DEEPEST):
        wrapper = next((w for w in _WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
        taken.append(wrapper)
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        have = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise CheckpointError(f"{path} holds no tensors: it has {have}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            taken.append(prefix)
    return state, taken


def looks_merged(state: Mapping[str, Tensor]) -> bool:
    """Whether upstream's own merging (`reparam_conv`, `lkb_reparam`) was done before saving."""
    return any(name.endswith(("reparam_conv.weight", "lkb_reparam.weight")) for name in state)


def fit(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a checkpoint's tensors into a model, in the model's dtype.

    The other layout of MobileCLIP's names is translated, and positions of another image size are
    resized. Nothing is loaded unless everything fits.

    Args:
        model: the module; `model.ignored_keys` names prefixes that it has no use for.
        state: from `load_state_dict`.
        name: the model's zoo name, for messages.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or not finite. The message
            names it, both shapes, and the zoo name that would fit.
    """
    wanted = model.state_dict()
    offered, resized = fit_positions(translate(state, wanted), wanted)
    if resized:
        log.info("%s: resized %s to the image size", name, ", ".join(resized))
    ignored = tuple(getattr(model, "ignored_keys", ()))
    problems = _problems(offered, wanted, ignored, {renamed(key).key: key for key in state})
    if problems:
        from vitlet.models.nearest import advice

        raise CheckpointError(f"{name}: {'; '.join(problems)}; {advice(state, wanted, name)}")
    for key, tensor in offered.items():
        if key in wanted and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name}: tensor {key!r} holds values that are not finite")
    model.load_state_dict({k: v for k, v in offered.items() if k in wanted}, strict=False)


def is_optional(key: str) -> bool:
    """Whether a tensor changes nothing in eval mode: some checkpoints have it, some do not."""
    return key.endswith(("num_batches_tracked", "attn_mask"))


def _problems(
    offered: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    ignored: tuple[str, ...],
    in_file: Mapping[str, str],
) -> list[str]:
    missing = [key for key in wanted if key not in offered and not is_optional(key)]
    extra = [
        key
        for key in offered
        if key not in wanted and not is_optional(key) and not key.startswith(ignored or ("\0",))
    ]
    wrong = [key for key in wanted if key in offered and offered[key].shape != wanted[key].shape]
    types = [
        key
        for key in wanted
        if key in offered and offered[key].is_floating_point() != wanted[key].is_floating_point()
    ]
    found = []
    if wrong:
        key = wrong[0]
        shapes = f"should be {tuple(wanted[key].shape)}, is {tuple(offered[key].shape)}"
        found.append(f"tensor {key!r} {shapes}{_more(wrong)}")
    if types and not wrong:
        key = types[0]
        found.append(
            f"tensor {key!r} should be {wanted[key].dtype}, is {offered[key].dtype}{_more(types)}"
        )
    if missing:
        key = missing[0]
        found.append(f"no tensor {key!r} {tuple(wanted[key].shape)}{_more(missing)}")
    if extra:
        key = extra[0]
        name = in_file.get(key, key)
        found.append(f"unknown tensor {name!r} {tuple(offered[key].shape)}{_more(extra)}")
    return found


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
