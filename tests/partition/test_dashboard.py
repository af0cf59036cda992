"""The dashboard in a real browser: what it shows of a cluster that loses a worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from worker_processes import free_port

from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.web.api import build
from vitlet.partition.cluster.web.server import Place, Server
from vitlet.partition.cluster.worker import Worker
from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt-get install chromium)"),
]
TOKEN = "a-token-that-is-long-enough"


class Site(threading.Thread):
    """A served cluster of three workers under a steady load."""

    def __init__(self, light, images, folder: Path) -> None:
        super().__init__()
        self.images, self.enough = images[:1], threading.Event()
        address = f"127.0.0.1:{free_port()}"
        network = ZenohTransport(Network(listen=(address,)))
        self.coordinator = Coordinator(light, network, policy=Policy(deadline=10.0))
        self.coordinator.start()
        self.server = Server(build(self.coordinator, TOKEN), Place("127.0.0.1", 0, tls=False))
        self.server.start()
        # Too little memory for a second slot but on gamma, so that a lost slot stays lost.
        self.workers = {}
        for name, memory in (("alpha", 1_000_000), ("beta", 1_000_000), ("gamma", 2_000_000)):
            transport = ZenohTransport(Network(connect=(address,)))
            self.workers[name] = Worker(name, transport, cache=folder / name, memory=memory)
            self.workers[name].start()
        assert self.coordinator.wait_ready(30.0)

    def run(self) -> None:
        while not self.enough.wait(0.02):
            self.coordinator.infer(self.images)

    def close(self) -> None:
        self.enough.set()
        self.join()
        self.server.close()
        self.coordinator.close()
        for worker in self.workers.values():
            worker.close()


@pytest.fixture
def site(light, images, tmp_path) -> Iterator[Site]:
    site = Site(light, images, tmp_path)
    site.start()
    yield site
    site.close()


@pytest.fixture
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_the_dashboard_shows_a_cluster_that_loses_a_worker(site, browser, tmp_path):
    pictures = Path(os.environ.get("VITLET_TEST_PICTURES", tmp_path))
    browser.open(site.server.url)
    browser.wait("document.querySelector('#login') && !document.querySelector('#login').hidden")
    assert browser.evaluate("document.querySelector('#main').hidden")
    browser.evaluate("document.querySelector('#token').value = 'not the token'")
    browser.evaluate("document.querySelector('#login button').click()")
    browser.wait("document.querySelector('#denied').textContent == 'That is not the token.'")

    browser.open(f"{site.server.url}/#token={TOKEN}")
    browser.evaluate("location.reload()")
    browser.wait("document.querySelector('#state')?.textContent == 'all slots answer'")
    assert browser.evaluate("location.hash") == ""  # not left in the address bar
    rows = "[...document.querySelectorAll('#devices tbody tr td:first-child')]"
    names = f"{rows}.map(c => c.textContent).join()"
    browser.wait(f"{names} == 'alpha,beta,gamma'")
    assert browser.evaluate("document.querySelector('#missing').hidden")
    browser.wait("parseFloat(document.querySelectorAll('#tiles b')[2].textContent) > 0")
    browser.wait("document.querySelector('#chart .p50')?.getAttribute('points').includes(' ')")
    boxes = browser.evaluate("document.querySelectorAll('#picture rect').length")
    assert boxes == 3 + 3 + 2  # slots, devices, image and answer
    browser.picture(pictures / "dashboard-full.png")

    site.workers["beta"].close()
    browser.wait("document.querySelector('#state').textContent == '2 of 3 slots'")
    told = browser.evaluate("document.querySelector('#missing').textContent")
    assert "slot 1" in told and "class-1, class-4" in told
    browser.wait("parseInt(document.querySelectorAll('#tiles b')[5].textContent) > 0")
    assert browser.evaluate("document.querySelectorAll('#picture rect.bad').length") == 2
    browser.picture(pictures / "dashboard-degraded.png")
    assert (pictures / "dashboard-degraded.png").stat().st_size > 10_000

    browser.open(f"{site.server.url}/docs")
    browser.wait("document.body.innerText.includes('/v1/classify')")
    browser.picture(pictures / "docs.png")
    browser.open(site.server.url)
    browser.wait("document.querySelector('#state')?.textContent == '2 of 3 slots'")
    site.server.close()
    browser.wait("document.querySelector('#state').textContent == 'coordinator away'")
