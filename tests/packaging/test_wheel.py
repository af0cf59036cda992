"""Build the sdist and the wheel as `make wheel` does, and use the wheel far from its source."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="manylinux tags are Linux's")


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(out: Path) -> Path:
    run(ROOT / "scripts" / "wheel", out, cwd=ROOT, SOURCE_DATE_EPOCH="1700000000")
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what it pulls."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    run(folder / "env/bin/pip", "install", "--quiet", wheel, cwd=folder)
    return folder / "env"


def test_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    inside = {name.removeprefix("vitlet/") for name in names if name.startswith("vitlet/")}
    package = ROOT / "python" / "vitlet"
    expected = {
        f"{prefix}{path.relative_to(folder).as_posix()}"
        for prefix, folder in [
            ("", package), *((f"{name}/", ROOT / name) for name in ("export", "partition", "apps"))
        ]
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    extension = {name for name in inside if re.fullmatch(r"_C\..*\.so", name)}
    assert len(extension) == 1
    operators = {name for name in inside if re.fullmatch(r"lib/libvitlet_ort\.(so|dylib)", name)}
    assert len(operators) == 1
    assert inside - extension - operators == expected
    assert {name.split("/")[0] for name in names} == {"vitlet", "vitlet-0.1.0.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 10_000_000


@linux_only
@pytest.mark.parametrize("name", ["vitlet/_C.", "vitlet/lib/libvitlet_ort."])
def test_libraries_need_the_c_library_only(name: str, wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (full,) = (n for n in archive.namelist() if n.startswith(name) and n.endswith(".so"))
        path = archive.extract(full, tmp_path)
    needed = run("ldd", path, cwd=tmp_path)
    for library in ("libstdc++", "torch", "cuda", "python", "onnxruntime"):
        assert library not in needed


@linux_only
def test_wheel_runs_on_old_distributions(wheel: Path) -> None:
    tag = re.search(r"manylinux_2_(\d+)_", wheel.name)
    assert tag and int(tag.group(1)) <= 28, wheel.name


def test_sdist_can_build_alone(wheel: Path) -> None:
    # scripts/wheel made the wheel from the sdist, so only what pip cannot notice is asked here.
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {m.name.split("/", 1)[1]: m for m in archive.getmembers() if "/" in m.name}
    assert {"LICENSE", "README.md", "tests/packaging/smoke.py"} <= set(members)
    assert members["python/vitlet/export/__init__.py"].isfile()
    assert not any(member.issym() for member in members.values())


def test_builds_in_two_places_are_byte_equal(wheel: Path, tmp_path: Path) -> None:
    # One was compiled from the sdist, in a folder of its own; this one reuses the clone's objects.
    again, fixed = tmp_path / "again", {"SOURCE_DATE_EPOCH": "1700000000"}
    run(
        sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", again, ROOT,
        cwd=tmp_path, **fixed,
    )  # fmt: skip
    (raw,) = again.glob("*.whl")
    if sys.platform == "linux":
        scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        repair = ["auditwheel", "repair", "--wheel-dir", tmp_path / "repaired", raw]
        run(sys.executable, "-m", *repair, cwd=tmp_path, PATH=scripts, **fixed)
        (raw,) = (tmp_path / "repaired").glob("*.whl")
    assert raw.name == wheel.name
    assert raw.read_bytes() == wheel.read_bytes()


def test_plain_install_pulls_numpy_only(venv: Path) -> None:
    listed = json.loads(run(venv / "bin/pip", "list", "--format=json", cwd=venv))
    assert {p["name"] for p in listed} - {"pip", "setuptools"} == {"numpy", "vitlet"}


def test_plain_install_works_elsewhere_on_disk(venv: Path) -> None:
    assert "ok: " in run(venv / "bin/python", SMOKE, cwd=venv)


def test_runtime_extra_runs_a_bundle(wheel: Path, venv: Path, tmp_path: Path) -> None:
    from PIL import Image

    import vitlet
    from vitlet.data.demo import demo_images

    vitlet.export("casvit_fashion", ["onnx"], tmp_path / "demo.vitlet")
    images, _, _ = demo_images()
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "image.png")
    pip = [venv / "bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run(*pip, f"vitlet[runtime] @ {wheel.as_uri()}", cwd=tmp_path)
    said = run(
        venv / "bin/python", SMOKE, tmp_path / "demo.vitlet", tmp_path / "image.png", cwd=tmp_path
    )
    assert "ok: predicted" in said
