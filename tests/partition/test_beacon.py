"""Coordinators that call and workers that listen, over UDP on this machine."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitlet.partition.cluster.beacon import Beacon, listen, pack_beacon, unpack_beacon


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@given(st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True), st.integers(1, 65535), st.booleans())
def test_a_beacon_comes_back_as_it_was(cluster, number, secure):
    assert unpack_beacon(pack_beacon(cluster, number, secure)) == (cluster, number, secure)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_beacon_are_ignored(data):
    assert unpack_beacon(data) is None


def test_every_changed_bit_is_noticed():
    good = pack_beacon("home", 7446, True)
    for place in range(8 * len(good)):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        assert unpack_beacon(bytes(bad)) is None


def test_a_worker_hears_the_coordinator_of_its_cluster(port):
    here = {"targets": ("127.0.0.1",), "to": port}
    beacons = [
        Beacon("other", 1, False, **here),
        Beacon("home", 2, True, **here),  # TLS, and this worker has no certificate
        Beacon("home", 7446, False, **here),
    ]
    try:
        assert listen("home", False, 30.0, port=port) == "tcp/127.0.0.1:7446"
        assert listen("home", True, 30.0, port=port) == "tls/127.0.0.1:2"
        assert listen("nobody", False, 0.2, port=port) is None
    finally:
        for beacon in beacons:
            beacon.close()
            beacon.close()


def test_a_place_that_cannot_be_reached_does_not_end_the_beacon(port):
    beacon = Beacon("home", 7446, False, targets=("240.0.0.1", "127.0.0.1"), to=port)
    try:
        assert listen("home", False, 30.0, port=port) == "tcp/127.0.0.1:7446"
    finally:
        beacon.close()


def test_a_worker_that_looks_around_joins_the_coordinator_that_calls(port, monkeypatch):
    from vitlet.apps import joining
    from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

    monkeypatch.setattr(Beacon.__init__, "__kwdefaults__", {"targets": ("127.0.0.1",), "to": port})
    monkeypatch.setattr(listen, "__kwdefaults__", {"port": port})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    network = Network(listen=(address,), insecure_lan=True, beacon="lab")
    transport = ZenohTransport(network)
    try:
        found = joining.joining("lab", None, None, None, "lo", True, coordinator=False)
        assert found.network.connect == (f"tcp/{address}",)
        ask = joining.joining("lab", [address], None, None, "lo", True, coordinator=True)
        stay = joining.joining(
            "lab", [address], None, None, "lo", True, coordinator=True, calls=True
        )
        assert (ask.network.beacon, stay.network.beacon) == ("", "lab")
    finally:
        transport.close()
