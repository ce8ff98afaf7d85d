"""Pruning of coupled channels: which go together (`groups`), to what a model can be pruned (`points`), doing it (`apply`)."""

from edgekd.pruning.apply import apply, prune, trial
from edgekd.pruning.groups import Group, groups, macs_and_parameters
from edgekd.pruning.points import PruningPlan, plan, problems

__all__ = ["Group", "PruningPlan", "apply", "groups", "macs_and_parameters", "plan", "problems", "prune", "trial"]
