"""The HTTP API over a real server and real workers in this process."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from worker_processes import free_port, until

from vitlet.errors import UsageError
from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.threads import ThreadJobs
from vitlet.partition.cluster.web import protocol
from vitlet.partition.cluster.web import token as tokens
from vitlet.partition.cluster.web.api import PAGES, build
from vitlet.partition.cluster.web.server import Place, Server, place
from vitlet.partition.cluster.web.service import MAX_IMAGE
from vitlet.partition.cluster.worker import Worker
from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

TOKEN = "a-token-that-is-long-enough"
LIMIT = 3  # requests under way
SOON = 30.0


class Held(ThreadJobs):
    """A worker's queue that stands still while `gate` is closed."""

    gate = threading.Event()

    def put(self, job: Callable[[], None]) -> bool:
        return super().put(lambda: (self.gate.wait(SOON), job()))


class Site:
    def __init__(self, light, folder) -> None:
        address = f"127.0.0.1:{free_port()}"
        Held.gate.set()
        transport = ZenohTransport(Network(listen=(address,)))
        policy = Policy(deadline=SOON, hedge=False)
        self.coordinator = Coordinator(light, transport, policy=policy)
        self.lines: list[str] = []
        self.server = Server(
            build(self.coordinator, TOKEN, self.lines.append, limit=LIMIT),
            Place("127.0.0.1", 0, tls=False),
        )
        self.folder, self.address = folder, address
        self.workers: list[Worker] = []

    def start_workers(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            transport = ZenohTransport(Network(connect=(self.address,)))
            self.workers.append(
                Worker(name, transport, cache=self.folder / name, compute=Held(name))
            )
            self.workers[-1].start()
        assert self.coordinator.wait_ready(SOON)

    def ask(self, path, body=None, token=TOKEN, method=None, **headers):
        """(status, headers, body) of a response."""
        host, port = self.server.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=SOON)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def error(self, *request, **options) -> tuple[int, str]:
        status, _, body = self.ask(*request, **options)
        return status, json.loads(body)["error"]["code"]


@pytest.fixture(scope="module")
def empty(light, tmp_path_factory) -> Iterator[Site]:
    """A site without workers."""
    site = Site(light, tmp_path_factory.mktemp("site"))
    with site.coordinator:
        site.server.start()
        yield site
        Held.gate.set()
        site.server.close()
        for worker in site.workers:
            worker.close()


@pytest.fixture(scope="module")
def site(empty) -> Site:
    # No wait for the answer to the first request: there must be workers for what follows.
    empty.no_workers = empty.ask("/healthz", token=None), empty.ask("/v1/classify", b"x")
    empty.start_workers()
    return empty


@pytest.fixture(scope="module")
def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_answered_as_the_coordinator_answers_it(site, png):
    status, _, body = site.ask("/v1/classify?topk=2", png)
    answer = json.loads(body)
    same = site.coordinator.infer(Image.open(io.BytesIO(png))).predictions(2)[0]
    assert status == 200 and answer["missing"] == [] and not answer["degraded"]
    told = answer["images"][0]["predictions"]
    assert [(t["label"], t["score"]) for t in told] == [(s.label, s.score) for s in same]


def test_without_workers_nothing_looks_healthy(site):
    health, classify = site.no_workers
    assert health[0] == 503 and json.loads(health[2]) == {"ready": False}
    assert classify[0] == 503 and int(classify[1]["retry-after"]) >= 1
    assert site.ask("/healthz", token=None)[0] == 200


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/stream", "/v1/status", "/v1/events",
                                  "/metrics", "/nothing"])  # fmt: skip
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x"])
def test_nothing_is_told_without_the_token(site, path, token):
    status, headers, body = site.ask(path, token=token)
    assert status == 401 and headers["www-authenticate"] == "Bearer"
    assert TOKEN.encode() not in body


def test_refusals_are_said_once_and_without_secrets(site):
    site.ask("/metrics", token="another-wrong-token")
    said = [line for line in site.lines if "without the right token" in line]
    assert len(said) == 1 and "another" not in "".join(site.lines)
    assert site.coordinator.counts.get("http_unauthorized") > 1


