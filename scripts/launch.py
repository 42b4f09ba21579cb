"""Thin entry point: `python scripts/launch.py …` is `nora launch …`."""

import sys

from nora.cli import main

sys.exit(main(["launch", *sys.argv[1:]]))
