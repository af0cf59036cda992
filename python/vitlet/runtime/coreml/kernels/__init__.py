"""Kernels of MIL operations, a family a file; they are entered into `table` by `op`."""