@pytest.mark.parametrize(
    ("path", "body", "wanted"),
    [
        ("/v1/classify", b"not an image", (400, "bad_request")),
        ("/v1/classify", b"", (400, "bad_request")),
        ("/v1/classify", b"%!PS-Adobe-3.0 EPSF-3.0\n", (400, "bad_request")),
        ("/v1/classify?topk=0", b"x", (400, "bad_request")),
        ("/v1/classify?topk=nan", b"x", (400, "bad_request")),
        ("/v1/classify?deadline_ms=1e9", b"x", (400, "bad_request")),
        ("/v1/classify?top=3", b"x", (400, "bad_request")),
        ("/v1/classify", b"x" * (MAX_IMAGE + 1), (413, "too_large")),
        ("/v1/other", b"x", (404, "http")),
        ("/v1/status", b"x", (405, "http")),
    ],
)  # fmt: skip
def test_bad_requests_get_one_clear_line(site, path, body, wanted):
    try:
        assert site.error(path, body) == wanted
    except (BrokenPipeError, ConnectionResetError):
        assert wanted[0] == 413  # refused before all of it was sent


def test_a_stream_answers_line_by_line_while_it_is_still_open(site, png):
    """Each answer is read before the next image is sent."""
    image = base64.b64encode(png).decode()
    host, port = site.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), SOON) as link:
        link.sendall(
            b"POST /v1/stream?topk=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
        )
        reader = link.makefile("rb")
        for line in ({"id": "a", "image": image}, {"id": 2, "image": "?"}, [], {"image": image}):
            content = json.dumps(line).encode() + b"\n"
            link.sendall(b"%x\r\n%s\r\n" % (len(content), content))
            if line == {"id": "a", "image": image}:
                assert b" 200 " in reader.readline()
                while reader.readline().strip():
                    pass
            size = int(reader.readline(), 16)
            told = json.loads(reader.read(size))
            reader.readline()
            if isinstance(line, dict) and line["image"] == image:
                assert told["id"] == line.get("id") and told["answer"]["missing"] == []
            else:
                assert told["error"]["code"] == "bad_line"
        link.sendall(b"0\r\n\r\n")
        assert reader.readline() == b"0\r\n"


def test_more_than_there_is_room_for_is_told_to_come_later(site, png):
    ends: list[int] = []

    def one() -> None:
        ends.append(site.ask("/v1/classify", png)[0])

    Held.gate.clear()
    threads = [threading.Thread(target=one) for _ in range(LIMIT)]
    try:
        for thread in threads:
            thread.start()
        assert until(lambda: site.coordinator.status()["pending"] == LIMIT, SOON)
        status, headers, body = site.ask("/v1/classify", png)
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert json.loads(body)["error"]["code"] == "busy"
        assert site.error("/v1/stream", b"") == (429, "busy")
        assert site.coordinator.counts.get("http_busy") == 2
    finally:
        Held.gate.set()
        for thread in threads:
            thread.join()
    assert ends == [200] * LIMIT


def test_a_missed_deadline_is_504(site, png):
    Held.gate.clear()
    try:
        assert site.error("/v1/classify?deadline_ms=20", png) == (504, "deadline")
    finally:
        Held.gate.set()


