"""What `benchmarks/shiftadd.py` trains: two small models, their conversions, each kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitlet
from vitlet.compress.expert_latency import ExpertTimes, measure_times, read_times, write_times
from vitlet.compress.finetune import FineTuning, finetune
from vitlet.compress.pictures import Pictures
from vitlet.compress.profile import profile
from vitlet.compress.shift_add import mixture_sizes, shift_add
from vitlet.compress.training import Recipe, Run, file_journal, train
from vitlet.data.labelled import fashion_mnist
from vitlet.data.spec import Preprocess
from vitlet.layers.mixture_linear import MixtureLinear
from vitlet.layers.shift_linear import ShiftLinear
from vitlet.models.pvt_v2 import PVTv2

SPEC = Preprocess(size=(28, 28), resize_to=28, mean=(0.2860,), std=(0.3530,), mode="L")
PVT: dict[str, Any] = {
    "dims": (32, 64, 96, 128), "depths": (2, 2, 2, 2), "heads": (1, 2, 3, 4),
    "mlp_ratios": (4, 4, 4, 4), "attention": "softmax",
    "num_classes": 10, "img_size": 28, "in_chans": 1,
}  # fmt: skip
CALIBRATION = 1024
BASE_PORTION = 5_000
FEATURES = 4.0  # weight of what the original's blocks give


@dataclass(frozen=True)
class Amounts:
    """Pictures that pass in training, in epochs of `portion`.

    Attributes:
        base: of the PVT from random weights.
        attention: after attention was converted.
        linear: after linear layers were.
        portion: pictures in an epoch, after which a stopped run goes on.
    """

    base: int = 90_000
    attention: int = 40_000
    linear: int = 10_000
    portion: int = 2_500


# What stage 2 makes of the MLPs' linear layers, and the name of the row.
LINEAR = {"mlp": "shift", "moe": "moe"}


class Bench:
    """One model, its data and its runs in a work folder; everything in it can be resumed."""

    def __init__(self, kind: str, work: Path, dataset: Path | None, amounts: Amounts) -> None:
        self.kind, self.work, self.amounts = kind, work, amounts
        self.data = fashion_mnist("train", dataset)
        self.pictures = Pictures(self.data, SPEC)
        self.judged = Pictures(fashion_mnist("test", dataset), SPEC)
        self.model: nn.Module = vitlet.create_model("vit_fashion") if kind == "vit" else self._pvt()
        self.images = self.pictures.batch(torch.arange(CALIBRATION))

    def _pvt(self) -> nn.Module:
        torch.manual_seed(0)
        model, amounts = PVTv2(**PVT), self.amounts
        mirrored = Pictures(self.data, SPEC, mirror=True)

        def loss(indices: Tensor, rng: torch.Generator) -> Tensor:
            x = mirrored.batch(indices, mirrored.draw_views(len(indices), rng))
            return F.cross_entropy(model(x), mirrored.labels[indices], label_smoothing=0.1)

        recipe = Recipe(epochs=amounts.base // BASE_PORTION, batch=64, lr=2e-3)
        inputs = {"data": self.data.fingerprint(), "model": repr(PVT), "portion": BASE_PORTION}

        def order(rng: torch.Generator) -> Tensor:
            return mirrored.shuffled(rng)[:BASE_PORTION]

        run = Run("base", model, order, loss, recipe, 0, inputs)
        train(run, self.work / "base", self.journal)
        return model.eval()

    @property
    def journal(self) -> Callable[[dict[str, Any]], None]:
        """Writes to the folder's journal and to the screen."""
        write = file_journal(self.work / "journal.jsonl")

        def note(entry: dict[str, Any]) -> None:
            write(entry)
            shares = f" dense share {entry['dense_share']}" if "dense_share" in entry else ""
            print(
                f"  {self.kind} {entry['run']}: epoch {entry['epoch']}/{entry['epochs']} loss "
                f"{entry['loss']:.4f} {entry['seconds']:.1f} s{shares}",
                flush=True,
            )

        return note

    def times(self) -> ExpertTimes:
        """Return the measured times of the layers that become mixtures."""
        path = self.work / "experts.json"
        if not path.is_file():
            write_times(
                measure_times(mixture_sizes(self.model, self.images[:1], layers="mlp")), path
            )
        return read_times(path)

    def converted(self, attention: bool, linear: str, layers: str = "mlp") -> nn.Module:
        """Return the original after conversions, without training."""
        model, _ = shift_add(
            self.model, attention="binary" if attention else "unchanged",
            linear=linear, layers=layers, calibration=self.images if attention else None,
            latency=self.times() if linear == "moe" else (6.0, 4.0),
        )  # type: ignore[call-overload] # fmt: skip
        return model

    def settings(self, pictures: int, lr: float, seed: int, batch: int = 32) -> FineTuning:
        """Return what a stage of so many pictures is trained with."""
        epochs = max(1, pictures // self.amounts.portion)
        return FineTuning(
            Recipe(epochs=epochs, batch=batch, lr=lr, average=0.995),
            smoothing=0.0, distillation=0.9, features=FEATURES, limit=self.amounts.portion,
            seed=seed,
        )  # fmt: skip

    def tuned(self, model: nn.Module, name: str, settings: FineTuning) -> nn.Module:
        """Fine-tune by the original's answers, or take what was done."""
        return finetune(
            model, self.data, settings, work=self.work / name, teacher=self.model, preprocess=SPEC,
            progress=self.journal,
        )  # fmt: skip

    def attention(self, seed: int) -> nn.Module:
        """Return the model with additive attention after its fine-tuning."""
        settings = self.settings(self.amounts.attention, 1.5e-3, seed)
        return self.tuned(self.converted(True, "dense"), f"attention-s{seed}", settings)

    def linear(self, row: str, seed: int) -> nn.Module:
        """Return the model whose MLPs were converted too, after its fine-tuning."""
        times = self.times() if row == "moe" else (6.0, 4.0)
        torch.manual_seed(seed)  # of the routers
        model, _ = shift_add(
            self.attention(seed), attention="unchanged", linear=LINEAR[row], latency=times
        )  # type: ignore[call-overload]
        settings = self.settings(self.amounts.linear, 5e-4, seed)
        return self.tuned(model, f"{row}-s{seed}", settings)

    def mixtures(self, seed: int) -> nn.Module:
        """Return the original with mixtures in its MLPs and softmax attention, fine-tuned."""
        torch.manual_seed(seed)  # of the routers
        model = self.converted(False, "moe")
        settings = self.settings(self.amounts.linear, 5e-4, seed)
        return self.tuned(model, f"mixtures-s{seed}", settings)

    def control(self) -> nn.Module:
        """Return the original after as much training as the converted ones get in all."""
        both = self.amounts.attention + self.amounts.linear
        return self.tuned(self.model, "control-s0", self.settings(both, 1.5e-3, 0))

    @torch.no_grad()
    def judge(self, model: nn.Module) -> dict[str, Any]:
        """Return accuracy on the 10,000 test pictures, shares of the tokens, bytes and energy."""
        right, shares = 0, []
        mixtures = [part for part in model.modules() if isinstance(part, MixtureLinear)]
        parts = torch.split(torch.arange(len(self.judged)), 250)
        for part in parts:
            answer = model.eval()(self.judged.batch(part)).argmax(1)
            right += int((answer == self.judged.labels[part]).sum())
            shares.append([float(m.shares[0]) for m in mixtures if m.shares is not None])
        row: dict[str, Any] = {"accuracy": right / len(self.judged)}
        if mixtures:
            wanted = [m.wanted_shares[0] for m in mixtures]
            by_layer = torch.tensor(shares).mean(0).tolist()
            row |= {
                "dense_shares": by_layer, "wanted_shares": wanted,
                "dense_share": sum(by_layer) / len(by_layer),
                "wanted_share": sum(wanted) / len(wanted),
            }  # fmt: skip
        return row | self.price(model)

    def price(self, model: nn.Module) -> dict[str, Any]:
        """Return modelled energy of one picture and the bytes of the converted layers' weights."""
        pictures = self.judged.batch(torch.arange(16))
        each = [profile(model, picture[None]) for picture in pictures]
        return {
            "modelled_mj": sum(p.modelled_mj for p in each) / len(each),
            "multiplies": sum(p.total.multiplies for p in each) / len(each),
            "weight_bytes": each[0].total.weight_bytes,
            **shift_bytes(model),
        }


def shift_bytes(model: nn.Module) -> dict[str, int]:
    """Return bytes of the shift layers' weights in float32, and as codes with their scales."""
    layers = [part for part in model.modules() if isinstance(part, ShiftLinear)]
    codes = sum(-(-part.weight.shape[1] // 2) * part.weight.shape[0] for part in layers)
    scales = sum(4 * part.weight.shape[0] for part in layers)
    return {
        "shift_fp32_bytes": sum(4 * part.weight.numel() for part in layers),
        "shift_bytes": codes + scales,
    }
