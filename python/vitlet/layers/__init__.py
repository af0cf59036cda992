"""Torch modules, one idea per file."""

from vitlet.layers.additive_token_mixer import AdditiveTokenMixer
from vitlet.layers.shift_linear import ShiftLinear

__all__ = ["AdditiveTokenMixer", "ShiftLinear"]
