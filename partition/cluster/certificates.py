"""Makes a cluster's certificates: `vitlet partition keys init|issue|revoke`.

    home.keys/
      ca.pem  ca-key.pem          the cluster's own key: keep it off the devices
      roster.json                 who may take part, signed
      members/desk/               one folder per device: copy it there
        ca.pem  cert.pem  key.pem  roster.json

A new or revoked device changes the roster: copy `roster.json` to the devices again, and restart
them (Zenoh reads its access rules at the start).
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import secrets
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vitlet._extras import require
from vitlet.errors import CorruptInputError, StorageError, UsageError
from vitlet.partition.cluster.identity import (
    CA,
    CERTIFICATE,
    KEY,
    ROSTER,
    Roster,
    canonical,
    load_roster,
    roster_text,
)
from vitlet.partition.cluster.topics import check_name

CA_KEY, MEMBERS = "ca-key.pem", "members"
CA_DAYS, DAYS = 3650, 365


def init(folder: str | os.PathLike[str], cluster: str = "home", coordinator: str = "desk") -> Path:
    """Make a cluster: its key, an empty roster, and the certificate of a first coordinator.

    Args:
        folder: where all of it goes; must be new or empty.
        cluster: name of the cluster.
        coordinator: name of the first coordinator.

    Returns:
        The coordinator's folder.

    Raises:
        UsageError: the folder holds something, or a name makes no sense.
        StorageError: it cannot be written.
        MissingDependencyError: cryptography is not installed.
    """
    require("cryptography", extra="edge", why="make certificates")
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = Path(folder)
    check_name(cluster, "the name of a cluster")
    check_name(coordinator, "the name of a coordinator")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder: choose another place for the keys")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(
        f"vitlet cluster {cluster}", key.public_key(), f"vitlet cluster {cluster}", key, CA_DAYS, []
    )
    _make(folder)
    _write(folder / CA, _pem(certificate))
    _write(folder / CA_KEY, _key_pem(key), private=True)
    _sign_roster(folder, Roster(cluster))
    return issue(folder, coordinator, coordinator=True)


def issue(
    folder: str | os.PathLike[str],
    name: str,
    *,
    coordinator: bool = False,
    days: float = DAYS,
) -> Path:
    """Make the certificate of a device and put it on the roster.

    Args:
        folder: of `init`.
        name: of the device.
        coordinator: whether it may send plans and requests, or only answer.
        days: that the certificate is valid.

    Returns:
        The device's folder: copy it to the device, and `roster.json` to the others.

    Raises:
        UsageError: the device has a certificate already, or the name makes no sense.
        CorruptInputError, StorageError: the folder is damaged or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = Path(folder)
    check_name(name, "the name of a device")
    roster, ca, ca_key = _open(folder)
    if _issued(roster, name):
        raise UsageError(f"{name} has a certificate: revoke it first (keys revoke)")
    # Never the same name twice: a revoked one must stay refused for ever.
    common = f"{name}.{secrets.token_hex(4)}"
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(
        common, key.public_key(), _subject(ca), ca_key, days, [name, common, "localhost"]
    )
    member = folder / MEMBERS / name
    if member.exists():
        shutil.rmtree(member)
    _make(member)
    _write(member / CA, (folder / CA).read_bytes())
    _write(member / CERTIFICATE, _pem(certificate))
    _write(member / KEY, _key_pem(key), private=True)
    roster = replace(roster, number=roster.number + 1)
    if coordinator:
        roster = replace(roster, coordinators=(*roster.coordinators, common))
    else:
        roster = replace(roster, workers=(*roster.workers, common))
    _sign_roster(folder, roster)
    return member


def revoke(folder: str | os.PathLike[str], name: str) -> str:
    """Take a device off the roster and remove its folder; return its certificate's name.

    Raises:
        UsageError: the device has no certificate.
        CorruptInputError, StorageError: the folder is damaged or cannot be written.
    """
    folder = Path(folder)
    roster, _, _ = _open(folder)
    common = _issued(roster, name)
    if common is None:
        raise UsageError(f"{name} is not on the roster: it has {', '.join(members(folder))}")
    _sign_roster(
        folder,
        Roster(
            roster.cluster,
            roster.number + 1,
            tuple(n for n in roster.coordinators if n != common),
            tuple(n for n in roster.workers if n != common),
            (*roster.revoked, common),
        ),
    )
    shutil.rmtree(folder / MEMBERS / name, ignore_errors=True)
    return common


def members(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Return device -> "coordinator" or "worker", of those on the roster.

    Raises:
        UsageError, CorruptInputError: not a folder of `init`, or a damaged one.
    """
    roster, _, _ = _open(Path(folder))
    sides = [(n, "coordinator") for n in roster.coordinators]
    sides += [(n, "worker") for n in roster.workers]
    return {common.rsplit(".", 1)[0]: side for common, side in sides}


def _issued(roster: Roster, name: str) -> str | None:
    for common in (*roster.coordinators, *roster.workers):
        if common.rsplit(".", 1)[0] == name:
            return common
    return None


def _open(folder: Path) -> tuple[Roster, Any, Any]:
    require("cryptography", extra="edge", why="make certificates")
    from cryptography import x509

    try:
        ca = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        key = _ca_key(folder)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}: expected a folder of `vitlet partition keys init`"
        ) from None
    except (ValueError, TypeError):
        raise CorruptInputError(f"{folder} holds a certificate or key that is damaged") from None
    return load_roster(folder), ca, key


def _certificate(
    name: str, public: Any, issuer: str, issuer_key: Any, days: float, names: list[str]
) -> Any:
    """Return a certificate; one with `names` is a device's, one without is the cluster's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def subject(text: str) -> Any:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.timezone.utc)
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(subject(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of devices differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=not names, crl_sign=not names, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if names:
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(text) for text in names]), critical=False
        ).add_extension(
            x509.ExtendedKeyUsage(purposes),
            critical=False,
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _sign_roster(folder: Path, roster: Roster) -> None:
    """Write the roster, and copy it into every member's folder."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _ca_key(folder)
    content = json.loads(json.dumps(asdict(roster)))
    signature = key.sign(canonical(content), ec.ECDSA(hashes.SHA256()))
    text = roster_text(roster, base64.b64encode(signature).decode("ascii")).encode("ascii")
    _write(folder / ROSTER, text)
    for member in sorted((folder / MEMBERS).glob("*")):
        _write(member / ROSTER, text)


def _ca_key(folder: Path) -> Any:
    from cryptography.hazmat.primitives import serialization

    content = (folder / CA_KEY).read_bytes()
    return serialization.load_pem_private_key(content, password=None)


def _subject(certificate: Any) -> str:
    from cryptography.x509.oid import NameOID

    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    content: bytes = certificate.public_bytes(serialization.Encoding.PEM)
    return content


def _key_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    content: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return content


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}") from error


def _write(path: Path, content: bytes, private: bool = False) -> None:
    """Write a file whole or not at all; a private one only its owner can read."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(number, "wb") as file:
            file.write(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
