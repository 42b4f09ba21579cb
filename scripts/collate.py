"""Thin entry point: `python scripts/collate.py …` is `nora collate …`."""

import sys

from nora.cli import main

sys.exit(main(["collate", *sys.argv[1:]]))
