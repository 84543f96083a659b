"""``python -m torchtitan_cpp.config [flags]``: every value and where it was given."""

from __future__ import annotations

import sys

from torchtitan_cpp.config.check import contradictions
from torchtitan_cpp.config.explain import explain
from torchtitan_cpp.config.load import read_config


def main() -> int:
    """Print the page; 1 if a value is wrong, 0 otherwise, supported or not."""
    loaded = read_config()
    print(explain(loaded))
    return 1 if loaded.problems or contradictions(loaded) else 0


if __name__ == "__main__":
    sys.exit(main())
