"""Matrix products and convolutions: channels that are summed over go together, and what a product costs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgekd.pruning.planes import Noting, Value, varies


class Products(Noting):
    def product(self, name, tensors, given, out) -> Value:
        """Matrix products. Channels that are summed over go together; between two values that depend on the input,
        all of them (an attention head goes whole)."""
        for value in given:
            self.ends(value, f"`{self.here()}` multiplies a mean over them with a matrix")
        bias = given[0] if name.startswith(("add", "badd")) else None
        (a, b), (left, right) = given[-2:], tensors[-2:]
        if name.endswith("mv"):
            self.fix(a, "they meet a vector"), self.fix(b, "they meet a vector")
            return Value()
        mine, other = [p for p in a.planes if varies(p, -1)], [p for p in b.planes if varies(p, -2)]
        why = f"`{self.here()}` multiplies them with a constant matrix"
        if not other:
            self.notes.fixed.extend((p, p.ndim - 1, why) for p in mine)
        if not mine and not self.empty(left, other):
            self.notes.fixed.extend((p, p.ndim - 2, why) for p in other)
        whole = (
            not (a.stored or b.stored)
            or any(p.numel() > p.shape[-1] for p in mine)
            or any(p.numel() > p.shape[-2] for p in other)
        )
        rest_a, rest_b = [p for p in a.planes if not varies(p, -1)], [p for p in b.planes if not varies(p, -2)]
        if mine and other and whole:
            rest_a += [self.even(p, [-1]) for p in mine]
            rest_b += [self.even(p, [-2]) for p in other]
        elif mine and other:
            self.same(mine[0].reshape(-1), other[0].reshape(-1))
        axes: dict[str, tuple[Tensor, int]] = {}
        for value, sides in ((a, ("batch", "row", "sum")), (b, ("batch", "sum", "column"))):
            for plane in value.planes:
                for side, axis in zip(reversed(sides), range(plane.ndim - 1, -1, -1), strict=False):
                    if varies(plane, axis):
                        axes.setdefault(side, (plane, axis))
        self.notes.products.append((left.numel() * right.shape[-1], list(axes.values())))
        self.reads[self.number] = [(len(tensors) - 2, a.planes), (len(tensors) - 1, b.planes)]
        shape = tuple(out.shape)
        sizes = [(*left.shape[:-1], 1), (*right.shape[:-2], 1, right.shape[-1])]
        parts = [Value(tuple(p for p in rest_a if p.numel() > 1)), Value(tuple(p for p in rest_b if p.numel() > 1))]
        made = self.pointwise(parts, sizes, shape)
        if bias is not None and bias.planes:
            made = self.pointwise([made, bias], [shape, tuple(tensors[0].shape)], shape)
        return Value(made.planes, made.means, a.stored and b.stored)

    def convolution(self, args, tensors, given, out) -> Value:
        x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
        source, kernel = self.value(x), self.value(weight)
        self.ends(source, f"`{self.here()}` takes a mean over them as input")
        axis, why = out.ndim - weight.ndim + 1, f"the kernel of `{self.here()}` has a size"
        self.fix(kernel, why, range(2, weight.ndim))
        mine = [
            p if p.numel() == p.shape[axis] else self.even(p, [a for a in range(p.ndim) if a != axis])
            for p in source.planes
        ]
        mine = [p.reshape(-1) for p in mine if p.numel() > 1]
        ins = self.axis_of(kernel, 0 if transposed else 1)
        outs = self.axis_of(kernel, 1 if transposed else 0)
        count = x.shape[axis]
        if groups == 1:
            self.met(mine, ins, f"`{self.here()}` takes them in beside values that are no channels")
        elif groups == count == out.shape[axis]:
            outs = self.axis_of(kernel, 0)
            self.met(mine, outs, f"`{self.here()}` takes in values that are no channels")
            outs = outs if outs is not None else (mine[0] if mine else None)
        else:
            outs = self.grouped(mine, ins, outs, groups, count, transposed, out.shape[axis])
        positions = (x if transposed else out).numel() // (count if transposed else out.shape[axis])
        axes = [(p, a) for p in kernel.planes for a in (0, 1) if varies(p, a)]
        self.notes.products.append((positions * weight.numel(), axes))
        self.reads[self.number] = [(0, source.planes)]
        if outs is None:
            return Value()
        plane = outs.reshape([-1 if a == axis else 1 for a in range(out.ndim)])
        if bias is not None:
            for p in self.value(bias).planes:
                self.same(plane.reshape(-1), p)
        return Value((plane,) if plane.numel() > 1 else ())

    @staticmethod
    def axis_of(value: Value, axis: int) -> Tensor | None:
        return next((p.reshape(-1) for p in value.planes if varies(p, axis)), None)

    def met(self, mine: Sequence[Tensor], channels: Tensor | None, why: str) -> None:
        if mine and channels is not None:
            self.same(mine[0], channels)
        elif channels is not None or mine:
            self.notes.pins.append((channels if channels is not None else mine[0], why))

    def grouped(self, mine, ins, outs, groups, count, transposed, width) -> Tensor | None:
        """A grouped convolution: the same channels of all groups go together."""
        inside, per = count // groups, width // groups
        if inside == 1 or per == 1 or transposed:
            why = f"a grouped convolution has only {min(inside, per)} of its {count} channels per group"
            why = f"`{self.here()}` is a transposed convolution in groups" if transposed else why
            self.notes.pins.extend((p, why) for p in (*mine, *(p for p in (ins, outs) if p is not None)))
            return outs.repeat(groups) if transposed and outs is not None else outs
        if mine and ins is not None:
            self.same(mine[0].reshape(groups, inside), ins.reshape(1, inside))
        elif ins is not None:
            self.notes.pins.append((ins, f"`{self.here()}` takes in values that are no channels"))
        parts = outs.reshape(groups, per)
        self.same(parts, parts[:1])
        return outs
