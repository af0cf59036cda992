"""A mixture of multiplication primitives: each token through a dense or a shift layer.

ShiftAddViT (You et al., 2023, https://arxiv.org/abs/2306.06446). The chosen layer's output is
multiplied by its probability, so that the router learns (in the released code it does not).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitlet.errors import UsageError
from vitlet.layers.deepshift import DeepShiftLinear
from vitlet.layers.shift_linear import ShiftLinear

NOISE = 0.5  # standard deviation of the noise on the logits in training: 1 / number of experts


class Router(nn.Module):
    """Logits of the two layers for every token: (T, dim) -> (T, 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.gate(x)
        return logits


class MixtureLinear(nn.Module):
    """p * layer(x) for (..., K) -> (..., N), where `layer` is the likelier one of two.

    The choice of a token depends on that token alone. Where both are equally likely it is the
    dense one.

    Args:
        dim: K.
        out_dim: N.
        bias: of both layers.
        latency: measured time per token of the dense and the shift layer, in any unit; the balance
            losses want the same total time for both, so their shares of the tokens are inverse.
        upstream: as the released code computes: gates of 1, and DeepShift's layer in fixed point.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        bias: bool = True,
        latency: Sequence[float] = (6.0, 4.0),
        upstream: bool = False,
    ) -> None:
        super().__init__()
        if len(latency) != 2 or min(latency) <= 0:
            raise UsageError(f"latency must be two positive times, got {tuple(latency)}")
        self.upstream = upstream
        self.alpha = tuple(float(time) / sum(latency) for time in latency)
        self.gate = Router(dim)
        shift: nn.Module = DeepShiftLinear(dim, out_dim, bias)
        if not upstream:
            shift = ShiftLinear(dim, out_dim, bias=bias)
        self.experts = nn.ModuleList([nn.Linear(dim, out_dim, bias=bias), shift])
        self.balance: Tensor | None = None
        self.shares: Tensor | None = None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, latency: Sequence[float] = (6.0, 4.0)
    ) -> MixtureLinear:
        """Return a mixture of two copies of `linear` and a router that is undecided."""
        bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, bias=bias, latency=latency)
        for expert in layer.experts:
            expert.load_state_dict(linear.state_dict())
        return layer.train(linear.training)

    @property
    def wanted_shares(self) -> tuple[float, float]:
        """Shares of the tokens at which both layers take the same time."""
        return self.alpha[1], self.alpha[0]

    def train(self, mode: bool = True) -> MixtureLinear:
        """Switch training on or off; off lets go of the last step's graph."""
        if not mode:
            self.balance = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each token by its layer's matrix."""
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.gate(tokens)
        noisy = logits + NOISE * torch.randn_like(logits) if self.training else logits
        chances = noisy.softmax(-1)
        second = noisy[:, 1] > noisy[:, 0]
        if self.training:
            self.balance = self._balance(logits, noisy, chances)
        if torch.compiler.is_exporting():
            # A graph's sizes cannot depend on values: both layers run, and one is taken.
            both = [expert(tokens) for expert in self.experts]
            out = torch.where(second[:, None], both[1], both[0])
        else:
            self.shares = torch.stack([~second, second]).float().mean(1).detach()
            out = self._dispatch(tokens, second)
        if not self.upstream:
            out = out * torch.where(second, chances[:, 1], chances[:, 0])[:, None]
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def _dispatch(self, tokens: Tensor, second: Tensor) -> Tensor:
        """Run each layer on its tokens, which stay in their order."""
        parts = [torch.nonzero(chosen)[:, 0] for chosen in (~second, second)]
        outputs = [expert(tokens[part]) for expert, part in zip(self.experts, parts, strict=True)]
        order = torch.argsort(torch.cat(parts))
        return torch.cat(outputs)[order]

    def _balance(self, logits: Tensor, noisy: Tensor, chances: Tensor) -> Tensor:
        """Return the importance and load losses of ShiftAddViT."""
        alpha = logits.new_tensor(self.alpha)
        # Chance that a layer would be chosen again under fresh noise on its own logit.
        away = (logits - noisy.flip(-1).detach()) / NOISE
        load = 0.5 * (1 + torch.erf(away / 2**0.5))
        return _spread(alpha * chances.sum(0)) + _spread(alpha * load.sum(0))


def balance_loss(model: nn.Module) -> Tensor:
    """Return the mean balance loss of the last forward pass over all mixtures, to add to a loss.

    Raises:
        UsageError: no mixture of the model has run in training mode.
    """
    found = [
        layer.balance
        for layer in model.modules()
        if isinstance(layer, MixtureLinear) and layer.balance is not None
    ]
    if not found:
        raise UsageError("no MixtureLinear of this model has run in training mode")
    return torch.stack(found).mean()


def _spread(amounts: Tensor) -> Tensor:
    """Return the squared coefficient of variation."""
    return amounts.var(unbiased=False) / amounts.mean().square().clamp_min(1e-10)
