"""The options that every verb has, and the ones that several share, as annotated types."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

_PANEL = "Output"

Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=_PANEL),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print the result and errors only.", rich_help_panel=_PANEL),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Say more, warnings of other packages too.", rich_help_panel=_PANEL
    ),
]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", help="Draw no progress bars.", rich_help_panel=_PANEL)
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of everything random.", min=0)]
EngineName = Literal["auto", "ort", "tvm", "coreml"]
Engine = Annotated[
    EngineName,
    typer.Option(
        "--engine", help="What runs it; auto prefers ONNX Runtime. coreml checks, slowly (torch)."
    ),
]
