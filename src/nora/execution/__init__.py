"""One run executed: attempt, checkpoints, progress, tracker, provenance."""
