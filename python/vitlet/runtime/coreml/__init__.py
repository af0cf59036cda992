"""Executes Core ML programs (`.mlpackage`) on any system, operation by operation.

executor = vitlet.runtime.CoreMLExecutor("model.mlpackage")
executor.run({"image": picture})               # {"logits": (1, 1000) float32}
executor.run({"image": picture}, watch=print)  # every value inside, too

Reading the files is coremltools' part; every number is computed here, with torch and numpy as
kernels. Both are imported when a package is opened. What a device's GPU and Neural Engine do with
the same program is not simulated.
"""

from vitlet.runtime.coreml.executor import CoreMLExecutor, Intercept, Operation, Value, Watch
from vitlet.runtime.coreml.features import Feature
from vitlet.runtime.coreml.state import State

__all__ = ["CoreMLExecutor", "Feature", "Intercept", "Operation", "State", "Value", "Watch"]
