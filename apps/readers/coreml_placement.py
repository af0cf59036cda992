"""What is known to keep an operation of a Core ML program off the Neural Engine.

Core ML decides on the device, by its chip, system and the sizes at hand, and Apple lists nothing:
"no static documentation" (https://github.com/apple/coremltools/issues/1780). So every rule here
names who says so, and none is a promise that what it does not name runs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vitlet.apps.readers.coreml_walk import Op, Walk

UNKNOWN = "Core ML places operations on the device; Xcode's performance report shows where they ran"
_GUIDE = "https://ane-guide.readthedocs.io/en/latest/"
_SURFACE = _GUIDE + "part-1-machine/04-capability-surface.html"
_DESIGN = _GUIDE + "part-5-practice/17-model-design-rules.html"
_FORGE = "https://aneforge.readthedocs.io/en/latest/capabilities/"
_ISSUES = "https://github.com/apple/coremltools/issues/"
_MAX_RANK = 5
_KERNEL_WIDTH = 13
_EXTENT, _CHANNELS = 16384, 65536
_ARG_AXIS = 2048


@dataclass(frozen=True)
class Finding:
    """A rule that something in the program falls under.

    Attributes:
        why: what keeps it off the Neural Engine.
        source: address of who says so.
        ops: operation type -> names, or "input" -> names of inputs.
    """

    why: str
    source: str
    ops: dict[str, list[str]]

    @property
    def count(self) -> int:
        """How many operations or inputs."""
        return sum(len(names) for names in self.ops.values())


@dataclass(frozen=True)
class _Rule:
    why: str
    source: str
    applies: Callable[[Walk, Op], bool]


def findings(walk: Walk, ranged: list[str]) -> list[Finding]:
    """Return what keeps operations off the Neural Engine.

    Args:
        walk: through the program.
        ranged: inputs that take a range of shapes.
    """
    found = []
    if ranged:
        found.append(
            Finding(
                "with a range of shapes only the default one runs there (a list of shapes does not "
                "have this limit)",
                "https://developer.apple.com/forums/thread/724930",
                {"input": ranged},
            )
        )
    for rule in _RULES:
        ops: dict[str, list[str]] = {}
        for op in walk.ops:
            if rule.applies(walk, op):
                ops.setdefault(op.type, []).append(op.name)
        if ops:
            found.append(Finding(rule.why, rule.source, ops))
    return found


def _sizes(walk: Walk, op: Op) -> Iterator[tuple[int | None, ...]]:
    yield from (shape.sizes for shape in op.gives)
    for values in op.takes.values():
        yield from (walk.shapes[value].sizes for value in values if value in walk.shapes)


def _weight(walk: Walk, op: Op) -> tuple[int | None, ...]:
    names = op.takes.get("weight", [])
    return walk.shapes[names[0]].sizes if names and op.type.startswith("conv") else ()


def _is_large(walk: Walk, op: Op) -> bool:
    for sizes in _sizes(walk, op):
        if len(sizes) == 4:
            _, channels, *plane = (size or 0 for size in sizes)
            if channels > _CHANNELS or max(plane) > _EXTENT:
                return True
    return False


def _long_search(walk: Walk, op: Op) -> bool:
    names = op.takes.get("x", []) if op.type in ("reduce_argmax", "reduce_argmin") else []
    axes = walk.stored.get((op.takes.get("axis") or [""])[0])
    if not names or axes is None or axes.numbers is None or axes.numbers.size != 1:
        return False
    sizes, axis = walk.shapes[names[0]].sizes, int(axes.numbers.reshape(-1)[0])
    return -len(sizes) <= axis < len(sizes) and (sizes[axis] or 0) > _ARG_AXIS


_RULES = (
    _Rule(
        "computes in fp32, which runs on the CPU and the GPU",
        "https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html",
        lambda walk, op: op.precision == "fp32" and op.type not in ("cast", "classify"),
    ),
    _Rule(
        f"a tensor of more than {_MAX_RANK} dimensions, which Core ML does not take at all",
        _ISSUES + "2536",
        lambda walk, op: any(len(sizes) > _MAX_RANK for sizes in _sizes(walk, op)),
    ),
    _Rule(
        "recurrent layers do not run there",
        _ISSUES + "1780",
        lambda walk, op: op.type in ("gru", "lstm", "rnn"),
    ),
    _Rule(
        "scatters and products over an axis have no path there",
        _SURFACE,
        lambda walk, op: op.type.startswith("scatter") or op.type == "reduce_prod",
    ),
    _Rule(
        "gathers were seen to run on the CPU",
        _ISSUES + "1103",
        lambda walk, op: op.type.startswith("gather"),
    ),
    _Rule(
        f"a convolution kernel wider than {_KERNEL_WIDTH}",
        _DESIGN,
        lambda walk, op: (
            len(_weight(walk, op)) == 4 and (_weight(walk, op)[3] or 0) > _KERNEL_WIDTH
        ),
    ),
    _Rule(
        "3-D convolutions do not compile for it",
        _SURFACE,
        lambda walk, op: len(_weight(walk, op)) == 5,
    ),
    _Rule(
        f"a width or height over {_EXTENT}, or more than {_CHANNELS} channels",
        _DESIGN,
        _is_large,
    ),
    _Rule(
        f"an arg-max or arg-min over more than {_ARG_AXIS} numbers",
        _DESIGN,
        _long_search,
    ),
    _Rule(
        "integer arithmetic: its numbers are float16",
        _DESIGN,
        lambda walk, op: (
            op.precision == "integer"
            and op.type != "cast"
            and any(s.dtype.startswith(("int", "uint")) for s in op.gives)
        ),
    ),
    _Rule(
        "branches, loops and lists have no form there",
        _FORGE,
        lambda walk, op: op.type in ("cond", "while_loop") or "list" in op.type.split("_"),
    ),
)
