"""Norms, sums, means, pools: operators that make one value of many."""

from __future__ import annotations

import torch

from edgekd.pruning.planes import Noting, Value, first, varies

SUMS = {"sum", "linalg_vector_norm"}


class Reductions(Noting):
    def affine(self, x, vectors, axis, out) -> Value:
        """A norm with its scale, shift and statistics, each [channels]."""
        given, shapes = [self.value(x)], [tuple(out.shape)]
        for vector in vectors:
            if isinstance(vector, torch.Tensor) and vector.ndim == 1 and vector.numel() == out.shape[axis]:
                shape = [-1 if a == axis else 1 for a in range(out.ndim)]
                given.append(Value(tuple(p.reshape(shape) for p in self.value(vector).planes)))
                shapes.append(tuple(vector.numel() if a == axis else 1 for a in range(out.ndim)))
        self.ends(given[0], f"`{self.here()}` takes a mean over them as input")
        return self.pointwise(given, shapes, tuple(out.shape))

    def layer_norm(self, args, out) -> Value:
        x, normal, weight, bias = args[:4]
        given, shapes = [self.value(x)], [tuple(out.shape)]
        vectors = [v for v in (weight, bias) if v is not None]
        given += [self.value(v) for v in vectors]
        shapes += [tuple(v.shape) for v in vectors]
        name = self.here()
        if not vectors and len(normal) == 1 and name:
            given.append(Value((self.channels(f"{name}.", 0, normal[0], 1),)))
            shapes.append((normal[0],))
        made = self.pointwise(given, shapes, tuple(out.shape))
        self.norms[self.number] = ("layer", self.value(x).planes, len(normal))
        return made

    def group_norm(self, args, out) -> Value:
        x, weight, bias, groups = args[0], args[1], args[2], args[6]
        for plane in self.value(x).planes:
            if varies(plane, 1) and groups > 1:
                self.notes.parts.append((plane, 1, (out.shape[1] // groups,) * groups, self.here()))
        made = self.affine(x, (weight, bias), 1, out)
        self.norms[self.number] = ("group", self.value(x).planes, groups)
        return made

    def axes(self, args, kwargs, ndim, at=1) -> list[int]:
        given = args[at] if len(args) > at else kwargs.get("dim")
        given = list(range(ndim)) if given is None or given == [] else given
        return [a % ndim for a in (given if isinstance(given, (list, tuple)) else [given])]

    def reduced(self, name, func, args, kwargs, value, shape, out) -> Value:
        """Sums, of which channels that are 0 make no difference; and means, which are over the channels that are
        left if they are used on these channels only."""
        ndim = len(shape)
        axes = self.axes(args, kwargs, ndim, 2 if name == "linalg_vector_norm" else 1)
        axes = list(range(ndim)) if out.ndim == 0 else axes
        keep = out.ndim == ndim
        planes, means = [], []
        for plane in value.planes:
            over = [a for a in axes if varies(plane, a)]
            rest = [a for a in range(ndim) if varies(plane, a) and a not in axes]
            if over and rest:
                plane = self.even(plane, over)
            elif over and name in ("mean", "var"):
                means.append(plane)
                self.norms[self.number] = (name, (plane,), tuple(axes))
                continue
            elif over:
                self.reads[self.number] = [(0, (plane,))]
                continue
            plane = first(plane, axes)
            planes.append(plane if keep else plane.reshape([s for a, s in enumerate(plane.shape) if a not in axes]))
        return Value(tuple(planes), (*means, *value.means))

    def along(self, name, args, kwargs, value, shape, out) -> Value:
        at = 2 if name == "topk" else 1
        axes = self.axes(args, kwargs, len(shape), at) if out.ndim else list(range(len(shape)))
        self.fix(value, f"`{self.here()}` takes a `{name.strip('_')}` over them", axes)
        self.ends(value, f"`{self.here()}` uses a mean over them on other channels")
        planes = [first(p, axes) for p in value.planes]
        if out.ndim != len(shape):
            planes = [p.reshape([s for a, s in enumerate(p.shape) if a not in axes]) for p in planes]
        return Value(tuple(p for p in planes if p.numel() > 1))

    def pooled(self, name, args, value, out) -> Value:
        """Pools, resizes and pads: values of one channel."""
        ndim = out.ndim
        many = next((n for n in (1, 2, 3) if f"{n}d" in name), 2)
        if name == "constant_pad_nd":
            pads = args[1]
            axes = [ndim - 1 - i // 2 for i in range(0, len(pads), 2) if pads[i] or pads[i + 1]]
        else:
            axes = list(range(ndim - many, ndim))
        self.fix(value, f"`{self.here()}` computes each from its neighbours", axes)
        self.ends(value, f"`{self.here()}` uses a mean over them on other channels")
        return Value(tuple(p for p in (first(p, axes) for p in value.planes) if p.numel() > 1))
