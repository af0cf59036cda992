"""What `vitlet export` and `vitlet demo` share: from the options of a user to `vitlet.export`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlet.apps import source
from vitlet.apps.hints import existing
from vitlet.errors import StorageError, UsageError, VerificationError

if TYPE_CHECKING:
    from torch import nn

    from vitlet.data.spec import Preprocess
    from vitlet.export.result import Report
    from vitlet.runtime.bundle import Bundle
    from vitlet.runtime.progress import Progress

_REPORTS = (".html", ".json")


@dataclass
class Request:
    """One export, checked when it is made; `run` does it.

    Attributes:
        model: a zoo name, a checkpoint file, or "pkg.module:function".
        to: targets, as `vitlet.export.targets.parse_targets` reads them.
        output: the bundle (ending in .vitlet) or the folder for it; None is the current one.
        weights: checkpoint of a zoo name.
        random_weights: whether a model without a checkpoint is meant.
        seed: of the random weights.
        config: num_classes, img_size and in_chans, None where not given.
        prompts: comma-separated class names, or a .txt file with one a line.
        report: file for the verification's report.
        verify: whether to check the artefacts.
        first_bad: whether to look for the first wrong layer after a difference.
        settings: further arguments of `vitlet.export`; None where not given.
        warnings: what the user must be told before the work starts.
        found: the verification's report, once there is one.
    """

    model: str
    to: str
    output: Path | None = None
    weights: Path | None = None
    random_weights: bool = False
    seed: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    prompts: str | None = None
    report: Path | None = None
    verify: bool = True
    first_bad: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    found: Report | None = None

    def __post_init__(self) -> None:
        self.config = {k: v for k, v in self.config.items() if v is not None}
        self.settings = {k: v for k, v in self.settings.items() if v is not None}
        self._check_targets()
        self._spec: Preprocess | None = None
        if source.is_factory(self.model):
            self._take_factory()
        else:
            self._take_zoo_model()
        self._check_report()
        if self.seed is not None and not self.random_weights:
            raise UsageError("--seed is the seed of --random-weights: nothing else is random")

    @property
    def bundle(self) -> Path:
        """Where the bundle goes."""
        name = f"{self.model.rpartition(':')[2]}.vitlet"
        if self.output is None:
            return Path(name)
        return self.output if self.output.suffix == ".vitlet" else self.output / name

    def run(self, progress: Progress) -> Bundle:
        """Export; see `vitlet.export.api.export` for what it raises."""
        from vitlet.export.api import export

        arguments: dict[str, Any] = dict(self.settings)
        if self.prompts is not None:
            arguments["prompts"] = prompt_names(self.prompts)
        if self.config and self._spec is None:
            arguments["config"] = self.config
        with _folder(self.bundle.parent):
            try:
                return export(
                    self._model(),
                    self.to,
                    self.bundle,
                    weights=self.weights,
                    spec=self._spec,
                    verify=self.verify,
                    progress=progress,
                    on_report=self._keep,
                    **arguments,
                )
            except VerificationError:
                if self.first_bad:
                    self._explain(progress)
                raise

    def _model(self) -> str | nn.Module:
        if source.is_factory(self.model):
            return source.call_factory(self.model)
        if self.random_weights:
            import torch

            torch.manual_seed(self.seed or 0)
        return self.model

    def _keep(self, report: Report) -> None:
        self.found = report
        if self.report is not None:
            from vitlet.export.report import write_report

            write_report(report, self.report)

    def _explain(self, progress: Progress) -> None:
        from vitlet.export.verify import verify

        self.found = verify(
            self.bundle.with_name(f"{self.bundle.name}.unverified"),
            self._model(),
            weights=self.weights,
            tolerance=self.settings.get("tolerance"),
            first_bad=True,
            progress=progress,
        )

    def _check_targets(self) -> None:
        from vitlet.export.options import resolve

        names = ("batch", "precision", "preprocess", "opset", "ios", "palette_mode", "triple",
                 "tvm_target", "tvm_extern", "accelerate", "accelerate_table", "keep_fp32",
                 "xctest", "tvm_tune", "tvm_tune_minutes", "tvm_records")  # fmt: skip
        resolve(self.to, **{k: v for k, v in self.settings.items() if k in names})

    def _check_report(self) -> None:
        from vitlet.export.tolerance import parse_tolerance

        if self.report is not None and self.report.suffix not in _REPORTS:
            raise UsageError(f"--report must end in .html or .json, got {self.report}")
        if "tolerance" in self.settings:
            parse_tolerance(self.settings["tolerance"])
        for given, name in (
            (self.report is not None, "--report"),
            (self.first_bad, "--first-bad"),
            ("tolerance" in self.settings, "--tol"),
        ):
            if given and not self.verify:
                raise UsageError(f"{name} is about verification: --no-verify excludes it")

    def _take_zoo_model(self) -> None:
        from vitlet.models.registry import model_info

        if source.is_checkpoint(self.model):
            if self.weights is not None:
                raise UsageError(
                    f"two checkpoints: {self.model} and {self.weights}; name the model, such as "
                    "`vitlet export casvit_xs --weights FILE`"
                )
            self.weights = Path(self.model)
            self.model = source.named_model(self.weights)
        elif source.is_path(self.model):
            raise UsageError(f"{self.model} is not a model: give a zoo name or a checkpoint")
        info = model_info(self.model)
        if self.weights is not None:
            existing(self.weights, "the checkpoint")
            if self.random_weights:
                raise UsageError("--weights and --random-weights exclude each other")
        elif info.weights is not None:
            if self.random_weights:
                raise UsageError(f"{self.model} has embedded weights: drop --random-weights")
        elif not self.random_weights:
            raise UsageError(
                f"{self.model} comes without weights: give --weights CHECKPOINT "
                f"(see `vitlet info {self.model}`), or --random-weights to try the machinery"
            )
        else:
            self.warnings.append(
                f"{self.model} has random weights: its answers mean nothing "
                "(give --weights CHECKPOINT for real ones)"
            )

    def _take_factory(self) -> None:
        """A model of the user's own builds and loads itself; only its input may need a word."""
        if self.weights is not None or self.random_weights or "num_classes" in self.config:
            raise UsageError(
                f"{self.model} builds and loads the model itself: --weights, --random-weights and "
                "--num-classes are for zoo names"
            )
        if not self.config:
            return
        from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess

        if "img_size" not in self.config:
            raise UsageError("--in-chans needs --img-size for a model of your own")
        side, channels = self.config["img_size"], self.config.get("in_chans", 3)
        if channels not in (1, 3):
            raise UsageError(f"--in-chans must be 1 (grey) or 3 (RGB), got {channels}")
        grey = channels == 1
        self._spec = Preprocess(
            size=(side, side),
            resize_to=side,
            interpolation="bicubic",
            mean=(sum(IMAGENET_MEAN) / 3,) if grey else IMAGENET_MEAN,
            std=(sum(IMAGENET_STD) / 3,) if grey else IMAGENET_STD,
            mode="L" if grey else "RGB",
        )
        self.warnings.append(
            f"{self.model}: taking shortest side to {side}, centre crop, bicubic, ImageNet mean "
            "and std; give your module an `info` with its own preprocessing if that is wrong"
        )


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, and remove what was made of it if the body fails and left nothing in it."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror}") from error
    try:
        yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def prompt_names(text: str) -> list[str]:
    """Return class names from "a dog,a cat" or from a .txt file with one a line.

    Raises:
        UsageError: the file cannot be read.
    """
    if not text.endswith(".txt"):
        return [name.strip() for name in text.split(",")]
    path = existing(Path(text), "the file of prompts")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
