"""The layers of a model as pruning cuts them: which axis of which parameter is which side of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from edgekd.pruning.planes import Entry
from edgekd.pruning.trace import Trace

CONVOLUTION, RECURRENT = nn.modules.conv._ConvNd, (nn.RNNBase, nn.RNNCellBase)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
KNOWN = (CONVOLUTION, nn.Linear, nn.Embedding, nn.PReLU, *NORMS)


class Layers:
    """Modules and tensors of a traced model by name."""

    def __init__(self, model: nn.Module, trace: Trace):
        self.trace, self.entries = trace, trace.notes.entries
        self.modules = dict(model.named_modules())
        self.tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self.order = {n: i for i, n in enumerate([*self.modules, *self.tensors])}
        self.by = {(e.name, e.axis): e for e in self.entries}

    def sides(self, entry: Entry, i: int) -> Iterator[tuple[str, str, str, int, Sequence[int]]]:
        """(layer, kind, side, its width, channels) of channel `i` of an axis of a parameter."""
        owner, _, name = entry.name.rpartition(".")
        module = self.modules.get(owner)
        if isinstance(module, CONVOLUTION):
            if name == "weight" and entry.axis < 2:
                yield from _convolution(owner, module, entry.axis, i)
        elif isinstance(module, nn.Linear):
            if name == "weight":
                width = module.out_features if entry.axis == 0 else module.in_features
                yield owner, "linear", "out" if entry.axis == 0 else "in", width, (i,)
        elif isinstance(module, nn.Embedding):
            if entry.axis == 1:
                yield owner, "embedding", "out", module.embedding_dim, (i,)
        elif isinstance(module, NORMS):
            yield owner, "norm", "out", entry.size, (i,)
        elif isinstance(module, nn.PReLU):
            yield owner, "other", "out", entry.size, (i,)
        elif isinstance(module, RECURRENT):
            matrix = self.tensors[entry.name].ndim > 1
            yield entry.name, "linear" if matrix else "other", f"axis {entry.axis}", entry.size, (i,)
            yield from self._recurrent(owner, module, name, entry, i)
        elif isinstance(module, nn.MultiheadAttention):
            yield entry.name, "linear" if name == "in_proj_weight" else "other", f"axis {entry.axis}", entry.size, (i,)
        elif ".parametrizations." in f".{entry.name}":  # refused: see `pins`
            yield f".{entry.name}".partition(".parametrizations.")[0].lstrip("."), "linear", "out", entry.size, (i,)
        else:
            yield entry.name, "other", f"axis {entry.axis}", entry.size, (i,)

    def _recurrent(self, owner: str, module: Any, name: str, entry: Entry, i: int) -> Iterator[Any]:
        if entry.axis == 1 and name in ("weight_hh_l0", "weight_hh"):
            yield owner, "recurrent", "hidden_size", module.hidden_size, (i,)
        elif entry.axis == 1 and name in ("weight_ih_l0", "weight_ih"):
            yield owner, "number", "input_size", module.input_size, (i,)

    def pairs(self) -> list[tuple[range, range]]:
        """Labels that go together since a module has one number for them: the units of all layers of an LSTM."""
        found = []
        for owner, module in self.modules.items():
            if isinstance(module, nn.RNNBase):
                entries = [e for e in self.entries if e.name.startswith(f"{owner}.weight_hh") and e.axis == 1]
                entries = [e for e in entries if e.name.rpartition(".")[0] == owner]
                found += [(self.labels(e), self.labels(entries[0])) for e in entries[1:]]
        return found

    @staticmethod
    def labels(entry: Entry) -> range:
        return range(entry.first, entry.first + entry.size)

    def pins(self, protect: set[str]) -> Iterator[tuple[range, str]]:
        """Labels that can't go, each with the reason."""
        tied = self._tied()
        for entry in self.entries:
            owner = entry.name.rpartition(".")[0]
            if any(entry.name == p or entry.name.startswith(f"{p}.") for p in protect):
                yield self.labels(entry), f"`{owner}` is protected"
            elif owner in tied:
                yield self.labels(entry), f"`{owner}` shares a weight with another layer"
            elif ".parametrizations." in f".{entry.name}":
                layer = f".{entry.name}".partition(".parametrizations.")[0].lstrip(".")
                yield self.labels(entry), f"the weight of `{layer}` is computed from other tensors (a parametrization)"
            elif parametrize.is_parametrized(self.modules.get(owner, nn.Identity())):
                yield self.labels(entry), f"the weight of `{owner}` is computed from other tensors (a parametrization)"
            elif isinstance(self.modules.get(owner), nn.LSTM) and self.modules[owner].proj_size:
                yield self.labels(entry), f"`{owner}` is an LSTM with a projection"

    def _tied(self) -> set[str]:
        """Layers that share a parameter with another layer."""
        owners: dict[int, set[str]] = {}
        for name, module in self.modules.items():
            for _, p in module.named_parameters(recurse=False):
                owners.setdefault(id(p), set()).add(name)
        return {name for group in owners.values() if len(group) > 1 for name in group}

    def numbers(self, stack: Sequence[str], size: int) -> Iterator[tuple[str, str]]:
        """(module, attribute) of those that are running which hold a whole number `size`."""
        if isinstance(self.modules[stack[-1]], (*KNOWN, *RECURRENT)):
            return  # shapes that torch gives itself
        for name in dict.fromkeys(stack):
            module = self.modules[name]
            if not isinstance(module, (*KNOWN, *RECURRENT)):
                attention = isinstance(module, nn.MultiheadAttention)  # which has more numbers than `Narrowed` reads
                for key, value in vars(module).items():
                    if attention and key != "num_heads":
                        continue
                    if type(value) is int and value == size and not key.startswith("_"):
                        yield name, key


def _convolution(owner: str, module: Any, axis: int, i: int) -> Iterator[Any]:
    groups, ins, outs = module.groups, module.in_channels, module.out_channels
    if groups > 1 and groups == ins == outs:
        if axis == 0:
            yield owner, "depthwise", "out", outs, (i,)
    elif (axis == 0) != module.transposed:
        yield owner, "conv", "out", outs, (i,)
    else:
        inside = ins // groups
        yield owner, "conv", "in", ins, tuple(i + p * inside for p in range(groups)) if groups > 1 else (i,)
