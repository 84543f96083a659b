"""Build backend: scikit-build-core, told which torch the extension must match.

A C++ extension works only with the torch it was compiled against. pip builds in
an isolated environment, where the torch of the target environment is hidden;
asking for torch there would fetch a second one. So this backend looks for the
torch of the environment that is being installed into (or named by the variable
``TORCHTITAN_TORCH_ROOT``), hands its folder to CMake, and writes its version into the
package's dependencies. Only where there is none does it ask for the pinned one.

It is also the dynamic-metadata provider of scikit-build-core for
``project.dependencies`` (see ``pyproject.toml``).
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PINNED_TORCH = "2.13.0"
OLDEST_TORCH = (2, 11)

RUNTIME_DEPENDENCIES = [
    "numpy",
    "tokenizers>=0.15",
    "datasets>=3.6",
    "safetensors>=0.4",
    "tensorboard",
    "typing_extensions",
]


def find_torch() -> tuple[Path, str] | None:
    """Folder and version of the target environment's torch, or None."""
    named = os.environ.get("TORCHTITAN_TORCH_ROOT")
    candidates = [Path(named)] if named else []
    # Under build isolation sysconfig still names the target environment.
    for key in ("purelib", "platlib"):
        candidates.append(Path(sysconfig.get_path(key)) / "torch")
    for folder in candidates:
        version_file = folder / "version.py"
        if version_file.is_file():
            match = re.search(
                r"__version__\s*=\s*['\"]([^'\"]+)", version_file.read_text()
            )
            if match:
                return folder, match.group(1)
    return None


def torch_requirement() -> str:
    """The requirement that keeps the torch in use: its public version, exactly."""
    found = find_torch()
    version = found[1].split("+")[0] if found else PINNED_TORCH
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TORCH:
        raise RuntimeError(
            f"torchtitan_cpp needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, but "
            f"the environment has torch {version}; run: "
            f"pip install torch=={PINNED_TORCH}"
        )
    return f"torch=={version}"


def dynamic_metadata(
    settings: Mapping[str, Any], project: Mapping[str, Any]
) -> dict[str, Any]:
    """scikit-build-core's hook: the values of the dynamic ``project`` fields."""
    return {"dependencies": [torch_requirement(), *RUNTIME_DEPENDENCIES]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """scikit-build-core's hook: fields that differ between an sdist and its wheels."""
    return {"dependencies": True}


def _backend() -> Any:
    try:
        from scikit_build_core import build
    except ImportError as error:
        raise ImportError(
            "without build isolation the build tools must be installed first; run: "
            "pip install 'scikit-build-core>=1.1' ninja"
        ) from error
    return build


def _tools_stay() -> bool:
    """Whether cmake and ninja are on PATH now and still will be after the build.

    An isolated build gets those that the system lacks in a temporary environment, the
    one that holds scikit-build-core too.
    """
    site = Path(_backend().__file__).parents[2]
    lasting = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    temporary = None if str(site) in lasting else site.parents[2]
    tools = [shutil.which(name) for name in ("cmake", "ninja")]
    return all(tool and temporary not in Path(tool).parents for tool in tools)


def _settings(
    config_settings: dict[str, Any] | None, *, editable: bool = False
) -> dict[str, Any]:
    """The user's settings and what this project adds to them."""
    settings = dict(config_settings or {})
    found = find_torch()
    if found:
        settings.setdefault("cmake.define.TORCHTITAN_TORCH_ROOT", str(found[0]))
    if editable and not (found and _tools_stay()):
        # Rebuilding on import would miss what is gone by then.
        settings.setdefault("editable.rebuild", "false")
    return settings


def _requires(hook: str, config_settings: dict[str, Any] | None) -> list[str]:
    wanted: list[str] = list(getattr(_backend(), hook)(config_settings))
    if find_torch() is None:
        wanted.append(torch_requirement())
    return wanted


def get_requires_for_build_wheel(
    config_settings: dict[str, Any] | None = None,
) -> list[str]:
    return _requires("get_requires_for_build_wheel", config_settings)


def get_requires_for_build_editable(
    config_settings: dict[str, Any] | None = None,
) -> list[str]:
    return _requires("get_requires_for_build_editable", config_settings)


def get_requires_for_build_sdist(
    config_settings: dict[str, Any] | None = None,
) -> list[str]:
    return list(_backend().get_requires_for_build_sdist(config_settings))


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    return str(
        _backend().prepare_metadata_for_build_wheel(metadata_directory, config_settings)
    )


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    return str(
        _backend().prepare_metadata_for_build_editable(
            metadata_directory, config_settings
        )
    )


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    settings = _settings(config_settings)
    return str(_backend().build_wheel(wheel_directory, settings, metadata_directory))


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    settings = _settings(config_settings, editable=True)
    return str(_backend().build_editable(wheel_directory, settings, metadata_directory))


def build_sdist(
    sdist_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    return str(_backend().build_sdist(sdist_directory, config_settings))
