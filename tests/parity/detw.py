"""Deterministic made-up weights and inputs for parity fixtures.  numpy only.

Everything is a pure function of (state_dict key, shape).  A consumer with its own
implementation regenerates identical weights by walking the fixture's key list.

Weight rules, first match wins (n = default_rng(crc32(key)).standard_normal(shape), float64,
C order; the result is computed in float64 and cast to float32 at the very end):
  R0 dtype is integer/bool                      -> not generated (left as upstream's)
  R1 key is 'logit_scale' or ends '.logit_scale'-> 2.6 + 0.1*n                (shape () or (1,))
  R2 last key part == 'running_var'             -> 1 + 0.1*|n|
  R3 last key part == 'running_mean'            -> 0.1*n
  R4 last key part is 'gamma', 'ls1', 'ls2' or starts with 'layer_scale'
                                                -> clip(0.3 + 0.075*n, 0.2, 1.0)  (any ndim)
  R9 (tested here, before R5) ShiftAddViT buffers and shift parameters, by last key part:
       'A' -> n;  'mvec' -> 0.6 + 0.02*n;  'anchor' -> n / sqrt(shape[-1]);
       'shift' -> -0.3 - 0.5*log2(prod(shape[1:])) + n;  'sign' -> n
  R5 last key part contains 'pos_emb', 'positional_embedding', 'cls_token', 'dist_token'
     or 'class_embedding'                       -> n / sqrt(shape[-1])  (any ndim)
  R6 len(shape) >= 2                            -> g * n / sqrt(prod(shape[1:])), where
       g = 1.5 if len(shape) == 2 and the key contains 'qkv' or 'in_proj' (sharper attention,
               so that a wrong attention scale or mask shows),
       g = 0.5 if len(shape) == 4, the key starts with 'network.' and contains '.attn.',
               '.mlp.' or '.local_perception.' (CAS-ViT blocks: no layer scale, and an
               attention that is quadratic in its input, so full gain overflows),
       g = 0.7 if len(shape) == 4, shape[0] > 1 and shape[1] == 1 (other depthwise convs),
       g = 1.2 if len(shape) == 4 otherwise,
       g = 1   otherwise.   The first that applies counts.
  R7 len(shape) == 1, last key part 'weight'    -> 1 + 0.1*n
  R8 anything else (biases, scalars)            -> 0.02*n
R5's words are looked for in the last key part only, and never when that part is 'weight' or
'bias' (so a conditional-positional-encoding conv is R6).
"""

import zlib

import numpy as np

GENERATOR_VERSION = 1
_POS = ("pos_emb", "positional_embedding", "cls_token", "dist_token", "class_embedding")

_CAS = (".attn.", ".mlp.", ".local_perception.")


def _n(key, shape):
    return np.random.default_rng(zlib.crc32(key.encode("utf-8"))).standard_normal(tuple(shape))


def rule(key, shape, dtype="float32"):
    last = key.rsplit(".", 1)[-1]
    if not str(dtype).replace("torch.", "").startswith(("float", "bfloat")):
        return "R0"
    if last == "logit_scale":
        return "R1"
    if last == "running_var":
        return "R2"
    if last == "running_mean":
        return "R3"
    if last in ("gamma", "ls1", "ls2") or last.startswith("layer_scale"):
        return "R4"
    if last in ("A", "mvec", "anchor", "shift", "sign"):
        return "R9"
    if last not in ("weight", "bias") and any(w in last for w in _POS):
        return "R5"
    if len(shape) >= 2:
        return "R6"
    if len(shape) == 1 and last == "weight":
        return "R7"
    return "R8"


def weight(key, shape, dtype="float32"):
    """One tensor, float32 ndarray, or None for R0 (keep upstream's value)."""
    r = rule(key, shape, dtype)
    if r == "R0":
        return None
    n = _n(key, shape)
    if r == "R1":
        v = 2.6 + 0.1 * n
    elif r == "R2":
        v = 1.0 + 0.1 * np.abs(n)
    elif r == "R3":
        v = 0.1 * n
    elif r == "R4":
        v = np.clip(0.3 + 0.075 * n, 0.2, 1.0)
    elif r == "R9":
        last = key.rsplit(".", 1)[-1]
        if last == "mvec":
            v = 0.6 + 0.02 * n
        elif last == "anchor":
            v = n / np.sqrt(shape[-1])
        elif last == "shift":
            v = -0.3 - 0.5 * np.log2(float(np.prod(shape[1:]))) + n
        else:
            v = n
    elif r == "R5":
        v = n / np.sqrt(shape[-1])
    elif r == "R6":
        g = 1.0
        if len(shape) == 2 and ("qkv" in key or "in_proj" in key):
            g = 1.5
        elif len(shape) == 4:
            if key.startswith("network.") and any(w in key for w in _CAS):
                g = 0.5
            elif shape[0] > 1 and shape[1] == 1:
                g = 0.7
            else:
                g = 1.2
        v = g * n / np.sqrt(float(np.prod(shape[1:])))
    elif r == "R7":
        v = 1.0 + 0.1 * n
    else:
        v = 0.02 * n
    return np.asarray(v, dtype=np.float64).astype(np.float32)


def state_dict(keys):
    """keys: iterable of (key, shape, dtype). Returns {key: float32 ndarray}, R0 keys absent."""
    out = {}
    for k, s, d in keys:
        w = weight(k, s, d)
        if w is not None:
            out[k] = w
    return out


def array(name, shape):
    """Plain N(0,1) float32 array seeded by name (op-level fixtures)."""
    return _n("array:" + name, shape).astype(np.float32)


def image(name, batch, size, chans=3):
    """(batch, chans, size, size) float32, marginally N(0,1), seeded by name and row index.

    Row b is (m0 + m1 + m2 + m3) / 2 where m0 is one value per channel, m1 a 2x2 grid, m2 a
    (size/32) grid and m3 full-resolution noise, each grid blown up by nearest repeat.  The
    coarse parts make two rows differ after global pooling.  size must divide by 32, or for
    other sizes the m2 grid is ceil(size/32) and the blown-up grid is cropped.
    """
    rows = []
    for b in range(batch):
        g = np.random.default_rng(zlib.crc32(f"image:{name}:{b}".encode()))
        acc = np.zeros((chans, size, size))
        for cells in (1, 2, -(-size // 32), size):
            c = g.standard_normal((chans, cells, cells))
            f = -(-size // cells)
            acc += np.kron(c, np.ones((1, f, f)))[:, :size, :size]
        rows.append(acc / 2.0)
    return np.stack(rows).astype(np.float32)


def tokens(name, batch=2, context=77, lengths=(29, 77)):
    """(batch, context) int64 CLIP ids: 49406, random ids in [1, 49405], 49407, then zeros.

    Row b holds lengths[b % len(lengths)] ids counting both special tokens.
    """
    out = np.zeros((batch, context), dtype=np.int64)
    for b in range(batch):
        g = np.random.default_rng(zlib.crc32(f"tokens:{name}:{b}".encode()))
        n = lengths[b % len(lengths)]
        out[b, 0] = 49406
        out[b, 1 : n - 1] = g.integers(1, 49406, size=n - 2)
        out[b, n - 1] = 49407
    return out