def test_events_tell_the_state_and_a_new_one_follows(site):
    host, port = site.server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=SOON)
    connection.request("GET", "/v1/events", headers={"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    states = []
    while len(states) < 2:
        line = response.readline()
        if line.startswith(b"data: "):
            states.append(json.loads(line[6:]))
    connection.close()
    assert states[0]["time"] < states[1]["time"]
    assert [slot["slot"] for slot in states[1]["slots"]] == [0, 1, 2]
    assert [worker["device"] for worker in states[1]["workers"]] == ["alpha", "beta", "gamma"]
    assert json.loads(site.ask("/v1/status")[2])["plan"] == states[1]["plan"]


def test_metrics_count_what_was_answered(site, png):
    from prometheus_client.parser import text_string_to_metric_families

    before = site.coordinator.counts.get("complete")
    site.ask("/v1/classify", png)
    threading.Event().wait(0.6)  # the state is half a second old at most
    text = site.ask("/metrics")[2].decode()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["vitlet_answers_total", "complete"] == before + 1
    assert found["vitlet_latency_seconds_count",] == len(site.coordinator.latency)
    assert found["vitlet_latency_seconds_bucket", "+Inf"] == len(site.coordinator.latency)
    assert found["vitlet_slot_holders", "1"] >= 1
    assert found["vitlet_worker_queue", "beta"] == 0


def test_a_client_that_never_ends_its_headers_is_closed(site, monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_PATIENCE", 0.3)
    host, port = site.server.url.removeprefix("http://").split(":")
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    where = (host, int(port))
    with (
        socket.create_connection(where, timeout=SOON) as silent,
        socket.create_connection(where, timeout=SOON) as second,
    ):
        second.sendall(request + b"\r\n")
        assert second.recv(4096).startswith(b"HTTP/1.1 ")
        second.sendall(request)  # and another one that never ends
        assert silent.recv(4096) == b"" and second.recv(4096) == b""


def test_the_pages_come_from_here_alone_and_hold_nothing(site):
    for path in PAGES:
        status, headers, body = site.ask(path, token=None)
        assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
        elsewhere = body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"http://" not in elsewhere and b"https://" not in elsewhere
        assert b"innerHTML" not in body and b"<script>" not in body
    status, _, body = site.ask("/openapi.json", token=None)
    paths = json.loads(body)["paths"]
    assert status == 200 and {"/v1/classify", "/v1/stream", "/metrics"} <= set(paths)
    assert site.ask("/../../pyproject.toml", token=None)[0] == 401


def test_a_token_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(tokens.VARIABLE, raising=False)
    path = tmp_path / "new" / "token"
    made, where = tokens.obtain(path)
    assert len(made) > 40 and where == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tokens.obtain(path) == (made, where)
    monkeypatch.setenv(tokens.VARIABLE, "from-the-environment")
    assert tokens.obtain(path) == ("from-the-environment", f"${tokens.VARIABLE}")


@pytest.mark.parametrize("text", ["", "short", "with spaces in between them", "ümlaut" * 4])
def test_a_weak_or_readable_token_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.delenv(tokens.VARIABLE, raising=False)
    path = tmp_path / "token"
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    with pytest.raises(UsageError, match="at least 16"):
        tokens.obtain(path)
    if os.name == "posix":
        path.write_text(TOKEN)
        path.chmod(0o644)
        with pytest.raises(UsageError, match="chmod 600"):
            tokens.obtain(path)


def test_addresses_off_this_machine_need_certificates_or_a_word():
    assert place(":8080", None, insecure_lan=False) == Place("127.0.0.1", 8080, tls=False)
    assert place("[::1]:80", None, insecure_lan=False) == Place("::1", 80, tls=False)
    assert place("0.0.0.0:80", None, insecure_lan=True) == Place("0.0.0.0", 80, tls=False)
    with pytest.raises(UsageError, match="--insecure-lan"):
        place("0.0.0.0:80", None, insecure_lan=False)
    for text in ("8080", ":", ":99999", "a b:80", "http://x:80"):
        with pytest.raises(UsageError, match="such as"):
            place(text, None, insecure_lan=False)


def test_a_port_in_use_is_one_line(site):
    port = int(site.server.url.rsplit(":", 1)[1])
    with pytest.raises(UsageError, match="choose another port"):
        Server(None, Place("127.0.0.1", port, tls=False))


def test_off_this_machine_http_speaks_tls_only(site, tmp_path):
    import ssl

    from vitlet.partition.cluster import certificates
    from vitlet.partition.cluster.identity import load_identity

    certificates.init(tmp_path / "home.keys")
    identity = load_identity(tmp_path / "home.keys" / "members" / "desk")
    where = place("0.0.0.0:0", identity, insecure_lan=False)
    assert where.tls and not place("127.0.0.1:0", identity, insecure_lan=False).tls
    server = Server(build(site.coordinator, TOKEN), Place("127.0.0.1", 0, tls=True), identity)
    server.start()
    try:
        port = int(server.url.rsplit(":", 1)[1])
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=identity.file("ca.pem"))
        context.check_hostname = False  # the name in it is the device's, not the address
        link = http.client.HTTPSConnection("127.0.0.1", port, timeout=SOON, context=context)
        link.request("GET", "/healthz")
        assert link.getresponse().read() == b'{"ready":true}'
        link.close()
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
            plain.getresponse()
        plain.close()
    finally:
        server.close()
