"""What a verb prints: the result on stdout, everything else on stderr.

While an `Output` is open, nothing but the result reaches stdout: lines that other packages print,
from Python or from C, go to stderr, so that `--json` always gives JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from vitlet._quiet import others_silenced
from vitlet.apps.plain import plain
from vitlet.apps.progress import Bar, Steps

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PADDING = re.compile(r" +(?=\n)")  # what a table puts after its last column
PIPE_WIDTH = 160  # columns of a table that goes to a file or another program


class Output:
    """The streams of one run of a verb; use it in a `with` statement.

    Args:
        json: print the result as JSON instead of tables.
        quiet: no log lines, hints or progress.
        verbose: more log lines, and other packages' warnings.
        progress: draw progress on a terminal.
    """

    def __init__(self, json: bool, quiet: bool, verbose: bool, progress: bool) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose and not quiet
        self._steps = Steps(enabled=progress and not quiet, log=self.log)
        self._stack = ExitStack()
        self._stdout: TextIO = sys.stdout
        self._consoles: dict[str, Console] = {}

    def __enter__(self) -> Output:
        self._stdout = self._stack.enter_context(_stdout_kept_for_results())
        if not self.verbose:
            self._stack.enter_context(others_silenced())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def console(self) -> Console:
        """Rich console on stdout, for results."""
        return self._console("stdout", self._stdout)

    def result(self, data: Any, show: Callable[[], None]) -> None:
        """Print the verb's result: `data` as JSON, or whatever `show` prints."""
        if self.json:
            text = json.dumps(plain(data), indent=2, ensure_ascii=not _is_utf8(self._stdout))
            self._stdout.write(text + "\n")
        else:
            show()
        self._stdout.flush()

    def line(self, data: Any) -> None:
        """Print a part of an endless result as JSON on one line."""
        text = json.dumps(plain(data), ensure_ascii=not _is_utf8(self._stdout))
        self._stdout.write(text + "\n")
        self._stdout.flush()

    def print(self, *what: RenderableType) -> None:
        """Print a part of the result on stdout (not for `--json`), a line or table each."""
        console = self.console
        with console.capture() as captured:
            for part in what:
                console.print(part)
        self._stdout.write(_PADDING.sub("", captured.get()))
        self._stdout.flush()  # in the right order with what goes to stderr

    def log(self, line: str) -> None:
        """Say something on stderr."""
        if not self.quiet:
            self._console("stderr", sys.stderr).print(line, markup=False, soft_wrap=True)

    def detail(self, line: str) -> None:
        """Say something on stderr that only `--verbose` wants."""
        if self.verbose:
            self.log(line)

    def warn(self, line: str) -> None:
        """Say on stderr, with `--quiet` too, what the user must not overlook."""
        from rich.text import Text

        text = Text.assemble(("warning: ", "bold yellow"), line)
        self._console("stderr", sys.stderr).print(text, soft_wrap=True)

    def next(self, *commands: str) -> None:
        """Print on stderr what to type next."""
        if self.quiet or self.json:
            return
        from rich.text import Text

        console = self._console("stderr", sys.stderr)
        for number, command in enumerate(commands):
            lead = "\nnext: " if number == 0 else "      "
            console.print(Text.assemble((lead, "dim"), (command, "cyan")), soft_wrap=True)

    def progress(self, step: str) -> contextlib.AbstractContextManager[object]:
        """Show that `step` is under way; what `vitlet.runtime.progress.Progress` asks for."""
        return self._steps.step(step)

    def bar(self, text: str, total: int) -> contextlib.AbstractContextManager[Bar]:
        """Show how many of `total` things are done; the function it gives counts one more."""
        return self._steps.bar(text, total)

    def _console(self, name: str, stream: TextIO) -> Console:
        if name not in self._consoles:
            from rich.console import Console

            wide = not stream.isatty() and "COLUMNS" not in os.environ
            self._consoles[name] = Console(
                file=stream,
                highlight=False,
                emoji=False,
                width=PIPE_WIDTH if wide else None,
            )
        return self._consoles[name]


def columns(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None
) -> RenderableType:
    """Return a table without lines.

    A column whose head starts with ">" is aligned right; "~" cuts what does not fit.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
        title=title,
        title_justify="left",
        title_style="bold",
    )
    for head in heads:
        right = head.startswith(">")
        table.add_column(
            head.lstrip(">~"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    for row in rows:
        cells = [cell if isinstance(cell, Text) else Text(str(cell)) for cell in row]
        for head, cell in zip(heads, cells, strict=True):
            if head.startswith("~"):  # on the cell: a column that may not wrap is not shrunk first
                cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells)
    return table


def facts(rows: Sequence[tuple[str, Any]]) -> RenderableType:
    """Return "name  value" lines, aligned."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return table


def mark(good: bool, text: str | None = None) -> Any:
    """Return "yes" in green or "no" in red, or another text in those colours."""
    from rich.text import Text

    word = ("yes" if good else "no") if text is None else text
    return Text(word, style="green" if good else "red")


def _is_utf8(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"


@contextlib.contextmanager
def _stdout_kept_for_results() -> Iterator[TextIO]:
    """Give the true stdout; until the end, prints and C code that write to it reach stderr."""
    true = sys.stdout
    try:
        is_real = true is sys.__stdout__ and true is not None and true.fileno() == 1
    except (OSError, ValueError):  # stdout is closed or is a buffer
        is_real = False
    if not is_real:
        with contextlib.redirect_stdout(sys.stderr):
            yield true
        return
    true.flush()
    saved = os.dup(1)
    results = io.TextIOWrapper(
        os.fdopen(os.dup(1), "wb"), encoding=true.encoding, errors=true.errors, write_through=True
    )
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield results
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        results.close()
