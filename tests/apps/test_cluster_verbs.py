"""The verbs of a cluster: certificates, refusals, exit codes, and a run over real workers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from films import write_film
from light_plan import light_plan
from PIL import Image
from worker_processes import WorkerProcesses, free_port


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "light.plan"
    light_plan(folder)
    return folder


@pytest.fixture
def here() -> str:
    return f"127.0.0.1:{free_port()}"


def test_certificates_are_made_issued_and_revoked(cli, tmp_path):
    keys = tmp_path / "home.keys"
    made = json.loads(cli("partition", "keys", "init", keys, "--cluster", "lab", "--json").out)
    assert made == {
        "cluster": "lab", "folder": str(keys), "coordinator": str(keys / "members" / "desk")
    }  # fmt: skip
    ran = cli("partition", "keys", "issue", keys, "pi-1")
    assert ran.code == 0 and "vitlet worker --keys" in ran.err
    assert cli("partition", "keys", "issue", keys, "pi-1").code == 2
    assert cli("partition", "keys", "issue", keys, "Pi 1").code == 2
    gone = json.loads(cli("partition", "keys", "revoke", keys, "pi-1", "--json").out)
    assert gone["revoked"].startswith("pi-1.") and gone["members"] == {"desk": "coordinator"}
    assert "BEGIN" not in ran.out + ran.err  # no key on the terminal
    ran = cli("worker", "--keys", keys / "members" / "desk", "--cluster", "home")
    assert ran.code == 2 and "which are of lab" in ran.err


@pytest.mark.parametrize("verb", [["init"], ["issue"], ["revoke"], []])
def test_the_pages_of_keys_fit(cli, verb):
    ran = cli("partition", "keys", *verb, "--help")
    assert ran.code == 0 and max(map(len, ran.out.splitlines())) <= 80
    assert not verb or "--json" in ran.out


@pytest.mark.parametrize("option", ["--listen", "--connect"])
def test_nothing_leaves_this_machine_without_certificates_or_a_word(cli, plan, tmp_path, option):
    for argv in (["worker"], ["status"], ["run", plan, tmp_path]):
        (tmp_path / "x.png").touch()
        ran = cli(*argv, option, "192.0.2.1")
        assert ran.code == 2 and "vitlet partition keys init" in ran.err, argv


def test_no_worker_is_exit_code_7(cli, plan, pictures, here):
    ran = cli("status", "--listen", here, "--wait", "100ms", "--json")
    assert ran.code == 7 and json.loads(ran.out)["workers"] == []
    assert "start `vitlet worker`" in ran.err
    ran = cli("run", plan, pictures / "a.png", "--listen", here, "--wait", "100ms")
    assert ran.code == 7 and "0 of 3 slots have a worker" in ran.err
    ran = cli("run", plan, pictures / "a.png", "--connect", here, "--wait", "100ms")
    assert ran.code == 7 and "nothing listens there" in ran.err


def test_a_changed_plan_is_exit_code_6(cli, plan, pictures, tmp_path):
    import shutil

    copy = shutil.copytree(plan, tmp_path / "copy.plan")
    (copy / "plan.json").write_text((copy / "plan.json").read_text().replace("class-1", "class-9"))
    assert cli("run", copy, pictures / "a.png").code == 6


def test_a_port_in_use_is_exit_code_2(cli, plan, pictures, here):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        there = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = cli("run", plan, pictures / "a.png", "--listen", there)
        assert ran.code == 2 and "is in use" in ran.err and len(ran.err.splitlines()) == 1
        ran = cli("worker", "--listen", there)
        assert ran.code == 2 and "is in use" in ran.err
        ran = cli("run", plan, "--http", there, "--listen", here)
        assert ran.code == 2 and "choose another port" in ran.err


def test_a_plan_of_another_version_is_exit_code_6(cli, plan, pictures, tmp_path):
    import shutil

    copy = shutil.copytree(plan, tmp_path / "copy.plan")
    data = json.loads((copy / "plan.json").read_text())
    (copy / "plan.json").write_text(json.dumps({**data, "schema": 2}))
    ran = cli("run", copy, pictures / "a.png")
    assert ran.code == 6 and "has schema 2, this vitlet reads 1" in ran.err


def test_senseless_calls_are_exit_code_2(cli, plan, pictures, here):
    assert cli("run", plan).code == 2
    assert cli("run", plan, pictures, "--stdin").code == 2
    assert cli("run", plan, pictures, "--http", ":0").code == 2
    assert cli("run", plan, pictures, "--camera", "0").code == 2
    ran = cli("run", plan, "--camera", pictures / "no.avi", "--listen", here)
    assert ran.code == 2 and "cannot be opened: expected the number of a camera" in ran.err
    assert cli("run", plan, "--http", "192.0.2.1:80", "--listen", here).code == 2
    assert cli("run", plan, "--http", "8080", "--listen", here).code == 2
    assert cli("run", plan.with_name("no.plan"), pictures).code == 2
    assert cli("run", plan, pictures, "--min-slots", "9", "--listen", here).code == 2
    assert cli("worker", "--name", "My Device", "--connect", here).code == 2
    assert cli("worker", "--memory", "much").code == 2


def test_a_plan_is_simulated_on_other_numbers_of_devices(cli, plan):
    few = ("--requests", "30", "--up", "60m", "--down", "1m")
    told = json.loads(cli("partition", "simulate", plan, "--devices", "1,6", *few, "--json").out)
    assert [row["devices"] for row in told["forecasts"]] == [1, 6]
    assert all(row["full"] > 0.5 and row["covered"] > 0.8 for row in told["forecasts"])
    ran = cli("partition", "simulate", plan, *few)
    assert ran.code == 0 and "devices" in ran.out
    assert cli("partition", "simulate", plan, "--devices", "1001").code == 2
    assert cli("partition", "simulate", plan, "--loss", "1").code == 2
    assert cli("partition", "simulate", plan.with_name("no.plan")).code == 2


@pytest.mark.slow
def test_images_are_classified_over_workers_and_a_lost_one_is_told(cli, plan, tmp_path, here):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 11), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    where = ("--listen", here, "--deadline", "30s", "--wait", "60s")
    workers = WorkerProcesses(tmp_path, here)
    try:
        workers.start("alpha", "beta", "gamma")
        good = [tmp_path / f"{n}.png" for n in range(3)]
        ran = cli("run", plan, *good, *where, "--json")
        full = json.loads(ran.out)
        assert ran.code == 0 and [image["degraded"] for image in full["images"]] == [False] * 3
        ran = cli("run", plan, tmp_path / "bad.png", good[0], *where)
        assert ran.code == 6 and "1 image of 2 could not be read" in ran.err and "class-" in ran.out
        film = tmp_path / "film.avi"
        write_film(film, 5)
        ran = cli("run", plan, "--camera", film, *where, "--json")
        seen = [json.loads(line) for line in ran.out.splitlines()]
        assert ran.code == 0 and [one["frame"] for one in seen] == [0, 1, 2, 3, 4]
        assert all(not one["degraded"] and len(one["predictions"]) == 3 for one in seen)
        ran = cli("run", plan, "--camera", film, "--frames", 2, *where)
        assert ran.code == 0 and "frame 1  class-" in ran.out and "frame 2" not in ran.out
        assert "2 frames, 0 passed over, 0 degraded" in ran.err
        status = json.loads(cli("status", "--listen", here, "--json").out)
        assert [worker["device"] for worker in status["workers"]] == ["alpha", "beta", "gamma"]
        watch = ("top", "--listen", here, "--every", "1500ms", "--looks", "1")
        look = json.loads(cli(*watch, "--json").out)
        assert set(look["answers_per_second"]) == set(look["last_seen"]) == {
            "alpha", "beta", "gamma"
        }  # fmt: skip
        ran = cli(*watch)
        assert "home  3 workers, 0.0 sub-model answers a second" in ran.out and "beta" in ran.out
        ran = cli("status", "--listen", here, "--cluster", "lab", "--wait", "500ms")
        assert ran.code == 7 and "there are workers of home: give --cluster home" in ran.err
        ran = cli("run", plan, good[0], "--listen", here, "--cluster", "lab", "--wait", "500ms")
        assert ran.code == 7 and "there are workers of home: give --cluster home" in ran.err
        workers.kill("beta")
        short = ("--listen", here, "--deadline", "30s", "--wait", "1s")  # not re-placed yet
        ran = cli("run", plan, good[0], *short)
        assert ran.code == 0 and "(degraded: slot 1 missing)" in ran.out
        assert "slots 1 have no worker" in ran.err
        ran = cli("run", plan, good[0], *short, "--min-slots", "3")
        assert ran.code == 7
    finally:
        workers.close()


@pytest.mark.slow
def test_http_serves_until_it_is_stopped_and_prints_no_secret(plan, pictures, tmp_path, here):
    import http.client
    import signal
    import subprocess
    import sys

    from worker_processes import START

    token = tmp_path / "token"
    argv = ["run", plan, "--http", ":0", "--listen", here, "--token-file", token, "--json"]
    server = subprocess.Popen(
        [sys.executable, "-c", START, *map(str, argv)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        # What a shell starts in the background ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    said = "".join(server.stdout.readline() for _ in range(6))
    host, port = json.loads(said)["url"].removeprefix("http://").split(":")
    secret = token.read_text().strip()
    link = http.client.HTTPConnection(host, int(port), timeout=30)
    link.request("POST", "/v1/classify", (pictures / "a.png").read_bytes(),
                 {"Authorization": f"Bearer {secret}"})  # fmt: skip
    response = link.getresponse()
    assert response.status == 503 and b"0 of 3 slots" in response.read()
    link.close()
    server.send_signal(signal.SIGINT)
    rest, errors = server.communicate(timeout=30)
    assert server.returncode == 130 and "Traceback" not in errors
    assert secret not in said + rest + errors and str(token) in said
