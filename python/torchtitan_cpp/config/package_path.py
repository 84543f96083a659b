"""Paths inside installed packages: ``package:torchtitan_cpp/assets/tokenizer``.

So that a configuration file that travels with a package can name its neighbours,
wherever the package is installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PREFIX = "package:"


def resolve_package_path(path: str) -> str:
    """The absolute path of ``package:<package>/<path>``; other paths as they are.

    Raises:
        ValueError: if the package is not installed. The file itself need not exist.
    """
    if not path.startswith(PREFIX):
        return path
    package, _, rest = path[len(PREFIX) :].partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"no package named {package!r} is installed")
    # An editable install has several: that of the sources and that of the extension.
    folders = [Path(location) for location in spec.submodule_search_locations]
    if spec.origin:
        folders.insert(0, Path(spec.origin).parent)
    found = [folder / rest for folder in folders if (folder / rest).exists()]
    return str(found[0] if found else folders[0] / rest)
