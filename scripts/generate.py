#!/usr/bin/env python3
"""Generates text with a trained model; the same as python -m torchtitan_cpp.generation.

scripts/generate.py --prompt "def main("
torchrun --nproc_per_node 2 scripts/generate.py --prompt "def main(" --seed 1
"""

import sys

from torchtitan_cpp.generation.command import main

if __name__ == "__main__":
    sys.exit(main())
