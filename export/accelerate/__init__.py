"""Replaces layers of ONNX graphs by vitlet's kernels, wherever these are faster here."""
