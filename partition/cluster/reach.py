"""Why is nothing connected to an address: tries it, as the transport would, and says what came."""

from __future__ import annotations

import socket
import ssl

from vitlet.partition.cluster.endpoints import host
from vitlet.partition.cluster.identity import CA, CERTIFICATE, KEY, Identity

TIMEOUT = 1.0  # seconds


def why_unreachable(address: str, identity: Identity | None) -> str:
    """Return what happens when one connects to an endpoint, as a short sentence.

    Args:
        address: "tcp/HOST:PORT" or "tls/HOST:PORT".
        identity: certificates to show and to check the other side with.
    """
    place = (host(address), int(address.rsplit(":", 1)[1]))
    try:
        with socket.create_connection(place, TIMEOUT) as plain:
            if identity is None:
                return "something answers there, and it has not joined: is it vitlet, without TLS?"
            return _try_tls(plain, identity)
    except TimeoutError:
        return "no answer: the machine is off, or a firewall drops the connection"
    except OSError as error:
        return f"{(error.strerror or str(error)).lower()}: nothing listens there"


def _try_tls(plain: socket.socket, identity: Identity) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(identity.file(CA))
    context.load_cert_chain(identity.file(CERTIFICATE), identity.file(KEY))
    try:
        with context.wrap_socket(plain) as secure:
            secure.settimeout(TIMEOUT)
            secure.recv(1)  # under TLS 1.3 a refusal of our certificate comes only now
    except ssl.SSLCertVerificationError as error:
        return f"refused: its certificate is not of this cluster ({error.verify_message})"
    except TimeoutError:
        return "it accepts this certificate, and has not joined yet"
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"refused: {reason}"
    except OSError as error:
        return f"it closed the connection ({(error.strerror or str(error)).lower()})"
    return "it closed the connection: it does not accept this certificate"
