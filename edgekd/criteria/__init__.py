"""Criteria of pruning: `name(weights) -> [channels]`, higher = keep. `weights`: of each layer in the group, [channels, values]."""
