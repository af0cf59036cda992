"""Chooses, among a bundle's artefacts, the one to run here; says why when there is none."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path

from vitlet.errors import MissingDependencyError, UnsupportedError, UsageError
from vitlet.runtime.bundle import Bundle
from vitlet.runtime.elf import cpu_flags
from vitlet.runtime.engine import Engine
from vitlet.runtime.manifest import Artifact

# engine -> (target in the manifest, module it needs, extra that brings it), in order of preference;
# "coreml" checks numbers (vitlet.runtime.coreml.engine) and is never chosen by "auto"
CHECKING = "coreml"
SLOW = "the coreml engine checks a program's numbers: its time and memory are not a phone's"
ENGINES = {
    "onnxruntime": ("onnx", "onnxruntime", "runtime"),
    "tvm": ("tvm", "tvm_ffi", "tvm"),
    "coreml": ("coreml", "coremltools", "coreml"),
}
_ALIASES = {"ort": "onnxruntime", "onnx": "onnxruntime", "mlpackage": "coreml", "ios": "coreml"}


def engine_name(name: str) -> str:
    """Return the engine that a name or alias stands for; "auto" stays.

    Raises:
        UsageError: there is no such engine.
    """
    name = _ALIASES.get(name, name)
    if name != "auto" and name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}: choose auto, {', '.join(ENGINES)}")
    return name


def select(bundle: Bundle, graph: str, engine: str) -> tuple[str, Artifact]:
    """Choose the engine and artefact for a graph.

    "auto" takes the first of ONNX Runtime and TVM that the bundle has and that runs here; the
    checking engine "coreml" runs only where it is asked for.

    Raises:
        UsageError: the bundle has no such graph or no artefact for the engine.
        UnsupportedError: it has one, for other machines.
        MissingDependencyError: the engine is not installed.
    """
    engine = engine_name(engine)
    there = [artifact for artifact in bundle.manifest.artifacts if artifact.graph == graph]
    if not there:
        graphs = sorted({artifact.graph for artifact in bundle.manifest.artifacts})
        raise UsageError(
            f"{bundle.path.name} has no graph {graph!r}; it has {', '.join(graphs) or 'none'}"
        )
    has = ", ".join(f"{artifact.target} ({artifact.file})" for artifact in there)
    problems: list[Exception] = []
    for name in ENGINES if engine == "auto" else (engine,):
        target = ENGINES[name][0]
        candidates = [artifact for artifact in there if artifact.target == target]
        if not candidates:
            continue
        if engine == "auto" and name == CHECKING:
            problems.append(_only_to_check(candidates[0]))
            continue
        problem, artifact = _runs_here(name, candidates)
        if problem is None:
            return name, artifact
        problems.append(problem)
    if not problems:
        raise UsageError(f"{bundle.path.name} has nothing for the engine {engine}; it has {has}")
    if len(problems) == 1:
        raise problems[0]
    missing = any(isinstance(problem, MissingDependencyError) for problem in problems)
    kind = MissingDependencyError if missing else UnsupportedError
    raise kind("nothing here can run this bundle: " + "; ".join(str(p) for p in problems))


def open_engine(
    name: str, path: Path, artifact: Artifact | None, threads: int, accelerate: bool = True
) -> Engine:
    """Load a graph into an engine; each engine's module is imported only when it is used."""
    makers: dict[str, Callable[[], Engine]] = {}

    def ort() -> Engine:
        from vitlet.runtime.ort import OrtEngine

        return OrtEngine(path, artifact, threads, accelerate)

    def tvm() -> Engine:
        from vitlet.runtime.tvm import TvmEngine

        return TvmEngine(path, artifact, threads)

    def coreml() -> Engine:
        from vitlet.runtime.coreml.engine import CoreMLEngine

        return CoreMLEngine(path, artifact, threads=threads)

    makers = {"onnxruntime": ort, "tvm": tvm, "coreml": coreml}
    return makers[name]()


def _only_to_check(artifact: Artifact) -> UnsupportedError:
    return UnsupportedError(
        f"{artifact.file} is a Core ML model: it runs in an app on iOS or macOS; to check its "
        f'numbers here, slowly, ask for the engine "{CHECKING}"; to run here, export to ONNX or TVM'
    )


def _runs_here(name: str, candidates: list[Artifact]) -> tuple[Exception | None, Artifact]:
    _, module, extra = ENGINES[name]
    artifact = candidates[0]
    if name == "tvm":
        fitting = [a for a in candidates if _machine(a) in ("", platform.machine().lower())]
        if not fitting:
            triples = ", ".join(str(a.details.get("triple")) for a in candidates)
            return UnsupportedError(
                f"the TVM artefact was compiled for {triples}, this machine is "
                f"{platform.machine()}: export with --triple for this machine"
            ), artifact
        artifact = _best(fitting)
    if importlib.util.find_spec(module) is None:
        return MissingDependencyError(
            f'{name} is needed to run {artifact.file}: pip install "vitlet[{extra}]"'
        ), artifact
    return None, artifact


def _best(fitting: list[Artifact]) -> Artifact:
    """Of libraries for this kind of machine, the one that makes the most of this processor.

    If none can run here, the first: its loading says what is missing.
    """
    flags = cpu_flags()
    needs = {id(a): set(a.details.get("cpu_features", ())) for a in fitting}
    able = [a for a in fitting if needs[id(a)] <= flags or not flags]
    return max(able, key=lambda a: len(needs[id(a)])) if able else fitting[0]


def _machine(artifact: Artifact) -> str:
    """Return the machine of the artefact's triple as `platform.machine` spells it."""
    first = str(artifact.details.get("triple", "")).split("-")[0].lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(first, first)
