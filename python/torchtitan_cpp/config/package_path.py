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
    # An editable install has a folder for the sources and one for what is compiled.
    places = [Path(folder) / rest for folder in spec.submodule_search_locations]
    if spec.origin:
        places.insert(0, Path(spec.origin).parent / rest)
    return str(next((place for place in places if place.exists()), places[0]))
