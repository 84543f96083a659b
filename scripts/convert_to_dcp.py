#!/usr/bin/env python3
"""Turns a checkpoint of ours into one that torchtitan reads.

The same as python -m torchtitan_cpp.checkpoint.convert to-dcp; see its --help.
"""

import sys

from torchtitan_cpp.checkpoint.convert import main

if __name__ == "__main__":
    sys.exit(main(["to-dcp", *sys.argv[1:]]))
