"""The files that start a worker on a device call it as its help page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "apps" / "deploy"
UNIT = (DEPLOY / "vitlet-worker.service").read_text("utf-8")
CONTAINER = (DEPLOY / "Containerfile").read_text("utf-8")


def options(words: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", words))


def test_the_unit_starts_a_worker_with_options_that_exist(cli):
    known = options(cli("worker", "--help").out)
    (start,) = re.findall(r"^ExecStart=(.+)$", UNIT, re.M)
    assert start.split()[1] == "worker" and {"--keys", "--cache"} <= options(start) <= known
    (told,) = re.findall(r"VITLET_WORKER_OPTIONS=(--.+)$", UNIT, re.M)
    assert options(told) <= known


def test_what_trying_again_cannot_mend_does_not_restart_the_unit():
    from vitlet.errors import CorruptInputError, MissingDependencyError, UsageError

    (codes,) = re.findall(r"^RestartPreventExitStatus=(.+)$", UNIT, re.M)
    hopeless = {e.exit_code for e in (UsageError, MissingDependencyError, CorruptInputError)}
    assert set(map(int, codes.split())) == hopeless


def test_the_container_starts_a_worker_as_nobody_special(cli):
    known = options(cli("worker", "--help").out)
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", CONTAINER, re.M)
    words = json.loads(entry)
    assert words[:2] == ["vitlet", "worker"] and options(" ".join(words)) <= known
    assert re.search(r"^USER vitlet$", CONTAINER, re.M)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path):
    # A unit's program must be there to be verified.
    unit = tmp_path / "vitlet-worker.service"
    unit.write_text(UNIT.replace("/opt/vitlet/bin/vitlet", shutil.which("true")))
    ran = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stderr == ""
