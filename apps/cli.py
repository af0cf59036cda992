"""The command line: a table of contents. Each verb lives in its own file under `verbs/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitlet._extras import require
from vitlet.errors import MissingDependencyError

if TYPE_CHECKING:
    import typer


def build() -> typer.Typer:
    """Return the whole command line; heavy packages are imported when a verb runs."""
    from vitlet.apps.help import add_command, new_app, new_group
    from vitlet.apps.verbs.bench import bench
    from vitlet.apps.verbs.compress_shift_add import shift_add
    from vitlet.apps.verbs.demo import demo
    from vitlet.apps.verbs.doctor import doctor
    from vitlet.apps.verbs.export import export
    from vitlet.apps.verbs.info import info
    from vitlet.apps.verbs.inspect import inspect
    from vitlet.apps.verbs.keys import init, issue, revoke
    from vitlet.apps.verbs.models import models
    from vitlet.apps.verbs.partition_evaluate import evaluate
    from vitlet.apps.verbs.partition_export import export as export_plan
    from vitlet.apps.verbs.partition_plan import plan
    from vitlet.apps.verbs.partition_simulate import simulate
    from vitlet.apps.verbs.partition_train import train
    from vitlet.apps.verbs.predict import predict
    from vitlet.apps.verbs.run import run
    from vitlet.apps.verbs.status import status
    from vitlet.apps.verbs.top import top
    from vitlet.apps.verbs.verify import verify
    from vitlet.apps.verbs.worker import worker

    app, command = new_app()
    command("models", "Look around")(models)
    command("info", "Look around")(info)
    command("doctor", "Look around")(doctor)
    command("export", "Make and prove")(export)
    command("verify", "Make and prove")(verify)
    command("inspect", "Make and prove")(inspect)
    command("bench", "Run and measure")(bench)
    command("predict", "Run and measure")(predict)
    command("demo", "Run and measure")(demo)
    compress = new_group(app, "compress", "Make and prove", "Make a model cheaper.")
    add_command(compress, "shift-add", "Methods")(shift_add)
    text = "Split a plain ViT by class over several devices."
    partition = new_group(app, "partition", "Split over devices", text)
    add_command(partition, "plan", "In this order")(plan)
    add_command(partition, "train", "In this order")(train)
    add_command(partition, "export", "In this order")(export_plan)
    add_command(partition, "evaluate", "In this order")(evaluate)
    add_command(partition, "simulate", "To run it")(simulate)
    keys = new_group(partition, "keys", "To run it", "Make certificates for a cluster's devices.")
    add_command(keys, "init", "In this order")(init)
    add_command(keys, "issue", "In this order")(issue)
    add_command(keys, "revoke", "In this order")(revoke)
    command("worker", "Split over devices")(worker)
    command("run", "Split over devices")(run)
    command("status", "Split over devices")(status)
    command("top", "Split over devices")(top)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises, never prints a traceback.

    Args:
        argv: the arguments after the program's name; None takes `sys.argv`.
    """
    try:
        require("typer", extra="runtime", why="run the command line")
        require("rich", extra="runtime", why="print tables")
    except MissingDependencyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    from vitlet.apps.frame import run

    return run(build(), argv)
