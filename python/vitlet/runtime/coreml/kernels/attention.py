"""Scaled dot-product attention in one operation (iOS 18)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitlet.runtime.coreml.call import Call, half
from vitlet.runtime.coreml.kernels.activation import softmax_along
from vitlet.runtime.coreml.kernels.linear import product
from vitlet.runtime.coreml.table import op


@op("scaled_dot_product_attention")
def attention(call: Call) -> Tensor:
    """softmax(q k^T / sqrt(E) + mask) v (Vaswani et al., 1706.03762).

    q (*, L, E), k (*, S, E), v (*, S, V); a bool mask says who takes part, a float one is added.
    The parts inside are rounded in stress mode only: they have no declared type.
    """
    query, key, value = call["query"], call["key"], call["value"]
    if min(query.ndim, key.ndim, value.ndim) < 2 or query.shape[-1] != key.shape[-1]:
        raise call.bad(f"query of shape {tuple(query.shape)}, key of {tuple(key.shape)}")
    batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    call.room([*batch, query.shape[-2], key.shape[-2]])
    scale = 1 / math.sqrt(query.shape[-1])
    if call.stressed:
        # Scaled before the product: that is the kinder order for float16.
        scores = product(half(query * scale), key.mT, True)
    else:
        scores = (query @ key.mT) * scale
    mask = call.get("attn_mask")
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        else:
            scores = scores + mask
    weights = softmax_along(half(scores) if call.stressed else scores, -1, call.stressed)
    return product(half(weights) if call.stressed else weights, value, call.stressed)
