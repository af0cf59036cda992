"""A cluster's certificates and roster: what is good is taken, and nothing else."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from vitlet.errors import CorruptInputError, UsageError
from vitlet.partition.cluster import certificates
from vitlet.partition.cluster.endpoints import check_exposure, endpoint, is_loopback
from vitlet.partition.cluster.identity import canonical, check_signature, load_identity, sign
from vitlet.partition.cluster.zenoh_transport import Network, access, settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki") / "home.keys"
    certificates.init(folder, "home", "desk")
    certificates.issue(folder, "pi-1")
    return folder


@pytest.fixture
def keys(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "home.keys"))


def test_a_new_cluster_has_a_coordinator_and_workers(keys):
    assert certificates.members(keys) == {"desk": "coordinator", "pi-1": "worker"}
    desk, pi = (load_identity(keys / "members" / name) for name in ("desk", "pi-1"))
    assert desk.is_coordinator and not pi.is_coordinator
    assert desk.roster == pi.roster and desk.roster.cluster == "home"
    for private in (keys / "ca-key.pem", keys / "members" / "pi-1" / "key.pem"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert not (keys / "members" / "pi-1" / "ca-key.pem").exists()


def test_a_revoked_device_is_refused_and_can_have_a_new_certificate(keys):
    old = certificates.revoke(keys, "pi-1")
    assert certificates.members(keys) == {"desk": "coordinator"}
    new = load_identity(certificates.issue(keys, "pi-1"))
    assert new.name != old and old in new.roster.revoked
    with pytest.raises(UsageError, match="has a certificate"):
        certificates.issue(keys, "pi-1")
    with pytest.raises(UsageError, match="not on the roster"):
        certificates.revoke(keys, "pi-7")


def test_a_revoked_certificate_does_not_start_with_the_new_roster(keys):
    stolen = shutil.copytree(keys / "members" / "pi-1", keys / "stolen")
    certificates.revoke(keys, "pi-1")
    shutil.copy(keys / "roster.json", stolen)
    with pytest.raises(CorruptInputError, match="was revoked"):
        load_identity(stolen)


def test_an_expired_certificate_is_refused(keys):
    member = certificates.issue(keys, "old", days=-0.01)
    with pytest.raises(CorruptInputError, match="is valid from"):
        load_identity(member)


def test_files_that_do_not_belong_together_are_refused(keys, tmp_path):
    member = keys / "members" / "pi-1"
    other = certificates.init(tmp_path / "other.keys")
    for name, message in (
        ("ca.pem", "was not issued by"),
        ("cert.pem", "was not issued by"),
        ("key.pem", "does not belong to"),
        ("roster.json", "is not signed by"),
    ):
        mixed = shutil.copytree(member, tmp_path / name)
        shutil.copy(other / name, mixed / name)
        with pytest.raises(CorruptInputError, match=message):
            load_identity(mixed)


def test_a_roster_changed_by_hand_is_refused(keys):
    path = keys / "members" / "pi-1" / "roster.json"
    data = json.loads(path.read_text())
    data["content"]["coordinators"] += data["content"]["workers"]
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptInputError, match="not signed"):
        load_identity(path.parent)


def test_a_key_that_others_can_read_is_refused(keys):
    (keys / "members" / "pi-1" / "key.pem").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        load_identity(keys / "members" / "pi-1")


def test_a_missing_or_damaged_file_is_one_clear_line(keys):
    member = keys / "members" / "pi-1"
    (member / "cert.pem").write_text("rubbish")
    with pytest.raises(CorruptInputError, match="damaged"):
        load_identity(member)
    (member / "cert.pem").unlink()
    with pytest.raises(UsageError, match="keys issue"):
        load_identity(member)
    with pytest.raises(UsageError, match="keys init"):
        certificates.issue(keys / "members", "pi-2")
    with pytest.raises(UsageError, match="not an empty folder"):
        certificates.init(keys)


def test_only_a_coordinator_of_the_cluster_can_sign_a_plan(keys, tmp_path):
    desk, pi = (load_identity(keys / "members" / name) for name in ("desk", "pi-1"))
    content = canonical("hash")
    certificate = (desk.folder / "cert.pem").read_text()
    good = sign(desk.folder, content)
    assert check_signature(pi, certificate, good, content) == desk.name
    with pytest.raises(CorruptInputError, match="not of a coordinator"):
        check_signature(pi, certificate, good, canonical("another"))
    with pytest.raises(CorruptInputError, match="not of a coordinator"):
        check_signature(pi, certificate, "rubbish", content)
    own = (pi.folder / "cert.pem").read_text()
    with pytest.raises(CorruptInputError, match="may not send plans"):
        check_signature(pi, own, sign(pi.folder, content), content)
    stranger = certificates.init(tmp_path / "other.keys")
    foreign = (stranger / "cert.pem").read_text()
    with pytest.raises(CorruptInputError, match="not of a coordinator"):
        check_signature(pi, foreign, sign(stranger, content), content)


def test_access_is_denied_unless_the_roster_allows_it(keys):
    desk, pi = (load_identity(keys / "members" / name) for name in ("desk", "pi-1"))
    for identity in (desk, pi):
        rules = access(identity)
        assert rules["enabled"] and rules["default_permission"] == "deny"
        assert {key for rule in rules["rules"] for key in rule["key_exprs"]} == {"vit/home/**"}
    names = {s["id"]: s["cert_common_names"] for s in access(pi)["subjects"]}
    assert names == {"coordinators": [desk.name]}  # workers have nothing to say to another
    used = settings(Network(listen=("127.0.0.1",), identity=pi).checked())
    assert used["transport/link/tls"]["enable_mtls"] and used["transport/link/protocols"] == ["tls"]


@pytest.mark.parametrize(
    ("text", "secure", "spelled"),
    [
        ("192.168.1.5", False, "tcp/192.168.1.5:7446"),
        ("desk.local:99", True, "tls/desk.local:99"),
        ("[::1]:7", False, "tcp/[::1]:7"),
        ("tls/127.0.0.1", True, "tls/127.0.0.1:7446"),
    ],
)
def test_addresses_are_spelled_out(text, secure, spelled):
    assert endpoint(text, secure=secure, option="--listen") == spelled


@pytest.mark.parametrize("text", ["", "a b", "udp/1.2.3.4", "host:99999", "http://host/"])
def test_senseless_addresses_are_refused(text):
    with pytest.raises(UsageError, match="--listen"):
        endpoint(text, secure=False, option="--listen")


def test_a_scheme_must_fit_the_certificates():
    with pytest.raises(UsageError, match="there are none"):
        endpoint("tls/10.0.0.1", secure=False, option="--connect")
    with pytest.raises(UsageError, match="there are certificates"):
        endpoint("tcp/10.0.0.1", secure=True, option="--connect")


@pytest.mark.parametrize("address", ["tcp/0.0.0.0:1", "tcp/[::]:1", "tcp/10.0.0.1:1", "tcp/x.y:1"])
def test_addresses_off_loopback_need_certificates_or_a_word(address):
    assert not is_loopback(address)
    with pytest.raises(UsageError, match="--insecure-lan"):
        check_exposure([address], secure=False, insecure_lan=False)
    check_exposure([address], secure=True, insecure_lan=False)
    check_exposure([address], secure=False, insecure_lan=True)


@pytest.mark.parametrize("address", ["tcp/127.0.0.1:1", "tcp/[::1]:1", "tcp/localhost:1"])
def test_this_machine_needs_none(address):
    check_exposure([address], secure=False, insecure_lan=False)
