"""The networks of the published rows, by operator, from their public definitions. Numbers only: no weights, no file of
anybody's.

Papers: SqueezeNet 1602.07360, MobileNet 1704.04861 / 1801.04381 / 1905.02244, ShuffleNet 1707.01083 / 1807.11164,
MnasNet 1807.11626, ProxylessNAS 1812.00332, EfficientNet 1905.11946 / 2104.00298, RegNet 2003.13678, BlazeFace
1907.05047, GoogLeNet 1409.4842, ResNet 1512.03385, AlexNet 1404.5997 (1998 LRN, groups 2), VGG 1409.1556, SSD
1512.02325, YOLOv4-tiny 2011.08036, ViT 2010.11929; detectors' heads (NanoDet-m, Yolo-Fastest 1.1 and v2, FastestDet,
MobileNet-YOLO) as in Tencent/ncnn benchmark/*.param.

Convolutions carry their batch norm and ReLU; swish, hard swish, sums, pools, concatenations and shuffles are operators
of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgekd.predicting.work import Kind, Operator


@dataclass(frozen=True)
class At:
    """Where a definition stands: the operators so far, and the shape of the last value."""

    c: int
    h: int
    w: int
    work: tuple[Operator, ...] = ()

    def to(self, operator: Operator) -> At:
        return At(operator.co, operator.height, operator.width, (*self.work, operator))

    def conv(
        self, co: int, k: int | tuple[int, int] = 1, s: int = 1, g: int = 1, *, valid: bool = False, ceil: bool = False
    ) -> At:
        kernel = (k, k) if isinstance(k, int) else k
        size = [_out(n, kk, s, valid=valid, ceil=ceil) for n, kk in zip((self.h, self.w), kernel, strict=True)]
        return self.to(Operator("conv", self.c, co, kernel, s, g, size[0], size[1]))

    def dw(self, k: int = 3, s: int = 1, *, valid: bool = False) -> At:
        return self.conv(self.c, k, s, self.c, valid=valid)

    def pool(self, k: int, s: int, *, valid: bool = False, ceil: bool = False) -> At:
        h, w = (_out(n, k, s, valid=valid, ceil=ceil) for n in (self.h, self.w))
        return self.to(Operator("pool", self.c, self.c, (k, k), s, self.c, h, w))

    def mean(self) -> At:
        return self.to(Operator("pool", self.c, self.c, (self.h, self.w), max(self.h, 1), self.c))

    def each(self, reads: int = 1, kind: Kind = "elementwise", co: int | None = None) -> At:
        """An operator over every place, of `reads` inputs like the value."""
        return self.to(Operator(kind, self.c * reads, co or self.c, height=self.h, width=self.w))

    def fc(self, co: int) -> At:
        return self.to(Operator("product", self.c * self.h * self.w, co))

    def like(self, other: At) -> At:
        """The operators so far, with the value of `other` (a branch's start)."""
        return replace(other, work=self.work)

    def concat(self, co: int) -> At:
        return self.to(Operator("move", co, co, height=self.h, width=self.w))

    def upsample(self) -> At:
        return self.to(Operator("move", self.c, self.c, height=2 * self.h, width=2 * self.w))


def _out(n: int, k: int, s: int, *, valid: bool, ceil: bool) -> int:
    if not valid:
        return -(-n // s)
    return -(-(n - k) // s) + 1 if ceil else (n - k) // s + 1


def image(size: int) -> At:
    return At(3, size, size)


def wide(channels: float, to: int = 8) -> int:
    """Channels rounded to a multiple, never below 90 % (MobileNetV2's rule)."""
    rounded = max(to, int(channels + to / 2) // to * to)
    return rounded + to if rounded < 0.9 * channels else rounded


def squeeze_excite(x: At, reduced: int) -> At:
    """Global mean, two 1x1 convolutions, the gate and the product."""
    return x.mean().conv(reduced).conv(x.c).each().like(x).each()


def inverted(x: At, co: int, k: int, s: int, expanded: int, *, se: int = 0, act: bool = False) -> At:
    """MobileNetV2's block; `act`: an activation that is no ReLU, so an operator of its own."""
    y = x
    if expanded != x.c:
        y = y.conv(expanded)
        y = y.each() if act else y
    y = y.dw(k, s)
    y = y.each() if act else y
    y = squeeze_excite(y, se) if se else y
    y = y.conv(co)
    return y.each(2) if s == 1 and co == x.c else y


def blocks(x: At, rows: Sequence[tuple[int, int, int, int, int]], *, se: float = 0, act: bool = False) -> At:
    """Rows (expansion, channels, repeats, stride, kernel)."""
    for t, co, n, s, k in rows:
        for i in range(n):
            x = inverted(x, co, k, s if i == 0 else 1, x.c * t, se=max(1, round(x.c * se)) if se else 0, act=act)
    return x


def fire(x: At, squeezed: int, expanded: int) -> At:
    """SqueezeNet's block: 1x1, then 1x1 and 3x3 side by side."""
    s = x.conv(squeezed)
    return s.conv(expanded).like(s).conv(expanded, 3).concat(2 * expanded)


def squeezenet(size: int = 227) -> At:
    x = image(size).conv(64, 3, 2, valid=True).pool(3, 2, valid=True, ceil=True)
    x = fire(fire(x, 16, 64), 16, 64).pool(3, 2, valid=True, ceil=True)
    x = fire(fire(x, 32, 128), 32, 128).pool(3, 2, valid=True, ceil=True)
    x = fire(fire(fire(fire(x, 48, 192), 48, 192), 64, 256), 64, 256)
    return x.conv(1000).mean()


def squeezenet_ssd(size: int = 300) -> At:
    x = image(size).conv(64, 3, 2, valid=True).pool(3, 2, valid=True)
    x = fire(fire(x, 16, 64), 16, 64).pool(3, 2, valid=True)
    a = fire(fire(x, 32, 128), 32, 128)
    b = fire(fire(fire(fire(a.pool(3, 2, valid=True), 48, 192), 48, 192), 64, 256), 64, 256)
    c = fire(b.pool(3, 2, valid=True), 96, 384)
    d = fire(c.pool(3, 2, valid=True), 96, 384)
    e = d.conv(128).conv(256, 3, 2)
    f = e.conv(64).conv(128, 3, 2)
    x = f.like(a).each()
    for source, boxes, classes in ((a, 16, 84), (b, 24, 126), (c, 24, 126), (d, 24, 126), (e, 24, 126), (f, 16, 84)):
        x = x.like(source).conv(boxes, 3).each(kind="move")
        x = x.like(source).conv(classes, 3).each(kind="move")
    return x


MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet_v1(size: int = 224, alpha: float = 1.0, classes: int = 1000) -> At:
    x = image(size).conv(int(32 * alpha), 3, 2)
    for co, s in MOBILENET:
        x = x.dw(3, s).conv(int(co * alpha))
    return x.mean().fc(classes) if classes else x


def mobilenet_ssd(size: int = 300) -> At:
    x = image(size).conv(32, 3, 2)
    for co, s in MOBILENET[:-2]:
        x = x.dw(3, s).conv(co)
    sources = [x]
    x = x.dw(3, 2).conv(1024).dw(3, 1).conv(1024)
    sources.append(x)
    for squeezed, co in ((256, 512), (128, 256), (128, 256), (64, 128)):
        x = x.conv(squeezed).conv(co, 3, 2)
        sources.append(x)
    for i, source in enumerate(sources):
        boxes = 3 if i == 0 else 6
        x = x.like(source).conv(4 * boxes).each(kind="move")
        x = x.like(source).conv(21 * boxes).each(kind="move")
    return x


def mobilenet_yolo(size: int = 416) -> At:
    x = mobilenet_v1(size, classes=0)
    a = x.conv(256).conv(1024, 3)
    up = Operator("conv", 1024, 256, (4, 4), 1, 256, a.h, a.w)  # a grouped transposed convolution of stride 2
    b = replace(a.to(up), h=2 * a.h, w=2 * a.w).conv(1024, 3).conv(256).conv(1024, 3)
    return b.like(a).conv(125).like(b).conv(125)


V2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)


def mobilenet_v2(size: int = 224, alpha: float = 1.0) -> At:
    x = image(size).conv(wide(32 * alpha), 3, 2)
    x = blocks(x, [(t, wide(c * alpha), n, s, k) for t, c, n, s, k in V2])
    return x.conv(wide(1280 * max(1, alpha))).mean().fc(1000)


def mobilenetv2_yolov3(size: int = 352) -> At:
    x = blocks(image(size).conv(32, 3, 2), V2[:5])
    a = x.conv(576)
    x = inverted_from(a, 160)
    x = blocks(x, [(6, 160, 2, 1, 3), (6, 320, 1, 1, 3)]).conv(1280)
    one = x.dw().conv(576)
    up = replace(one.each(kind="move"), h=2 * one.h, w=2 * one.w).pool(2, 1)
    side = up.like(a).dw().conv(576).each(2).dw().conv(576)
    return side.like(one).conv(75).like(side).conv(75)


def inverted_from(expanded: At, co: int) -> At:
    """The rest of an inverted block of stride 2 whose expansion is there."""
    return expanded.dw(3, 2).conv(co)


LARGE = (
    *(
        (3, 16, 16, 0, 0, 1),
        (3, 64, 24, 0, 0, 2),
        (3, 72, 24, 0, 0, 1),
        (5, 72, 40, 1, 0, 2),
        (5, 120, 40, 1, 0, 1),
        (5, 120, 40, 1, 0, 1),
    ),
    *(
        (3, 240, 80, 0, 1, 2),
        (3, 200, 80, 0, 1, 1),
        (3, 184, 80, 0, 1, 1),
        (3, 184, 80, 0, 1, 1),
        (3, 480, 112, 1, 1, 1),
        (3, 672, 112, 1, 1, 1),
    ),
    *((5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
)
SMALL = (
    *(
        (3, 16, 16, 1, 0, 2),
        (3, 72, 24, 0, 0, 2),
        (3, 88, 24, 0, 0, 1),
        (5, 96, 40, 1, 1, 2),
        (5, 240, 40, 1, 1, 1),
        (5, 240, 40, 1, 1, 1),
    ),
    *(
        (5, 120, 48, 1, 1, 1),
        (5, 144, 48, 1, 1, 1),
        (5, 288, 96, 1, 1, 2),
        (5, 576, 96, 1, 1, 1),
        (5, 576, 96, 1, 1, 1),
    ),
)


def mobilenet_v3(
    rows: Sequence[tuple[int, int, int, int, int, int]] = LARGE, last: int = 960, head: int = 1280, size: int = 224
) -> At:
    x = image(size).conv(16, 3, 2).each()
    for k, expanded, co, se, act, s in rows:
        x = inverted(x, co, k, s, expanded, se=wide(expanded / 4) * se, act=bool(act))
    return x.conv(last).each().mean().fc(head).each().fc(1000)


def shuffle(x: At) -> At:
    return x.each(kind="move")


def shufflenet_v1(size: int = 224, groups: int = 3, widths: Sequence[int] = (240, 480, 960)) -> At:
    x = image(size).conv(24, 3, 2).pool(3, 2)
    for stage, (co, n) in enumerate(zip(widths, (4, 8, 4), strict=True)):
        for i in range(n):
            s = 2 if i == 0 else 1
            out = co - x.c if s == 2 else co
            y = shuffle(x.conv(co // 4, g=1 if stage == i == 0 else groups)).dw(3, s).conv(out, g=groups)
            x = y.like(x).pool(3, 2).concat(co) if s == 2 else y.each(2)
    return x.mean().fc(1000)


def shuffle_v2(x: At, co: int, n: int) -> At:
    """A stage of ShuffleNetV2: a block of stride 2 with two branches, then n - 1 that work on one half."""
    half = co // 2
    y = x.dw(3, 2).conv(half).like(x).conv(half).dw(3, 2).conv(half)
    y = shuffle(y.concat(co))
    for i in range(n - 1):
        z = replace(y, c=half).each(kind="move").conv(half).dw().conv(half).concat(co)
        y = shuffle(z) if i < n - 2 else z
    return y


def shufflenet_v2(size: int = 224) -> At:
    x = image(size).conv(24, 3, 2).pool(3, 2)
    for co, n in ((116, 4), (232, 8), (464, 4)):
        x = shuffle_v2(x, co, n)
    return x.conv(1024).mean().fc(1000)


def nanodet_m(size: int = 320) -> At:
    x = image(size).conv(24, 3, 2).pool(3, 2)
    a = shuffle_v2(x, 116, 4)
    b = shuffle_v2(a, 232, 8)
    c = shuffle_v2(b, 464, 4)
    a1, b1, c1 = (At(96, p.h, p.w) for p in (a, b, c))
    x = c.like(a).conv(96)
    x = x.like(b).conv(96)
    x = x.like(c).conv(96)
    x = x.upsample().each(2).upsample().each(2)
    x = x.like(b1).each(kind="move").each(2).like(c1).each(kind="move").each(2)
    for level in (a1, b1, c1):
        x = x.like(level).dw().conv(96).dw().conv(96).conv(112).each(kind="move").each().each(kind="move")
    return x


def yolo_fastest_v2(size: int = 352) -> At:
    x = image(size).conv(24, 3, 2).pool(3, 2)
    b = shuffle_v2(shuffle_v2(x, 48, 4), 96, 8)
    c = shuffle_v2(b, 192, 4)
    x = c
    for level in (c, b):
        if level is b:
            x = x.like(c).upsample().like(At(288, b.h, b.w)).concat(288)
        top = x.conv(72)
        x = top
        for _ in range(2):
            x = x.like(top).dw(5).conv(72).dw(5).conv(72)
        last = x
        x = (
            x.conv(12)
            .like(last)
            .conv(3)
            .like(last)
            .conv(80)
            .each(kind="move")
            .each()
            .each(kind="move")
            .concat(95)
            .each(kind="move")
        )
    return x


def fastest_det(size: int = 352) -> At:
    x = image(size).conv(24, 3, 2).pool(3, 2)
    a = shuffle_v2(x, 48, 4)
    b = shuffle_v2(a, 96, 8)
    c = shuffle_v2(b, 192, 4)
    x = c.like(a).pool(3, 2).like(c).upsample().like(At(336, b.h, b.w)).concat(336)
    top = x.conv(96)
    x = top
    for n in (1, 2, 3):
        x = x.like(top)
        for _ in range(n):
            x = x.dw(5)
    x = replace(x, c=288).concat(288).conv(96).each(2).conv(96)
    neck = x
    x = x.dw(5).conv(80).each().like(neck).dw(5).conv(4).like(neck).dw(5).conv(1)
    return replace(x, c=85).concat(85)


def yolo_fastest(size: int = 320) -> At:
    """Version 1.1: inverted blocks with set widths, and two heads of 5x5 depthwise convolutions."""
    x = image(size).conv(8, 3, 2).conv(8).dw().conv(4)
    for expanded, co, n, s in (
        (8, 4, 1, 1),
        (24, 8, 1, 2),
        (32, 8, 2, 1),
        (32, 8, 1, 2),
        (48, 8, 2, 1),
        (48, 16, 1, 1),
        (96, 16, 4, 1),
        (96, 24, 1, 2),
        (136, 24, 4, 1),
    ):
        for _ in range(n):
            x = _thin(x, expanded, co, s)
    mid = x.conv(136)
    x = mid.dw(3, 2).conv(48)
    for _ in range(5):
        x = _thin(x, 224, 48, 1)
    deep = x
    for k in (3, 5, 9):
        x = x.like(deep).pool(k, 1)
    neck = replace(x, c=192).concat(192).conv(96)
    x = neck.dw(5).conv(96).dw(5).conv(96).conv(255)
    x = replace(x.like(neck).upsample(), c=120).concat(120)
    return x.dw(5).conv(120).dw(5).conv(120).conv(255).each()


def _thin(x: At, expanded: int, co: int, s: int) -> At:
    y = x.conv(expanded).dw(3, s).conv(co)
    return y.each(2) if s == 1 and co == x.c else y


def mnasnet(size: int = 224) -> At:
    x = image(size).conv(32, 3, 2).dw().conv(16)
    x = blocks(
        x,
        [(3, 24, 3, 2, 3), (3, 40, 3, 2, 5), (6, 80, 3, 2, 5), (6, 96, 2, 1, 3), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)],
    )
    return x.conv(1280).mean().fc(1000)


def proxylessnas(size: int = 224) -> At:
    """The network found for phones: (expansion, channels, repeats, stride, kernel)."""
    x = image(size).conv(32, 3, 2).dw().conv(16)
    rows = [
        (3, 32, 1, 2, 5),
        (3, 32, 1, 1, 3),
        (3, 40, 1, 2, 7),
        (3, 40, 1, 1, 3),
        (3, 40, 2, 1, 5),
        (6, 80, 1, 2, 7),
        (3, 80, 3, 1, 5),
    ]
    rows += [
        (6, 96, 1, 1, 5),
        (3, 96, 3, 1, 5),
        (6, 192, 1, 2, 7),
        (6, 192, 1, 1, 7),
        (3, 192, 2, 1, 7),
        (6, 320, 1, 1, 7),
    ]
    return blocks(x, rows).conv(1280).mean().fc(1000)


B0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def efficientnet_b0(size: int = 224) -> At:
    x = image(size).conv(32, 3, 2).each()
    return blocks(x, B0, se=0.25, act=True).conv(1280).each().mean().fc(1000)


def efficientnet_lite(size: int, width: float, depth: float) -> At:
    """No squeeze and excitation, ReLU6; stem and head keep their width."""
    x = image(size).conv(32, 3, 2)
    rows = [
        (t, wide(c * width), n if i in (0, 6) else -int(-n * depth // 1), s, k) for i, (t, c, n, s, k) in enumerate(B0)
    ]
    return blocks(x, rows).conv(1280).mean().fc(1000)


def efficientnetv2_b0(size: int = 224) -> At:
    x = image(size).conv(32, 3, 2).each()
    x = x.conv(16, 3).each()
    for co, n in ((32, 2), (48, 2)):
        for i in range(n):
            y = x.conv(4 * x.c, 3, 2 if i == 0 else 1).each().conv(co)
            x = y.each(2) if i else y
    return (
        blocks(x, [(4, 96, 3, 2, 3), (6, 112, 5, 1, 3), (6, 192, 8, 2, 3)], se=0.25, act=True)
        .conv(1280)
        .each()
        .mean()
        .fc(1000)
    )


def regnety_400m(size: int = 224) -> At:
    x = image(size).conv(32, 3, 2)
    for co, n in ((48, 1), (104, 3), (208, 6), (440, 6)):
        for i in range(n):
            s = 2 if i == 0 else 1
            y = x.conv(co).conv(co, 3, s, co // 8)
            y = squeeze_excite(y, round(x.c / 4)).conv(co)
            y = y.like(x).conv(co, 1, s) if i == 0 else y
            x = y.each(2)
    return x.mean().fc(1000)


def blazeface(size: int = 128) -> At:
    x = image(size).conv(24, 5, 2)
    for co, s in (
        (24, 1),
        (28, 1),
        (32, 2),
        (36, 1),
        (42, 1),
        (48, 2),
        (56, 1),
        (64, 1),
        (72, 1),
        (80, 1),
        (88, 1),
        (96, 2),
        *((96, 1),) * 4,
    ):
        y = x.dw(3, s).conv(co)
        y = replace(y.like(x).pool(2, 2).each(kind="move"), c=co) if s == 2 else y
        x = replace(y, c=co).each(2)
    return x


def inception(x: At, *widths: int) -> At:
    """1x1; 1x1, 3x3; 1x1, 5x5; pool, 1x1."""
    a, b0, b, c0, c, d = widths
    y = x.conv(a).like(x).conv(b0).conv(b, 3).like(x).conv(c0).conv(c, 5).like(x).pool(3, 1).conv(d)
    return y.concat(a + b + c + d)


def googlenet(size: int = 224) -> At:
    x = image(size).conv(64, 7, 2).pool(3, 2).each().conv(64).conv(192, 3).each().pool(3, 2)
    x = inception(inception(x, 64, 96, 128, 16, 32, 32), 128, 128, 192, 32, 96, 64).pool(3, 2)
    for row in (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ):
        x = inception(x, *row)
    x = inception(inception(x.pool(3, 2), 256, 160, 320, 32, 128, 128), 384, 192, 384, 48, 128, 128)
    return x.mean().fc(1000)


def resnet18(size: int = 224) -> At:
    x = image(size).conv(64, 7, 2).pool(3, 2)
    for co, s in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for i in range(2):
            stride = s if i == 0 else 1
            y = x.conv(co, 3, stride).conv(co, 3)
            y = y.like(x).conv(co, 1, stride) if stride == 2 else y
            x = y.each(2)
    return x.mean().fc(1000)


def resnet50(size: int = 224, *, first: bool = True) -> At:
    """`first`: the stride lies on the first 1x1 convolution, as in the paper and in Caffe's file; else on the 3x3."""
    x = image(size).conv(64, 7, 2).pool(3, 2)
    for co, n, s in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(n):
            stride = s if i == 0 else 1
            y = x.conv(co, 1, stride if first else 1).conv(co, 3, 1 if first else stride).conv(4 * co)
            y = y.like(x).conv(4 * co, 1, stride) if i == 0 else y
            x = y.each(2)
    return x.mean().fc(1000)


def alexnet(size: int = 227) -> At:
    x = image(size).conv(96, 11, 4, valid=True).each().pool(3, 2, valid=True)
    x = x.conv(256, 5, g=2).each().pool(3, 2, valid=True)
    x = x.conv(384, 3).conv(384, 3, g=2).conv(256, 3, g=2).pool(3, 2, valid=True)
    return x.fc(4096).fc(4096).fc(1000)


def vgg16(size: int = 224) -> At:
    x = image(size)
    for co, n in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(n):
            x = x.conv(co, 3)
        x = x.pool(2, 2)
    return x.fc(4096).fc(4096).fc(1000)


def yolov4_tiny(size: int = 416) -> At:
    x = image(size).conv(32, 3, 2).conv(64, 3, 2)
    inner = x
    for co in (64, 128, 256):
        x = x.conv(co, 3)
        start = x
        a = replace(x, c=co // 2).each(kind="move").conv(co // 2, 3)
        b = a.conv(co // 2, 3)
        inner = b.concat(co).conv(co)
        x = inner.like(start).concat(2 * co).pool(2, 2)
    x = x.conv(512, 3).conv(256)
    y = x.conv(512, 3).conv(255).like(x).conv(128).upsample()
    return replace(y.like(At(384, y.h, y.w)), c=384).concat(384).conv(256, 3).conv(255).each()


def vision_transformer(size: int = 384, patch: int = 16, dim: int = 768, depth: int = 12) -> At:
    side = size // patch
    x = image(size).to(Operator("conv", 3, dim, (patch, patch), patch, 1, side, side))
    tokens = side * side + 1
    x = At(dim, tokens, 1, x.work)

    def product(x: At, terms: int, co: int, *, stored: bool = True) -> At:
        return x.to(Operator("product", terms, co, height=tokens, stored=stored))

    for _ in range(depth):
        x = x.each()
        for _ in range(3):
            x = product(x, dim, dim)
        x = product(x, dim, tokens, stored=False).each()  # all heads: as many terms together as the width
        x = product(x, tokens, dim, stored=False)
        x = product(x, dim, dim).each(2).each()
        x = product(product(x, dim, 4 * dim).each(), 4 * dim, dim).each(2)
    return At(dim, 1, 1, x.each().work).fc(1000)


def resnet8(size: int = 32) -> At:
    x = image(size).conv(16, 3)
    for co, s in ((16, 1), (32, 2), (64, 2)):
        y = x.conv(co, 3, s).conv(co, 3)
        x = (y.like(x).conv(co, 1, s) if s == 2 else y).each(2)
    return x.mean().fc(10)


LITE = ((224, 1.0, 1.0), (240, 1.0, 1.1), (260, 1.1, 1.2), (280, 1.2, 1.4), (300, 1.4, 1.8))
NETWORKS: dict[str, Callable[[], At]] = {
    "squeezenet1.1": squeezenet,
    "squeezenet_ssd": squeezenet_ssd,
    "mobilenet_v1_1.0": mobilenet_v1,
    "mobilenet_ssd": mobilenet_ssd,
    "mobilenet_yolo": mobilenet_yolo,
    "mobilenet_v2_1.0": mobilenet_v2,
    "mobilenetv2_yolov3": mobilenetv2_yolov3,
    "mobilenet_v3_large_1.0": mobilenet_v3,
    "shufflenet_v1_1.0x_g3": shufflenet_v1,
    "shufflenet_v2_1.0x": shufflenet_v2,
    "mobilenet_v3_small_1.0": lambda: mobilenet_v3(SMALL, 576, 1024),
    "nanodet_m": nanodet_m,
    "yolo-fastestv2": yolo_fastest_v2,
    "FastestDet": fastest_det,
    "yolo-fastest-1.1": yolo_fastest,
    "mnasnet_1.0": mnasnet,
    "proxylessnasnet": proxylessnas,
    "efficientnet_b0": efficientnet_b0,
    "efficientnetv2_b0": efficientnetv2_b0,
    "regnety_400m": regnety_400m,
    "blazeface": blazeface,
    "googlenet": googlenet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "yolov4-tiny": yolov4_tiny,
    "vision_transformer": vision_transformer,
    "mlperf_tiny_ic01_resnet8": resnet8,
    **{
        f"mobilenet_v1_{a:g}@{s}": (lambda a=a, s=s: mobilenet_v1(s, a))
        for a in (0.25, 0.5, 0.75, 1.0)
        for s in (128, 160, 192, 224)
    },
    **{
        f"mobilenet_v2_{a:g}@{s}": (lambda a=a, s=s: mobilenet_v2(s, a))
        for a, s in ((0.35, 224), (0.35, 128), (1.4, 224))
    },
    **{f"efficientnet_lite{i}": (lambda row=row: efficientnet_lite(*row)) for i, row in enumerate(LITE)},
}
