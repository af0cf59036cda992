"""A device's certificate, and the cluster's signed roster of who may take part.

A folder that `vitlet partition keys issue` wrote: `ca.pem`, `cert.pem`, `key.pem` and
`roster.json`. The roster is signed by the cluster's key, and whoever is not in it is refused, even
with a certificate of the cluster: that is how a certificate is revoked.

```json
{"content": {"cluster": "home", "number": 3, "coordinators": ["desk.1f3a"],
             "workers": ["pi-1.77b0"], "revoked": ["pi-9.02c4"]},
 "signature": "<base64, ECDSA with SHA-256 over the content as canonical JSON>"}
```
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitlet._extras import require
from vitlet.errors import CorruptInputError, UsageError

CA, CERTIFICATE, KEY, ROSTER = "ca.pem", "cert.pem", "key.pem", "roster.json"
LIMIT = 1 << 20  # bytes of any of these files


@dataclass(frozen=True)
class Roster:
    """Who may take part.

    Attributes:
        cluster: its name.
        number: grows with every change.
        coordinators: certificate names that may send plans and requests.
        workers: certificate names that may answer.
        revoked: certificate names that were in it.
    """

    cluster: str
    number: int = 0
    coordinators: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Any) -> Roster:
        """Read back "content"; raises CorruptInputError."""
        try:
            lists = {key: tuple(data[key]) for key in ("coordinators", "workers", "revoked")}
            if not all(isinstance(name, str) for names in lists.values() for name in names):
                raise TypeError("a name is not text")
            return cls(str(data["cluster"]), int(data["number"]), **lists)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptInputError(f"{ROSTER} is not a roster: {error}") from None


@dataclass(frozen=True)
class Identity:
    """Who this device is.

    Attributes:
        folder: where its files lie.
        name: the common name in its certificate, "pi-1.77b0".
        roster: who may take part.
    """

    folder: Path
    name: str
    roster: Roster

    @property
    def is_coordinator(self) -> bool:
        """Whether it may send plans and requests."""
        return self.name in self.roster.coordinators

    def file(self, name: str) -> str:
        """Return the path of one of its files."""
        return str(self.folder / name)


def canonical(content: Any) -> bytes:
    """Return the bytes of plain data that are signed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def load_identity(folder: str | os.PathLike[str]) -> Identity:
    """Read a folder of `vitlet partition keys issue`.

    Raises:
        UsageError: a file is missing, or the private key can be read by others.
        CorruptInputError: the certificate is not the cluster's or has expired, or the roster is
            not signed by the cluster or does not name this certificate.
        MissingDependencyError: cryptography is not installed.
    """
    require("cryptography", extra="edge", why="use certificates")
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    folder = Path(folder).resolve()
    texts = {name: _read(folder, name) for name in (CA, CERTIFICATE, KEY, ROSTER)}
    if os.name == "posix" and stat.S_IMODE((folder / KEY).stat().st_mode) & 0o077:
        raise UsageError(f"{folder / KEY} can be read by others: chmod 600 it")
    try:
        ca = x509.load_pem_x509_certificate(texts[CA])
        own = x509.load_pem_x509_certificate(texts[CERTIFICATE])
        key = serialization.load_pem_private_key(texts[KEY], password=None)
        own.verify_directly_issued_by(ca)
    except (ValueError, TypeError):
        raise CorruptInputError(f"{folder} holds a certificate or key that is damaged") from None
    except InvalidSignature:
        raise CorruptInputError(f"{folder}: {CERTIFICATE} was not issued by {CA}") from None
    if key.public_key() != own.public_key():
        raise CorruptInputError(f"{folder}: {KEY} does not belong to {CERTIFICATE}")
    _check_dates(own, folder)
    name = _common_name(own)
    roster = _roster(texts[ROSTER], ca, folder)
    if name in roster.revoked:
        raise CorruptInputError(f"{folder}: the certificate {name} was revoked")
    if name not in (*roster.coordinators, *roster.workers):
        raise CorruptInputError(f"{folder}: the roster does not name {name}: copy a newer one")
    return Identity(folder, name, roster)


def sign(folder: Path, content: bytes) -> str:
    """Return the signature of `content` by a folder's key, as text."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key((folder / KEY).read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # load_identity compared it
    return base64.b64encode(key.sign(content, ec.ECDSA(hashes.SHA256()))).decode("ascii")


def check_signature(identity: Identity, certificate: str, signature: str, content: bytes) -> str:
    """Return the name of the coordinator that signed `content`.

    Args:
        identity: whose cluster and roster count.
        certificate: the signer's, as PEM.
        signature: what `sign` returned.
        content: what was signed.

    Raises:
        CorruptInputError: the signer is not a coordinator of this cluster, or did not sign this.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        ca = x509.load_pem_x509_certificate(_read(identity.folder, CA))
        signer = x509.load_pem_x509_certificate(certificate.encode("ascii"))
        signer.verify_directly_issued_by(ca)
        _check_dates(signer, identity.folder)
        _verify(signer, base64.b64decode(signature, validate=True), content)
        name = _common_name(signer)
    except (ValueError, TypeError, binascii.Error, InvalidSignature):
        raise CorruptInputError("the signature is not of a coordinator of this cluster") from None
    if name not in identity.roster.coordinators:
        raise CorruptInputError(f"{name} may not send plans: it is no coordinator in the roster")
    return name


def load_roster(folder: Path) -> Roster:
    """Read the roster of a folder, checked against the cluster's certificate beside it.

    Raises:
        UsageError, CorruptInputError: a file is missing, or the roster is not signed by it.
    """
    from cryptography import x509

    ca = x509.load_pem_x509_certificate(_read(folder, CA))
    return _roster(_read(folder, ROSTER), ca, folder)


def roster_text(roster: Roster, signature: str) -> str:
    """Return the content of `roster.json`."""
    return json.dumps({"content": asdict(roster), "signature": signature}, indent=1) + "\n"


def _roster(text: bytes, ca: Any, folder: Path) -> Roster:
    from cryptography.exceptions import InvalidSignature

    try:
        data = json.loads(text)
        _verify(ca, base64.b64decode(data["signature"], validate=True), canonical(data["content"]))
    except (ValueError, KeyError, TypeError, InvalidSignature, RecursionError):
        raise CorruptInputError(f"{folder / ROSTER} is not signed by the cluster's key") from None
    return Roster.from_json(data["content"])


def _verify(certificate: Any, signature: bytes, content: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("expected an elliptic-curve key")
    key.verify(signature, content, ec.ECDSA(hashes.SHA256()))


def _check_dates(certificate: Any, folder: Path) -> None:
    import datetime

    now = datetime.datetime.now(datetime.timezone.utc)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise CorruptInputError(
            f"{folder}: the certificate {_common_name(certificate)} is valid from "
            f"{certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}: issue a new one"
        )


def _common_name(certificate: Any) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise CorruptInputError("a certificate must have one common name")
    return str(names[0].value)


def _read(folder: Path, name: str) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            content = file.read(LIMIT + 1)
    except OSError as error:
        raise UsageError(
            f"{folder / name}: {error.strerror}: expected a folder of `vitlet partition keys issue`"
        ) from None
    if len(content) > LIMIT:
        raise CorruptInputError(f"{folder / name} is larger than {LIMIT} bytes")
    return content
