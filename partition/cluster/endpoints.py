"""Addresses such as `tcp/127.0.0.1:7446`; off loopback everything must be encrypted."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

from vitlet.errors import UsageError

PORT = 7446  # where a coordinator listens, and where workers look for one
_ENDPOINT = re.compile(r"(?:(tcp|tls)/)?(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+)(?::(\d{1,5}))?")


def endpoint(text: str, *, secure: bool, option: str) -> str:
    """Return an address as the transport spells it: "tls/HOST:PORT".

    Args:
        text: `[tcp/|tls/]HOST[:PORT]`; the port is 7446 when it is not said.
        secure: whether certificates are there; the scheme follows from it when it is not said.
        option: what the user typed it after, for the message.

    Raises:
        UsageError: no such address, or a scheme that contradicts `secure`.
    """
    match = _ENDPOINT.fullmatch(text.strip())
    port = int(match[3]) if match and match[3] else PORT
    if match is None or port > 65535:
        raise UsageError(
            f"{option} takes an address such as 192.168.1.20:{PORT} or [fe80::1]:{PORT}, "
            f"got {text!r}"
        )
    scheme = match[1] or ("tls" if secure else "tcp")
    if (scheme == "tls") != secure:
        have = "there are certificates (--keys)" if secure else "there are none (--keys FOLDER)"
        raise UsageError(f"{option} {text}: {scheme} does not fit, because {have}")
    return f"{scheme}/{match[2]}:{port}"


def host(address: str) -> str:
    """Return the host of an endpoint, without scheme, port and brackets."""
    return address.split("/", 1)[1].rsplit(":", 1)[0].strip("[]")


def is_loopback(address: str) -> bool:
    """Tell whether an endpoint stays on this machine."""
    name = host(address)
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.split("%")[0]).is_loopback
    except ValueError:
        return False


def resolved(address: str) -> set[str]:
    """Return an endpoint with the numbers that its host's name stands for, as links show them."""
    scheme, port = address.split("/", 1)[0], int(address.rsplit(":", 1)[1])
    try:
        found = socket.getaddrinfo(host(address), port, type=socket.SOCK_STREAM)
    except OSError:
        return {address}
    names = {str(place[4][0]) for place in found}
    return {f"{scheme}/[{n}]:{port}" if ":" in n else f"{scheme}/{n}:{port}" for n in names}


def check_exposure(addresses: Sequence[str], *, secure: bool, insecure_lan: bool) -> None:
    """Refuse addresses off loopback without certificates.

    Raises:
        UsageError: as said; the message tells how to make certificates.
    """
    outside = [address for address in addresses if not is_loopback(address)]
    if outside and not secure and not insecure_lan:
        raise UsageError(
            f"{outside[0]} is not on this machine, and without certificates anybody there could "
            "read and send: make some with `vitlet partition keys init` and give --keys FOLDER; "
            "or say --insecure-lan"
        )
