"""`vitlet run --http`: says where the API is and how to use it, then serves until stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitlet.apps.output import Output, facts

if TYPE_CHECKING:
    from vitlet.partition.cluster.coordinator import Coordinator
    from vitlet.partition.cluster.identity import Identity
    from vitlet.partition.cluster.web.server import Place


def serve(
    out: Output,
    coordinator: Coordinator,
    where: Place,
    identity: Identity | None,
    token_file: Path | None,
) -> None:
    """Serve a coordinator's API until the process is interrupted.

    Args:
        out: where it is said; the token itself is not.
        coordinator: a started one.
        where: the address.
        identity: whose certificate TLS shows.
        token_file: holds the token; None for the one in the cache folder.

    Raises:
        UsageError: the address cannot be used, or the token is no good.
        StorageError: the token cannot be written.
    """
    from vitlet.partition.cluster.cache import default_cache
    from vitlet.partition.cluster.web.api import build
    from vitlet.partition.cluster.web.server import Server
    from vitlet.partition.cluster.web.token import VARIABLE, obtain

    token, found = obtain(token_file or default_cache() / "http-token")
    server = Server(build(coordinator, token, out.log), where, identity)
    slots = len(coordinator.plan.slots)
    data = {"url": server.url, "token": found, "plan": coordinator.plan.hash, "slots": slots}
    out.result(data, lambda: out.print(facts([("dashboard", server.url), ("token in", found)])))
    secret = f"${VARIABLE}" if found.startswith("$") else f"$(cat {found})"
    out.next(
        f'curl -H "Authorization: Bearer {secret}" --data-binary @photo.jpg '
        f"{server.url}/v1/classify"
    )
    try:
        server.run()
    finally:
        server.close()
