"""The evidence of `benchmarks/shiftadd.py` as text; what was not run is left blank."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Get = Callable[[str], Row | None]
SEEDS = (0, 1, 2)
MODELS = {"vit": "vit_fashion (softmax, 50 tokens)", "pvt": "a small PVTv2 (softmax, 49 tokens)"}
ONESHOT = {
    "attention": "attention binary",
    "mlp": "all MLPs shift",
    "all": "all linear layers shift",
    "both": "attention binary, all MLPs shift",
}
TUNED = {
    "attention": "attention binary, linear layers dense",
    "mlp": "  + all MLPs shift",
    "moe": "  + MLPs mixtures",
    "mixtures": "attention unchanged, MLPs mixtures",
}


def lines(get: Get) -> list[str]:
    """Return all tables of which something is known."""
    text: list[str] = []
    for kind, title in MODELS.items():
        if get(f"{kind}-original") is not None:
            text += [*_accuracy(get, kind, title), ""]
    text += _bytes(get)
    text += _energy(get)
    text += _latency(get)
    return text or ["nothing has been run yet"]


def _accuracy(get: Get, kind: str, title: str) -> list[str]:
    original = get(f"{kind}-original")
    assert original is not None
    text = [
        f"{title}, Fashion-MNIST, 10,000 test pictures",
        f"{'':42} {'accuracy':>9} {'spread':>6} {'points':>7} {'seeds':>5} {'energy':>7}  notes",
        _line("original", [original], original),
    ]
    control = get(f"{kind}-control-s0")
    if control is not None:
        text.append(_line("original, trained as long", [control], original))
    for name, what in ONESHOT.items():
        row = get(f"{kind}-oneshot-{name}")
        if row is not None:
            text.append(_line(f"not trained: {what}", [row], original))
    for name, what in TUNED.items():
        rows = [row for seed in SEEDS if (row := get(f"{kind}-{name}-s{seed}")) is not None]
        if rows:
            text.append(_line(what, rows, original))
    return text


def _line(what: str, rows: list[Row], original: Row) -> str:
    values = [100 * row["accuracy"] for row in rows]
    spread = f"{statistics.stdev(values):6.2f}" if len(values) > 1 else f"{'':6}"
    below = statistics.fmean(values) - 100 * original["accuracy"]
    energy = statistics.fmean(row["modelled_mj"] for row in rows) / original["modelled_mj"]
    notes = []
    if "dense_share" in rows[0]:
        found, wanted = (
            100 * statistics.fmean(row[name] for row in rows)
            for name in ("dense_share", "wanted_share")
        )
        notes.append(f"dense share {found:.1f} %, wanted {wanted:.1f} %")
    if rows[0]["shift_bytes"]:
        smaller = rows[0]["shift_fp32_bytes"] / rows[0]["shift_bytes"]
        notes.append(f"shift weights {smaller:.2f}x smaller")
    return (
        f"{what:42} {statistics.fmean(values):7.2f} % {spread} {below:+7.2f} {len(rows):>5} "
        f"{100 * (energy - 1):+5.1f} %  {'; '.join(notes)}"
    ).rstrip()


def _bytes(get: Get) -> list[str]:
    row = get("bytes")
    if row is None:
        return []
    before, after, layers = row["original"], row["shift"], row["shift"]["shift_weight_bytes"]
    return [
        f"vit_fashion as ONNX, all {row['shift']['shift_layers']} linear layers of blocks shift: "
        f"their weights {row['fp32_weight_bytes']:,} -> {layers:,} bytes "
        f"({row['fp32_weight_bytes'] / layers:.2f}x), the file {before['bytes']:,} -> "
        f"{after['bytes']:,}",
        "",
    ]


def _energy(get: Get) -> list[str]:
    row = get("energy")
    if row is None:
        return []
    text = ["PVTv2-B0, modelled energy of one picture (not measured)"]
    for size, forms in row.items():
        softmax = forms["softmax"]["modelled_mj"]
        for name, form in forms.items():
            change = 100 * (form["modelled_mj"] / softmax - 1)
            text.append(
                f"  {size:>4} pixels  {name:30} {form['modelled_mj']:9.3f} mJ {change:+6.1f} %  "
                f"{form['multiplies'] / 1e6:8.1f} M multiplications"
            )
    return [*text, ""]


def _latency(get: Get) -> list[str]:
    text: list[str] = []
    for size in (224, 448, 896):
        row = get(f"latency-{size}")
        if row is None:
            continue
        if not text:
            about = row["machine"]
            text = [f"PVTv2-B0, one picture, one thread, ONNX Runtime, {about['isa']}"]
            text.append(f"  {'pixels':>6} {'':42} {'ms':>9} {'softmax':>8} {'linear':>7}")
        for name, form in row["forms"].items():
            softmax, linear = form.get("over_softmax"), form.get("over_linear")
            text.append(
                f"  {size:>6} {name:42} {form['ms']:9.1f} "
                f"{'' if softmax is None else f'{softmax:.2f}x':>8} "
                f"{'' if linear is None else f'{linear:.2f}x':>7}"
            )
    return text
