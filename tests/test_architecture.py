"""The arrows between packages point one way, and nothing heavy loads before it is needed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "dataengine": {"dataengine"},
    "builders": {"builders", "dataengine"},
    "prompts_sim": {"prompts_sim", "dataengine"},
    "model": {"model", "dataengine"},
    "pipelines": {"pipelines", "builders", "prompts_sim", "model", "dataengine"},
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        forbidden = (imports(path) & set(ALLOWED)) - ALLOWED[package]
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


@pytest.mark.parametrize("statement", ["import dataengine", "import pipelines.cli", "import dataengine.builder"])
def test_heavy_imports_are_lazy(statement):
    heavy = ("torch", "ray", "datasets", "pyarrow", "cv2", "skimage", "scipy", "pydantic", "PIL", "numba", "imagehash")
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_wheel_works_outside_the_repository(tmp_path):
    copy, site = tmp_path / "copy", tmp_path / "site"
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo", "out")
    shutil.copytree(ROOT, copy, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(copy)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops - set(ALLOWED) == {wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    shutil.rmtree(copy)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import pipelines; assert pipelines.__file__.startswith(sys.path[0]), pipelines.__file__\n"
        "from pipelines.cli import app; app()\n"
    )
    for command in (
        "synth shapes --images 2 --out shapes",
        "build vgd --source shapes=shapes --out vgd",
        "validate vgd",
    ):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, str(site), *command.split()],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "NUMBA_DISABLE_JIT": "1"},  # for two pictures, compiling takes longer
        )
        assert done.returncode == 0, done.stderr
    assert "all good" in done.stdout
    assert (site / "bin" / "dataengine").exists()
