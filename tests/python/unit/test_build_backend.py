"""The build backend ties the package to the torch of the target environment."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "build_backend.py"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty site-packages that stands for the one of the target environment."""
    monkeypatch.delenv("TORCHTITAN_TORCH_ROOT", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(tmp_path))
    return tmp_path


@pytest.fixture
def backend(site: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install_torch(folder: Path, version: str) -> Path:
    torch = folder / "torch"
    torch.mkdir()
    (torch / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\n")
    return torch


def test_the_installed_torch_is_required_and_no_other_fetched(
    backend: ModuleType, site: Path
) -> None:
    torch = install_torch(site, "2.12.1+cu130")
    assert backend.dynamic_metadata({}, {})["dependencies"][0] == "torch==2.12.1"
    assert not any("torch" in r for r in backend.get_requires_for_build_wheel())
    settings = backend._settings({"build-dir": "here"})
    assert settings == {
        "build-dir": "here",
        "cmake.define.TORCHTITAN_TORCH_ROOT": str(torch),
    }


def test_without_torch_the_pinned_one_is_required_and_fetched(
    backend: ModuleType,
) -> None:
    pinned = f"torch=={backend.PINNED_TORCH}"
    assert backend.dynamic_metadata({}, {})["dependencies"][0] == pinned
    assert pinned in backend.get_requires_for_build_wheel()
    assert pinned in backend.get_requires_for_build_editable()


def test_a_torch_too_old_is_refused_with_the_remedy(
    backend: ModuleType, site: Path
) -> None:
    install_torch(site, "2.10.0")
    with pytest.raises(RuntimeError, match=r">= 2.11, .* 2.10.0; run: pip install"):
        backend.torch_requirement()


def test_a_named_torch_wins(
    backend: ModuleType, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_torch(site, "2.12.0")
    (tmp_path / "elsewhere").mkdir()
    named = install_torch(tmp_path / "elsewhere", "2.13.0")
    monkeypatch.setenv("TORCHTITAN_TORCH_ROOT", str(named))
    assert backend.find_torch() == (named, "2.13.0")


@pytest.mark.parametrize("place", ["system", "temporary", "nowhere"])
def test_an_import_rebuilds_only_where_the_tools_stay(
    place: str, backend: ModuleType, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_torch(site, "2.13.0")
    # .../overlay/lib/python3.x/site-packages/scikit_build_core/build/__init__.py
    overlay = Path(backend._backend().__file__).parents[5]
    folder = {"system": "/usr/bin", "temporary": overlay / "bin", "nowhere": None}[
        place
    ]
    monkeypatch.setattr(shutil, "which", lambda name: folder and f"{folder}/{name}")
    settings = backend._settings(None, editable=True)
    rebuild = settings.get("editable.rebuild", "as pyproject.toml says")
    assert rebuild == ("as pyproject.toml says" if place == "system" else "false")
