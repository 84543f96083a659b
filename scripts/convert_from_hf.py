#!/usr/bin/env python3
"""Turns a Hugging Face model folder into a checkpoint of weights.

The same as python -m torchtitan_cpp.checkpoint.convert from-hf; see its --help.
"""

import sys

from torchtitan_cpp.checkpoint.convert import main

if __name__ == "__main__":
    sys.exit(main(["from-hf", *sys.argv[1:]]))
