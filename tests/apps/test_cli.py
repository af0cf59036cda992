"""The command line as a whole: help, JSON, what is imported, what is asked for and refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

VERBS = (
    "models", "info", "doctor", "export", "verify", "inspect", "bench", "predict", "demo",
    "compress shift-add",
    "partition plan", "partition train", "partition export", "partition evaluate",
    "partition simulate", "worker", "run", "status", "top",
)  # fmt: skip
PAGES = ("", "compress", "partition", *VERBS)
HELP = Path(__file__).parent / "help"
HEAVY = ("torch", "onnx", "onnxruntime", "coremltools", "tvm", "matplotlib", "PIL", "numpy")


@pytest.mark.parametrize("verb", PAGES)
def test_help_is_as_it_was(cli, verb):
    """`VITLET_UPDATE_HELP=1 pytest tests/apps/test_cli.py` accepts new help pages."""
    ran = cli(*verb.split(), "--help")
    assert ran.code == 0 and ran.err == ""
    golden = HELP / f"{verb.replace(' ', '-') or 'vitlet'}.txt"
    if os.environ.get("VITLET_UPDATE_HELP"):
        golden.write_text(ran.out)
    assert ran.out == golden.read_text()


@pytest.mark.parametrize("verb", PAGES)
def test_help_fits_80_columns_and_cuts_no_sentence(cli, verb):
    out = cli(*verb.split(), "--help").out
    assert max(map(len, out.splitlines())) <= 80
    assert not [line for line in out.splitlines()[1:] if line.endswith("...")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_shared_options(cli, verb):
    out = cli(*verb.split(), "--help").out
    assert all(option in out for option in ("--json", "--quiet", "--verbose", "--no-progress"))


def test_without_a_verb_the_help_is_shown(cli):
    ran = cli()
    assert ran.code == 0 and ran.out == cli("--help").out


def test_the_version_is_printed(cli):
    import vitlet

    assert cli("--version").out == f"vitlet {vitlet.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["export", "--help"], ["models"], ["doctor"]])
def test_nothing_heavy_is_imported(process, argv):
    code = (
        "import sys\n"
        "from vitlet.apps.cli import main\n"
        "main(sys.argv[1:])\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    assert process(*argv, code=code).stdout.splitlines()[-1] == "HEAVY []"


def test_help_imports_few_modules(process):
    code = (
        "import sys\n"
        "before = len(sys.modules)\n"
        "from vitlet.apps.cli import main\n"
        "main(['--help'])\n"
        "print(len(sys.modules) - before, 'rich.console' in sys.modules)\n"
    )
    count, rich = process(code=code).stdout.splitlines()[-1].split()
    assert int(count) < 220 and rich == "False"


def test_importing_vitlet_imports_nothing_but_itself(process):
    code = (
        "import sys\n"
        "import importlib, typing\n"
        "before = set(sys.modules)\n"
        "import vitlet\n"
        "print({name.split('.')[0] for name in set(sys.modules) - before})\n"
    )
    # importlib: what an editable installation's finder brings.
    assert eval(process(code=code).stdout) <= {"vitlet", "importlib", "__future__"}


def test_models_are_listed_with_their_facts(cli):
    data = json.loads(cli("models", "--json").out)
    names = {model["name"] for model in data["models"]}
    assert {"casvit_fashion", "mobileclip_s0", "casvit_xs", "deit_tiny"} <= names
    for model in data["models"]:
        assert model["params"] > 0 and model["macs"] > 0 and model["licence"]
    table = cli("models", "--family", "deit").out.splitlines()
    assert len(table) == 4 and max(map(len, table)) <= 80


def test_the_nearest_model_and_family_are_offered(cli):
    ran = cli("info", "casvit_fashon")
    assert ran.code == 2 and "casvit_fashion" in ran.err
    ran = cli("models", "--family", "casvitt")
    assert ran.code == 2 and "casvit" in ran.err


def test_info_tells_about_a_model(cli):
    ran = cli("info", "casvit_xs", "--json")
    data = json.loads(ran.out)
    assert data["input"] == [3, 224, 224]
    assert [target["target"] for target in data["targets"]] == ["onnx", "coreml", "tvm"]
    ran = cli("info", "casvit_xs")
    assert "ImageNet" in ran.out or "224 x 224" in ran.out
    assert "vitlet export casvit_xs" in ran.err


def test_doctor_reports_this_machine(cli):
    data = json.loads(cli("doctor", "--json").out)
    assert [target["target"] for target in data["targets"]] == ["onnx", "coreml", "tvm"]
    assert data["machine"]["threads"] >= 1
    assert "numpy" in {package["name"] for package in data["packages"]}


def test_doctor_names_what_is_missing_and_how_to_get_it(cli, monkeypatch):
    import importlib.metadata

    from vitlet.apps import machine

    def version(name):
        if name in ("coremltools", "apache-tvm"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.9.1", "apache-tvm-ffi": "0.1.15"}.get(name, "99.0")

    monkeypatch.setattr(machine.importlib.metadata, "version", version)
    targets = {target["target"]: target for target in machine.targets()}
    assert targets["coreml"]["fix"] == 'pip install "vitlet[coreml]"'
    assert targets["tvm"]["run"]["why"] == "needs apache-tvm, apache-tvm-ffi"
    assert targets["onnx"]["export"]["why"] == "needs torch"  # too old
    assert targets["onnx"]["run"]["here"]
    ran = cli("doctor")
    assert "too old: needs 2.10" in ran.out and "missing" in ran.out
    assert 'pip install "vitlet[tvm]"' in ran.err


def test_doctors_table_of_packages_is_that_of_the_package(request):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    from vitlet.apps.machine import PACKAGES

    project = tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())["project"]
    declared = set()
    for extra, needs in [("", project["dependencies"]), *project["optional-dependencies"].items()]:
        for need in needs:
            name, lowest = re.fullmatch(r"([\w-]+)(?:\[.*\])?(?:[>=]=(.*))?", need).groups()
            declared.add((name, lowest, extra))
    assert set(PACKAGES) <= declared
    assert {name for name, lowest, _ in declared if lowest} == {name for name, *_ in PACKAGES}
