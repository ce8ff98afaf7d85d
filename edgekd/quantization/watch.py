"""What the nodes of a graph make of data, one batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from edgekd.inputs import positional

if TYPE_CHECKING:
    import torch
    from torch import fx


def watch(graph: fx.GraphModule, batches: Iterable[Any], names: Collection[str]) -> Iterator[dict[str, torch.Tensor]]:
    """{node: its value} of the nodes in `names` for each of `batches` (inputs [B, ...] or {name: tensor}), without
    gradients. Nothing after the last of them is computed. Raises KeyError for a node that the graph doesn't have."""
    import torch
    from torch import fx

    missing = set(names) - {n.name for n in graph.graph.nodes}
    if missing:
        raise KeyError(f"the graph has no node {', '.join(sorted(missing))}")

    class Last(Exception):
        pass

    class Watching(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            made = super().run_node(node)
            if node.name in names:
                seen[node.name] = made
                if len(seen) == len(set(names)):
                    raise Last
            return made

    for inputs in batches:
        seen: dict[str, torch.Tensor] = {}
        interpreter = Watching(graph)
        interpreter.extra_traceback = False
        with torch.no_grad(), contextlib.suppress(Last):
            interpreter.run(*positional(inputs))
        yield seen
