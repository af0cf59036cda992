"""Shows what `--keep-fp32 auto` held in float32, and what that cost and gave."""

from __future__ import annotations

from typing import Any

from vitlet.apps.output import Output, columns
from vitlet.runtime.manifest import Artifact

_ROWS = 12


def show_trade(out: Output, artifact: Artifact) -> None:
    """Print a Core ML program's trade, if the operations were chosen for it."""
    facts = artifact.details.get("keep_fp32", {})
    if facts.get("asked") != "auto":
        return
    kept, before, after = facts["kept"], facts["before"], facts["after"]
    if not kept:
        out.print(f"\n{artifact.file}: float16 meets the tolerance, nothing is held in float32")
        return
    out.print(
        f"\n{artifact.file}: {len(kept)} of {facts['operations']} operations are held in float32"
    )
    rows = [_figures("all float16", before), _figures("with these in float32", after)]
    out.print(columns(("", ">cosine", ">error", ">overflows", ">MB"), rows), "")
    listed = [
        (entry["layer"], entry["type"], entry["name"], f"{entry['largest']:.3g}")
        for entry in kept[:_ROWS]
    ]
    out.print(columns(("layer", "operation", "name", ">largest value"), listed))
    if len(kept) > _ROWS:
        out.print(f"and {len(kept) - _ROWS} more: details.keep_fp32 in the manifest has them all")


def _figures(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{figures['cosine']:.7f}",
        f"{figures['relative']:.1e}",
        str(figures["overflows"]),
        f"{figures['megabytes']:.2f}",
    )
