"""Which channels of a model's tensors go together, seen in one forward pass of one row: every operator that runs has a
rule for the labels of its values (see `planes.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgekd.inputs import each
from edgekd.pruning.moves import MOVES, Moves
from edgekd.pruning.planes import Value, varies
from edgekd.pruning.products import Products
from edgekd.pruning.reductions import SUMS, Reductions

Forward = Callable[[nn.Module, Any], Any]

SAME = {"clone", "_to_copy", "detach", "contiguous", "lift_fresh", "native_dropout", "dropout", "alias", "copy"}
UNTAGGED = {
    "hardswish",
    "log_sigmoid_forward",
    "rrelu_with_noise",
    "masked_fill",
    "rsub",
    "where",
    "_prelu_kernel",
    "prelu",
}
POOLS = ("max_pool", "avg_pool", "adaptive", "_adaptive", "upsample", "_upsample", "reflection_pad", "replication_pad")
MADE = {*(f"{n}_like" for n in ("zeros", "ones", "full", "empty")), "new_zeros", "new_ones", "new_full", "new_empty"}
ALONG = {"_softmax", "_safe_softmax", "_log_softmax", "cumsum", "logsumexp", "amax", "amin", "max", "min", "argmax",
         "argmin", "sort", "topk", "prod", "std"}  # fmt: skip


class Trace(Moves, Products, Reductions):
    """Notes how labels go through the operators that run in it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        given = [self.value(t) for t in tensors]
        shapes = [tuple(t.shape) for t in tensors]  # before an operator in place
        self.number += 1
        out = func(*args, **kwargs)
        if any(v.planes or v.means for v in given):
            self.rule(func, args, kwargs, tensors, given, shapes, out)
        elif isinstance(out, torch.Tensor) and id(out) in self.values and not any(out is t for t in tensors):
            del self.values[id(out)]
        return out

    def rule(self, func, args, kwargs, tensors, given, shapes, out) -> None:
        name = func.overloadpacket.__name__
        name = name if name.startswith("__") else name.rstrip("_")
        result = out[0] if isinstance(out, (list, tuple)) and name not in MOVES else out
        if name in MADE:  # of their shape alone; holding it would make autograd copy it, which is an operator more
            return
        if name in ("cat", "stack"):
            self.keep(out, self.cat(name, args, kwargs, tensors, given, out))
        elif name in MOVES:
            self.moved(name, func, args, kwargs, given, shapes, out)
        elif name in SAME or (name == "as_strided" and tuple(out.shape) == shapes[0]):
            self.keep(result, given[0] if name != "copy" else given[-1])
        elif name == "glu":
            self.keep(out, self.glu(given[0], shapes[0], args, out))
        elif name in ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv"):
            self.keep(out, self.product(name, tensors, given, out))
        elif name == "convolution":
            self.keep(out, self.convolution(args, tensors, given, out))
        elif name == "embedding":
            self.fix(given[0], "its rows are looked up by number", [0])
            planes = [p.reshape([1] * (out.ndim - 1) + [-1]) for p in given[0].planes if varies(p, 1)]
            self.keep(out, Value(tuple(planes)))
        elif "batch_norm" in name or "instance_norm" in name:
            self.keep(result, self.affine(args[0], args[1:5], 1, result))
        elif name == "native_layer_norm":
            self.keep(result, self.layer_norm(args, result))
        elif name == "native_group_norm":
            self.keep(result, self.group_norm(args, result))
        elif name in SUMS or name in ("mean", "var"):
            self.keep(result, self.reduced(name, func, args, kwargs, given[0], shapes[0], result))
        elif name in ALONG:
            self.keep(result, self.along(name, args, kwargs, given[0], shapes[0], result))
        elif name.startswith(POOLS) or name == "constant_pad_nd":
            self.keep(result, self.pooled(name, args, given[0], result))
        elif name in ("tril", "triu"):
            self.fix(given[0], f"an operator `{name}` knows where they are", [-1, -2])
            self.keep(out, given[0])
        elif torch.Tag.pointwise in func.tags or name in UNTAGGED:
            if name == "_prelu_kernel" or name == "prelu":
                given[1] = Value(
                    tuple(p.reshape([-1 if i == 1 else 1 for i in range(out.ndim)]) for p in given[1].planes)
                )
                shapes[1] = tuple(out.shape[1] if i == 1 and given[1].planes else 1 for i in range(out.ndim))
            planes = [p for v in given for p in v.planes]
            if not any(result is t for t in tensors):
                shapes = [
                    (1,) if not v.planes and s and self.empty(t, planes) else s
                    for v, s, t in zip(given, shapes, tensors, strict=True)
                ]
            self.keep(result, self.pointwise(given, shapes, tuple(result.shape)))
        elif isinstance(result, torch.Tensor) and result.is_floating_point():
            for value in given:
                why = f"an operator `{name}` in `{self.here()}` reads them, which pruning does not know"
                self.notes.pins.extend((p, why) for p in (*value.planes, *value.means))


def tensors(output: Any) -> list[Tensor]:
    """The tensors of a model's output, in order."""
    if isinstance(output, dict):
        output = list(output.values())
    return [t for each in output for t in tensors(each)] if isinstance(output, (list, tuple)) else [output]


def first_row(example: Any) -> Any:
    return each(example, lambda tensor: tensor[:1])


@contextmanager
def plain_operators() -> Iterator[None]:
    """Fused transformer layers (used without gradients), attention and recurrent layers run as their parts, which can
    be counted and followed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        yield


def traced(model: nn.Module, row: Any, forward: Callable[[nn.Module, Any], Any]) -> tuple[Trace, Any]:
    """(the trace of a forward pass of one row, its output)."""
    trace, handles = Trace(model), []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: trace.stack.append(name)))
            handles.append(module.register_forward_hook(lambda *_: trace.stack.pop() and None, always_call=True))
    try:
        with plain_operators(), trace:
            return trace, forward(model, row)
    finally:
        for handle in handles:
            handle.remove()
