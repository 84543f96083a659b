"""``python -m torchtitan_cpp.generation``."""

import sys

from torchtitan_cpp.generation.command import main

if __name__ == "__main__":
    sys.exit(main())
