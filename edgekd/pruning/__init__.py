"""Pruning: which channels belong together (`coupling`, by torch-pruning's dependency graph), proof that they can go
(`proof`), what each width costs (`cost`), the widths for a share of the MACs (`points`), the plan of it all
(`planning`), what a criterion ranks by (`weights`), and what was removed, as JSON (`history`)."""

from edgekd.pruning.coupling import Group, Member, Refusal
from edgekd.pruning.history import apply
from edgekd.pruning.planning import PruningPlan, groups, macs_and_parameters, plan, problems, prune
from edgekd.pruning.weights import Channels, Slice

__all__ = [
    "Channels", "Group", "Member", "PruningPlan", "Refusal", "Slice", "apply", "groups", "macs_and_parameters", "plan",
    "problems", "prune",
]  # fmt: skip
