"""Thin entry point: `python scripts/sync_wandb.py …` is `nora sync-wandb …`."""

import sys

from nora.cli import main

sys.exit(main(["sync-wandb", *sys.argv[1:]]))
