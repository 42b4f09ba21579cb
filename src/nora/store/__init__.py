"""The run store: attempts, records, states, snapshots. Knows files, and nothing of how a run is made."""
