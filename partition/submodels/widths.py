"""The widths of a plain ViT before and after cutting, and what they cost; nothing is built.

"Efficient Partitioning Vision Transformer on Edge Devices for Distributed Inference" (2024),
arXiv 2410.11650: a sub-model that keeps k of h heads has k/h of every width (residual stream,
attention, hidden units of the MLP). With 2 of ViT-Base's 12 heads it has 1/34.6 of the parameters
and 1/29 of the multiply-accumulates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitlet.errors import UnsupportedError, UsageError
from vitlet.partition.fields import entries, only, whole

FLOAT = 4  # bytes
_LAYOUT = ("patch_embed", "cls_token", "pos_embed", "blocks", "norm", "head")


@dataclass(frozen=True)
class Geometry:
    """The shape of a full plain ViT (DeiT's layout).

    Attributes:
        dim: width of a token.
        heads: of every block; divides `dim`.
        hidden: width inside every MLP.
        depth: number of blocks.
        patch_size: side of a patch, in pixels.
        img_size: height and width of the input, in pixels.
        in_chans: channels of the input.
        classes: size of the output.
    """

    dim: int
    heads: int
    hidden: int
    depth: int
    patch_size: int
    img_size: int
    in_chans: int
    classes: int

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.img_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_json(cls, data: Any) -> Geometry:
        """Read back `dataclasses.asdict`.

        Raises:
            UsageError: a field is missing, unknown or senseless.
        """
        data = only(data, cls.__dataclass_fields__, "geometry")
        return cls(**{key: whole(data, key, "geometry", least=1) for key in data})

    @classmethod
    def of(cls, model: Any) -> Geometry:
        """Read the shape of a model.

        Raises:
            UnsupportedError: it is not a plain ViT in DeiT's layout with a classifier.
        """
        name = getattr(getattr(model, "info", None), "name", type(model).__name__)
        missing = [part for part in _LAYOUT if not hasattr(model, part)]
        if missing or getattr(model, "features_only", False) or not len(model.blocks):
            why = f"it has no {missing[0]!r}" if missing else "it gives no class scores"
            raise UnsupportedError(
                f"only a plain ViT in DeiT's layout can be split by class, and {name} is none "
                f"({why}): use deit_tiny, deit_small, deit_base or vitlet.models.deit.DeiT"
            )
        first, patches = model.blocks[0], model.patch_embed.proj
        try:
            shapes = {
                (int(b.attn.heads), b.attn.proj.in_features, b.mlp.fc1.out_features)
                for b in model.blocks
            }
            dim = int(model.cls_token.shape[-1])
            if len(shapes) > 1 or first.attn.proj.in_features != dim:
                raise UnsupportedError(f"{name} is cut already: split the full model")
            return cls(
                dim=dim,
                heads=int(first.attn.heads),
                hidden=int(first.mlp.fc1.out_features),
                depth=len(model.blocks),
                patch_size=int(model.patch_size),
                img_size=int(model.img_size),
                in_chans=int(patches.in_channels),
                classes=int(model.head.out_features),
            )
        except AttributeError as error:
            raise UnsupportedError(
                f"only a plain ViT in DeiT's layout can be split by class, and {name} is built "
                f"differently: {error}"
            ) from None


@dataclass(frozen=True)
class Widths:
    """What a sub-model keeps; per block where a tuple.

    Attributes:
        dim: residual channels, which are also the numbers that it sends.
        head_dim: width of one head.
        heads: kept heads of each block.
        hidden: kept hidden units of each MLP.
    """

    dim: int
    head_dim: int
    heads: tuple[int, ...]
    hidden: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {**asdict(self), "heads": list(self.heads), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, data: Any) -> Widths:
        """Read back what `to_json` wrote.

        Raises:
            UsageError: a field is missing, unknown or senseless.
        """
        where = "widths"
        data = only(data, cls.__dataclass_fields__, where)
        lists = {key: entries(data, key, where) for key in ("heads", "hidden")}
        for key, values in lists.items():
            if not values or any(type(value) is not int or value < 1 for value in values):
                raise UsageError(f"widths: {key} must be positive numbers, got {values!r}")
        if len(lists["heads"]) != len(lists["hidden"]):
            raise UsageError("widths: heads and hidden must have one number a block")
        return cls(
            dim=whole(data, "dim", where, least=1),
            head_dim=whole(data, "head_dim", where, least=1),
            heads=tuple(lists["heads"]),
            hidden=tuple(lists["hidden"]),
        )


@dataclass(frozen=True)
class Cost:
    """What one model takes.

    Attributes:
        params: number of parameters.
        bytes: of the parameters in float32.
        macs: multiply-accumulates of one image, in matrix products and the patch convolution.
        memory: bytes while running: the parameters twice (engines keep a packed copy beside the
            file's) and the largest set of activations that live at once.
    """

    params: int
    bytes: int
    macs: int
    memory: int


def keep_heads(geometry: Geometry, keep: int) -> Widths:
    """Return the widths of a sub-model with `keep` of the heads, and every width in proportion.

    Raises:
        UsageError: `keep` is not from 1 to the number of heads.
    """
    if not 1 <= keep <= geometry.heads:
        raise UsageError(f"a sub-model keeps 1 to {geometry.heads} heads, got {keep}")
    return Widths(
        dim=keep * geometry.head_dim,
        head_dim=geometry.head_dim,
        heads=(keep,) * geometry.depth,
        hidden=(max(1, keep * geometry.hidden // geometry.heads),) * geometry.depth,
    )


def full_cost(geometry: Geometry) -> Cost:
    """Return the cost of the whole model with its head, every token computed to the end."""
    widths = keep_heads(geometry, geometry.heads)
    return cost(geometry, widths, outputs=geometry.classes, all_tokens=True)


def cost(geometry: Geometry, widths: Widths, *, outputs: int = 0, all_tokens: bool = False) -> Cost:
    """Return what a model of these widths takes.

    Args:
        geometry: of the full model: image, patches.
        widths: what is kept.
        outputs: size of a head on the class token; 0 where the features are sent.
        all_tokens: whether the last block computes all tokens. A sub-model does not: only its class
            token is read.
    """
    n, d, depth = geometry.tokens, widths.dim, len(widths.heads)
    patches, pixels = n - 1, geometry.in_chans * geometry.patch_size**2
    params = d * pixels + d + d + n * d + 2 * d + outputs * (d + 1)
    macs = patches * pixels * d + outputs * d
    largest = patches * pixels + n * d
    for block, (heads, hidden) in enumerate(zip(widths.heads, widths.hidden, strict=True)):
        a = heads * widths.head_dim
        params += 4 * d + 3 * a * (d + 1) + d * (a + 1) + hidden * (d + 1) + d * (hidden + 1)
        rows = n if all_tokens or block < depth - 1 else 1
        macs += rows * d * a + 2 * n * d * a + 2 * rows * n * a + rows * a * d
        macs += 2 * rows * d * hidden
        attention = n * d + (rows + 2 * n) * a + 2 * heads * rows * n + rows * a
        largest = max(largest, n * d + attention, 2 * rows * (d + hidden))
    return Cost(params, FLOAT * params, macs, FLOAT * (2 * params + largest))
