"""Operators that move values: they move labels in the same way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edgekd.pruning.planes import NONE, Noting, Value, compact, varies

MOVES = {
    *("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand", "repeat", "permute", "transpose", "t"),
    *("slice", "select", "narrow", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind"),
    *("chunk", "unsafe_chunk", "index", "index_select", "gather", "diagonal", "unfold", "roll", "flip", "alias"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
}
PARTS = {"slice": 1, "split": 2, "split_with_sizes": 2, "unsafe_split": 2, "unsafe_split_with_sizes": 2, "chunk": 2}


class Moves(Noting):
    def moved(self, name, func, args, kwargs, given, shapes, out) -> None:
        outs = out if isinstance(out, (list, tuple)) else [out]
        if name in ("index", "index_select", "gather"):
            for other in given[1:]:
                self.fix(other, "they say which values are taken")
        source, shape = given[0], shapes[0]
        planes: list[list[Tensor]] = [[] for _ in outs]
        for plane in source.planes:
            for axis, why in self.cuts(name, args, kwargs, shape):
                if not varies(plane, axis):
                    continue
                if why == "parts":
                    sizes = [o.shape[axis] for o in outs]
                    if name == "slice":
                        sizes = self.around(args, shape[axis], axis)
                    self.notes.parts.append((plane, axis, tuple(sizes), self.here()))
                elif why == "level":
                    self.notes.level.append((plane, axis))
                else:
                    self.notes.fixed.append((plane, axis, f"`{self.here()}` takes them by number"))
            if name in ("view", "_unsafe_view"):
                made = [plane.expand(shape).reshape(outs[0].shape)]
            else:
                copied = plane.expand(shape)
                copied = copied if func.is_view else copied.contiguous()
                made = func(copied, *args[1:], **kwargs)
                made = made if isinstance(made, (list, tuple)) else [made]
            for kept, each in zip(planes, made, strict=True):
                kept.append(compact(each))
                self.notes.shapes.append((tuple(self.stack), plane))
                self.notes.shapes.append((tuple(self.stack), kept[-1]))
                self.notes.grids.append(kept[-1])
        for tensor, kept in zip(outs, planes, strict=True):
            self.keep(tensor, Value(tuple(p for p in kept if p.numel() > 1), source.means, source.stored))

    @staticmethod
    def around(args, size: int, axis: int) -> list[int]:
        """The sizes of what lies before, in and after a slice."""
        start, stop = (args[2] if len(args) > 2 else None) or 0, args[3] if len(args) > 3 else None
        start = max(start + size if start < 0 else start, 0)
        stop = size if stop is None else min(stop + size if stop < 0 else stop, size)
        return [n for n in (start, stop - start, size - stop) if n > 0]

    @staticmethod
    def cuts(name, args, kwargs, shape) -> Iterator[tuple[int, str]]:
        """(axis, how): where a move takes some of the values along an axis."""
        if name in PARTS:
            at = PARTS[name]
            axis = args[at] if len(args) > at else kwargs.get("dim", 0)
            whole = name == "slice" and (args[2] if len(args) > 2 else None) in (None, 0)
            if not (whole and (len(args) < 4 or args[3] is None or args[3] >= shape[axis])):
                step = name == "slice" and len(args) > 4 and args[4] != 1
                yield axis, "fixed" if step else "parts"
        elif name in ("select", "unbind"):
            yield (args[1] if len(args) > 1 else kwargs.get("dim", 0)), "level"
        elif name in ("index_select", "gather"):
            yield args[1], "fixed"
        elif name == "index":
            yield from ((axis, "fixed") for axis, index in enumerate(args[1]) if index is not None)
        elif name in ("roll", "flip", "unfold"):
            axes = args[-1] if name != "unfold" else args[1]
            yield from ((axis, "fixed") for axis in (axes if isinstance(axes, (list, tuple)) else [axes]))

    def cat(self, name, args, kwargs, tensors, given, out) -> Value:
        axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
        items = [
            (
                v.planes if name == "cat" else tuple(p.unsqueeze(axis) for p in v.planes),
                1 if name == "stack" else t.shape[axis],
            )
            for v, t in zip(given, tensors, strict=True)
            if t.ndim + (name == "stack") == out.ndim
        ]
        across: list[Tensor] = []
        beside: list[Tensor] = []
        for planes, size in items:
            mine = [p for p in planes if varies(p, axis)]
            shape = [size if a == axis else 1 for a in range(out.ndim)]
            beside.append(mine[0] if mine else torch.full(shape, NONE))
            for plane in planes:
                if not varies(plane, axis):
                    for other in across[:1]:
                        self.same(other, plane)
                    across = across or [plane]
            if across and not any(not varies(p, axis) for p in planes):
                for a in range(out.ndim):
                    if a != axis and varies(across[0], a):
                        self.notes.fixed.append((across[0], a, f"`{self.here()}` puts them beside other values"))
        stored = all(v.stored for v in given)
        means = tuple(m for v in given for m in v.means)
        self.ends(Value(means=means), f"`{self.here()}` puts a mean over them beside other values")
        if all(not bool((b != NONE).any()) for b in beside):
            return Value(tuple(across), (), stored)
        wide = [max(b.shape[a] for b in beside) for a in range(out.ndim)]
        sizes = [[*wide[:axis], b.shape[axis], *wide[axis + 1 :]] for b in beside]
        joined = torch.cat([b.expand(size) for b, size in zip(beside, sizes, strict=True)], axis)
        return Value((*across, compact(joined)), (), stored)

    def glu(self, value: Value, shape, args, out) -> Value:
        axis = (args[1] if len(args) > 1 else -1) % len(shape)
        halves = [p.expand(shape).chunk(2, axis) if varies(p, axis) else (p, p) for p in value.planes]
        a, b = (Value(tuple(compact(h[i]) for h in halves)) for i in (0, 1))
        return self.pointwise([a, b], [tuple(out.shape)] * 2, tuple(out.shape))
