"""Files: baselines, snapshots, recordings; written whole or not at all, checked when read."""
