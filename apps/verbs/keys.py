"""`vitlet partition keys`: certificates for the devices of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns, facts

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the cluster's keys.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the device.")]


def init(
    folder: Folder,
    cluster: Annotated[
        str, typer.Option("--cluster", metavar="NAME", help="Of the cluster.")
    ] = "home",
    coordinator: Annotated[
        str, typer.Option("--coordinator", metavar="NAME", help="Of the first coordinator.")
    ] = "desk",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Make a cluster's key and a coordinator's certificate."""
    from vitlet.partition.cluster import certificates

    with Output(json, quiet, verbose, not no_progress) as out:
        member = certificates.init(folder, cluster, coordinator)
        result = {"cluster": cluster, "folder": folder, "coordinator": member}
        out.result(
            result,
            lambda: out.print(
                facts([("cluster", cluster), ("keys", folder), ("coordinator", member)])
            ),
        )
        out.log(f"keep {folder / certificates.CA_KEY} off the devices")
        out.next(f"vitlet partition keys issue {folder} pi-1")


def issue(
    folder: Folder,
    name: Name,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="It may send plans and requests.")
    ] = False,
    days: Annotated[
        int, typer.Option("--days", metavar="N", min=1, help="That it is valid.")
    ] = 365,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Make a device's certificate."""
    from vitlet.partition.cluster import certificates
    from vitlet.partition.cluster.identity import ROSTER

    with Output(json, quiet, verbose, not no_progress) as out:
        member = certificates.issue(folder, name, coordinator=coordinator, days=days)
        side = "coordinator" if coordinator else "worker"
        result = {"name": name, "role": side, "folder": member}
        rows = [("name", name), ("role", side), ("copy", member)]
        out.result(result, lambda: out.print(facts(rows)))
        out.log(
            f"copy {member} to {name}, and {folder / ROSTER} to the devices that have "
            "theirs; then restart them"
        )
        verb = "run PLAN IMAGES" if coordinator else "worker"
        out.next(f"vitlet {verb} --keys {member}")


def revoke(
    folder: Folder,
    name: Name,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Take a device off the roster: it is refused from then on."""
    from vitlet.partition.cluster import certificates
    from vitlet.partition.cluster.identity import ROSTER

    with Output(json, quiet, verbose, not no_progress) as out:
        common = certificates.revoke(folder, name)
        members = certificates.members(folder)
        result = {"revoked": common, "members": members}
        rows = [*members.items()]
        out.result(result, lambda: out.print(columns(("member", "role"), rows)))
        out.log(f"revoked {common}: copy {folder / ROSTER} to every device and restart it")
