"""vitlet's operators as TensorIR: a definition each, and schedules for processors and for CUDA.

`define(sizes...)` returns the plain function; `schedule_cpu` and `schedule_cuda` return it with
loops that a target runs well. `vitlet.export.tvm_ops.convert` puts them in place of the torch
operators of the same names.
"""
