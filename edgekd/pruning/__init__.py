"""Pruning: a forward pass with a label on every channel (`trace`, its rules in `moves`, `products`, `reductions`),
classes of labels (`classes`), groups of coupled channels (`coupling`), a check that they can be removed (`check`,
against the model of `masked`), the cost of each width (`cost`), the widths for a share of the MACs (`points`), the plan
(`planning`), the weights that a criterion ranks by (`weights`), and the removals as JSON (`history`)."""

from edgekd.pruning.coupling import Group, Member, Refusal
from edgekd.pruning.history import apply
from edgekd.pruning.planning import PruningPlan, groups, macs_and_parameters, plan, problems, prune
from edgekd.pruning.weights import Channels, Slice

__all__ = [
    "Channels", "Group", "Member", "PruningPlan", "Refusal", "Slice", "apply", "groups", "macs_and_parameters", "plan",
    "problems", "prune",
]  # fmt: skip
