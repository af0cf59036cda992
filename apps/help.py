"""Help pages: no boxes, options under headings, 80 columns; colour only for a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

import vitlet

Row: TypeAlias = tuple[str, str]

_EPILOG = (
    "`vitlet VERB --help` explains a verb. "
    "Exit codes: 0 ok, 2 usage, 3 unsupported by a target, 4 verified and different, "
    "5 missing package, 6 corrupt or untrusted input, 7 deadline passed, 130 interrupted."
)
# What parameters are listed under when they name no heading; the shared flags come last.
_ARGUMENTS, _OPTIONS, _SHARED = "Arguments", "Options", "Output"
_RANGE = re.compile(r"\s*\[x[<>=\d]+\]|; x[<>=\d]+")  # "[x>=1]": nobody needs to be told


def _styled(text: str) -> str:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return typer.style(text, bold=True)


def _headings(command: TyperCommand | TyperGroup, context: Any) -> dict[str, list[Row]]:
    sections: dict[str, list[Row]] = {_ARGUMENTS: [], _OPTIONS: []}
    shared: list[Row] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        heading = getattr(parameter, "rich_help_panel", None) or _OPTIONS
        name, text = record[0], _RANGE.sub("", record[1])
        if parameter.param_type_name == "argument":
            sections[_ARGUMENTS].append((_bare(name), text.replace("  [required]", "")))
        elif heading == _SHARED or name.endswith("--help"):
            shared.append((name, "Show this page." if name.endswith("--help") else text))
        else:
            sections.setdefault(heading, []).append((name, text))
    if len(shared) == 1:  # only --help: not worth a heading
        sections[_OPTIONS] += shared
        shared = []
    return {heading: rows for heading, rows in {**sections, _SHARED: shared}.items() if rows}


def _bare(name: str) -> str:
    """Return an argument's name without its type and braces: "{FILE} <path>" is FILE."""
    return name.split(" <")[0].translate({ord("{"): None, ord("}"): None})


def _write(formatter: Any, sections: dict[str, list[Row]]) -> None:
    for heading, rows in sections.items():
        with formatter.section(_styled(heading)):
            formatter.write_dl(rows, col_max=24)


class HelpCommand(TyperCommand):
    """One verb, whose options are listed under their headings."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return [_bare(piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write(formatter, _headings(self, ctx))


class HelpGroup(TyperGroup):
    """The program, whose verbs are listed under their headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs, then the options."""
        sections: dict[str, list[Row]] = {}
        width = max(map(len, self.list_commands(ctx)))
        for name in self.list_commands(ctx):
            verb = self.get_command(ctx, name)
            if verb is not None and not verb.hidden:
                heading = getattr(verb, "rich_help_panel", None) or "Commands"
                sections.setdefault(heading, []).append(
                    (name.ljust(width), verb.get_short_help_str(64))
                )
        _write(formatter, sections)
        _write(formatter, _headings(self, ctx))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vitlet {vitlet.__version__}")
        raise typer.Exit


def new_app() -> tuple[typer.Typer, Callable[[str, str], Callable[[Any], Any]]]:
    """Return an empty program, and what adds a verb to it: `command(name, heading)(function)`."""
    app = typer.Typer(
        cls=HelpGroup,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )

    @app.callback(invoke_without_command=True)
    def start(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
        ] = False,
    ) -> None:
        """Put vision transformers on small devices: export, prove, measure, run."""
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    def command(name: str, heading: str) -> Callable[[Any], Any]:
        return add_command(app, name, heading)

    return app, command


def add_command(app: typer.Typer, name: str, heading: str) -> Callable[[Any], Any]:
    """Return what adds a verb to a program or group of verbs."""
    return app.command(
        name,
        cls=HelpCommand,
        rich_help_panel=heading,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )


def new_group(app: typer.Typer, name: str, heading: str, text: str) -> typer.Typer:
    """Add a verb that has verbs of its own, and return it."""
    group = typer.Typer(rich_markup_mode=None)

    @group.callback(invoke_without_command=True)
    def start(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    app.add_typer(
        group,
        name=name,
        cls=HelpGroup,
        help=text,
        rich_help_panel=heading,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )
    return group
