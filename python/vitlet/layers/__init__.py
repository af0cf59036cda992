"""Torch modules, one idea per file."""

from vitlet.layers.additive_token_mixer import AdditiveTokenMixer

__all__ = ["AdditiveTokenMixer"]
