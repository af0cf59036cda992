"""Multi-head softmax self-attention on tokens (B, N, dim) (Vaswani et al., 2017)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import UsageError
from vitlet.layers.fuse import layer_bias, with_parameters


def attend(qkv: Tensor, *, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T * scale + mask) v of each head, side by side.

    Args:
        qkv: (B, N, 3 * dim): queries, keys and values, each with its heads side by side.
        heads: number of heads; divides dim.
        scale: factor on the scores; 1 where it is already in the queries.
        mask: (N, N), added to the scores.

    Returns:
        (B, N, dim).
    """
    b, n, _ = qkv.shape
    # Splitting the channels first gives one Split in an exported graph, not three Slices.
    q, k, v = (part.reshape(b, n, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    if scale != 1.0:
        q = q * scale
    scores = q @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    mixed = F.softmax(scores, dim=-1) @ v
    return mixed.transpose(1, 2).reshape(b, n, -1)


class SelfAttention(nn.Module):
    """Joint query-key-value projection, `attend`, output projection: (B, N, dim) -> same.

    Args:
        dim: width of a token.
        heads: number of heads; divides `dim`.
        bias: whether the joint projection has a bias.
        names: attribute names of the joint and the output projection.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        bias: bool = True,
        names: tuple[str, str] = ("qkv", "proj"),
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UsageError(f"heads must divide dim, got dim {dim} and {heads} heads")
        self.heads, self.names = heads, names
        self.scale = (dim // heads) ** -0.5
        self.add_module(names[0], nn.Linear(dim, 3 * dim, bias=bias))
        self.add_module(names[1], nn.Linear(dim, dim))

    @property
    def joint(self) -> nn.Linear:
        """The projection to queries, keys and values."""
        module = self.get_submodule(self.names[0])
        assert isinstance(module, nn.Linear)
        return module

    @property
    def output(self) -> nn.Linear:
        """The output projection."""
        module = self.get_submodule(self.names[1])
        assert isinstance(module, nn.Linear)
        return module

    def replace(self, *, joint: nn.Linear | None = None, output: nn.Linear | None = None) -> None:
        """Put other layers in place of the projections."""
        for name, layer in zip(self.names, (joint, output), strict=True):
            if layer is not None:
                self.add_module(name, layer)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the N tokens; `mask` (N, N) is added to the scores."""
        joint, output = (self.get_submodule(name) for name in self.names)  # perhaps not nn.Linear
        mixed = attend(joint(x), heads=self.heads, scale=self.scale, mask=mask)
        out: Tensor = output(mixed)
        return out

    def reparameterized(self) -> SelfAttention:
        """Fold the scale of the scores into the query weights, where they are plain."""
        if self.scale != 1.0 and isinstance(self.get_submodule(self.names[0]), nn.Linear):
            weight, bias = self.joint.weight.detach().double(), layer_bias(self.joint)
            factor = weight.new_ones(weight.shape[0])
            factor[: factor.numel() // 3] = self.scale
            scaled = with_parameters(self.joint, weight * factor[:, None], bias * factor)
            self.replace(joint=scaled)
            self.scale = 1.0
        return self
