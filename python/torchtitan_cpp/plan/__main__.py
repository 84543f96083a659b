"""``python -m torchtitan_cpp.plan``."""

import sys

from torchtitan_cpp.plan.command import main

if __name__ == "__main__":
    sys.exit(main())
