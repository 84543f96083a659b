"""``pip`` builds a wheel in isolation that works with the torch that is installed."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]


def test_an_isolated_build_requires_and_works_with_the_installed_torch(
    tmp_path: Path,
) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "wheel", "--verbose", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert f"torch {torch.__version__} at {Path(torch.__file__).parent}" in output

    (wheel,) = tmp_path.glob("torchtitan_cpp-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        headers = email.message_from_bytes(archive.read(metadata))
        archive.extractall(tmp_path / "site")
    public = torch.__version__.split("+")[0]
    assert f"torch=={public}" in headers.get_all("Requires-Dist", [])
    assert {name.split("/")[0].split("-")[0] for name in names} == {"torchtitan_cpp"}

    # -I -S: nothing of this environment's own installation of the package.
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path / "site")!r}, {str(Path(torch.__file__).parents[1])!r}]
import torchtitan_cpp
print(torchtitan_cpp.__file__)
"""
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(found.strip()) == tmp_path / "site" / "torchtitan_cpp" / "__init__.py"
