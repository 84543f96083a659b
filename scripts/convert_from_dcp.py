#!/usr/bin/env python3
"""Turns a checkpoint of torchtitan into one of ours.

The same as python -m torchtitan_cpp.checkpoint.convert to-native; see its --help.
"""

import sys

from torchtitan_cpp.checkpoint.convert import main

if __name__ == "__main__":
    sys.exit(main(["to-native", *sys.argv[1:]]))
