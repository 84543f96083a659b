#!/usr/bin/env python3
"""Turns the weights of a checkpoint into a Hugging Face model folder.

The same as python -m torchtitan_cpp.checkpoint.convert to-hf; see its --help.
"""

import sys

from torchtitan_cpp.checkpoint.convert import main

if __name__ == "__main__":
    sys.exit(main(["to-hf", *sys.argv[1:]]))
