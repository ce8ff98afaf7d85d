"""Pruning: groups of coupled channels (`coupling`, with torch-pruning's dependency graph), a check that they can be
removed (`proof`), the cost of each width (`cost`), the widths for a share of the MACs (`points`), the plan
(`planning`), the weights that a criterion ranks by (`weights`), and the removals as JSON (`history`)."""

from edgekd.pruning.coupling import Group, Member, Refusal
from edgekd.pruning.history import apply
from edgekd.pruning.planning import PruningPlan, groups, macs_and_parameters, plan, problems, prune
from edgekd.pruning.weights import Channels, Slice

__all__ = [
    "Channels", "Group", "Member", "PruningPlan", "Refusal", "Slice", "apply", "groups", "macs_and_parameters", "plan",
    "problems", "prune",
]  # fmt: skip
