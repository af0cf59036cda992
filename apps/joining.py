"""The options by which a verb takes part in a cluster, and what they mean together."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vitlet.partition.cluster.identity import Identity
    from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

_PANEL = "Network"
HOME = "home"
HERE = "127.0.0.1"
HEARING = 3.0  # seconds to wait for a coordinator's call

Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="NAME", rich_help_panel=_PANEL,
        help="Which cluster; by default that of --keys, or home.",
    ),
]  # fmt: skip
Listen = Annotated[
    list[str] | None,
    typer.Option(
        "--listen", metavar="HOST[:PORT]", rich_help_panel=_PANEL,
        help="Where others find this one; this machine only by default.",
    ),
]  # fmt: skip
Connect = Annotated[
    list[str] | None,
    typer.Option(
        "--connect", metavar="HOST[:PORT]", rich_help_panel=_PANEL,
        help="Whom to join; may come several times.",
    ),
]  # fmt: skip
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys", metavar="FOLDER", rich_help_panel=_PANEL,
        help="Certificates from `vitlet partition keys`; encrypts everything.",
    ),
]  # fmt: skip
Scout = Annotated[
    str,
    typer.Option(
        "--scout", metavar="INTERFACE", rich_help_panel=_PANEL,
        help="Look for others by multicast and UDP too; `auto` on all interfaces.",
    ),
]  # fmt: skip
InsecureLan = Annotated[
    bool,
    typer.Option(
        "--insecure-lan", rich_help_panel=_PANEL,
        help="Leave this machine without certificates: anybody may read and send.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Joining:
    """A cluster to take part in.

    Attributes:
        cluster: its name.
        network: addresses and certificates.
    """

    cluster: str
    network: Network

    @property
    def identity(self) -> Identity | None:
        """The certificates; None without."""
        return self.network.identity


def joining(
    cluster: str | None,
    listen: list[str] | None,
    connect: list[str] | None,
    keys: Path | None,
    scout: str,
    insecure_lan: bool,
    *,
    coordinator: bool,
    calls: bool = False,
) -> Joining:
    """Return what the options mean: a coordinator listens where workers look for one.

    With `scout` one that stays, and so `calls`, says by UDP where it listens.

    Raises:
        UsageError: they contradict each other, or leave this machine without certificates.
        CorruptInputError: the certificates are not good.
    """
    from vitlet.errors import UsageError
    from vitlet.partition.cluster.beacon import listen as hear
    from vitlet.partition.cluster.endpoints import PORT, endpoint, is_loopback
    from vitlet.partition.cluster.identity import load_identity
    from vitlet.partition.cluster.zenoh_transport import Network

    identity = None if keys is None else load_identity(keys)
    if identity is not None and cluster not in (None, identity.roster.cluster):
        raise UsageError(
            f"--cluster {cluster} does not fit --keys, which are of {identity.roster.cluster}"
        )
    name = identity.roster.cluster if identity is not None else cluster or HOME
    if coordinator:
        listen = listen or ([] if connect else [f"{HERE}:{PORT}"])
    else:
        if scout and not connect and (identity is not None or insecure_lan):
            # Where multicast fails: a coordinator that is there calls once a second.
            heard = hear(name, identity is not None, HEARING)
            connect = None if heard is None else [heard]
        connect = connect or ([] if listen else [f"{HERE}:{PORT}"])
        secure = identity is not None
        inside = all(is_loopback(endpoint(c, secure=secure, option="--connect")) for c in connect)
        listen = listen or ([f"{HERE}:0"] if inside else [])
    beacon = name if scout and calls else ""
    network = Network(
        tuple(listen), tuple(connect or ()), identity, insecure_lan, scout, beacon
    ).checked()
    return Joining(name, network)


def open_transport(joined: Joining, *, coordinator: bool) -> ZenohTransport:
    """Join; where another coordinator has the usual place already, join through that one.

    Raises:
        UsageError: an address is in use or cannot be used.
    """
    from dataclasses import replace

    from vitlet.errors import UsageError
    from vitlet.partition.cluster.endpoints import PORT
    from vitlet.partition.cluster.zenoh_transport import ZenohTransport

    network = joined.network
    try:
        return ZenohTransport(network)
    except UsageError:
        usual = [a for a in network.listen if a.endswith(f"/{HERE}:{PORT}")]
        if not coordinator or network.listen != tuple(usual) or network.connect:
            raise
        scheme = usual[0].split("/", 1)[0]
        beside = replace(network, listen=(f"{scheme}/{HERE}:0",), connect=(usual[0],))
        return ZenohTransport(beside)


def advice(others: list[str]) -> str:
    """Return what to do when no worker was found, where those of other clusters may have been."""
    if others:
        return f"there are workers of {', '.join(others)}: give --cluster {others[0]}"
    return "start `vitlet worker` on each device"


def device_name() -> str:
    """Return this machine's name as a device's name."""
    name = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return name[:32] or "device"
