"""Criteria of pruning: `name(group: Channels) -> [channels]`, higher = keep. `group.slices` has the weights of every
layer that the channels touch, each [channels, numbers]. The folder is the list.
"""
