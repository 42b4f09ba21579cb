"""Thin entry point: `python scripts/run.py …` is `nora run …`."""

import sys

from nora.cli import main

sys.exit(main(["run", *sys.argv[1:]]))
