"""Predicted latency: amounts of work, costs of devices, intervals, files that come from elsewhere."""

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import targets
from edgekd.errors import Problem, UsageError
from edgekd.predicting import bound, calibration, costs, latency, of_file, population, probes, shipped
from edgekd.predicting.population import COUNT, Device, Population, Row
from edgekd.predicting.work import Operator, macs, work_of
from edgekd.probes import static
from edgekd.records import Runtime, Target
from edgekd.verbs import _emulated

LATENCY = Path(__file__).parent.parent / "benchmarks" / "latency"
A72 = Device("cortex-a72", 1.5, 1)


def benchmark(name):
    """A module of the benchmark's folder."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, LATENCY / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def amounts(**given):
    return np.array([given.get(name, 0.0) for name in costs.NAMES])


# ---------------------------------------------------------------- work


def test_costs_of_operators_by_hand():
    square = Operator("conv", 32, 64, (3, 3), 1, 1, 10, 10)  # 10*10*64*32*9 = 1,843,200; reads 3,200, writes 6,400
    assert costs.costs([square]) == pytest.approx(
        amounts(winograd=1.8432, activations=0.0096, transforms=0.0096, operators=1e-6)
    )
    # 25*30*9 = 6,750; reads 100*30, writes 750; 30 is no multiple of 4
    depth = Operator("conv", 30, 30, (3, 3), 2, 30, 5, 5)
    assert costs.costs([depth]) == pytest.approx(
        amounts(depthwise=0.00675, activations=0.00375, uneven=0.00675, operators=1e-6)
    )
    assert costs.costs([Operator("product", 100, 10)]) == pytest.approx(amounts(weights=0.001, operators=1e-6))
    both = [Operator("elementwise", 8, 4, height=5, width=5), Operator("move", 4, 4, height=5, width=5)]
    assert costs.costs(both) == pytest.approx(amounts(touched=(300 + 200) / 1e6, operators=2e-6))


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((64, 64, (1, 1), 1, 1), "gemm"), ((64, 64, (1, 1), 1, 2), "gemm"), ((64, 64, (3, 3), 2, 1), "dense"),
        ((8, 64, (3, 3), 1, 1), "dense"), ((64, 64, (3, 3), 1, 8), "grouped"), ((64, 64, (3, 3), 1, 64), "depthwise"),
        ((64, 64, (3, 3), 1, 2), "winograd"),
    ],
)  # fmt: skip
def test_kernels_of_convolutions(shape, kernel):
    assert costs.kernel_of(Operator("conv", *shape, 7, 7)) == kernel


def test_work_has_the_macs_of_the_file_and_int8_the_same_work():
    files = probes.models()
    for (name, precision), data in files.items():
        model = onnx.load_model_from_string(data)
        work = work_of(model)
        assert macs(work) == static.macs(model)[0], name
        if precision == "int8":
            plain = work_of(onnx.load_model_from_string(files[name, "float"]))
            assert costs.costs(work) == pytest.approx(costs.costs(plain)), name


def test_work_of_a_graph_by_hand():
    tensor = helper.make_tensor_value_info
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, (8, 4, 3, 3), np.zeros(288)),
        helper.make_tensor("u", TensorProto.FLOAT, (8, 2, 2, 2), np.zeros(64)),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ConvTranspose", ["b", "u"], ["c"], strides=[2, 2]),
        helper.make_node("Concat", ["c", "c"], ["d"], axis=1),
        helper.make_node("GlobalAveragePool", ["d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [tensor("y", TensorProto.FLOAT, ["n", 4, 1, 1])],
        weights,
    )
    made = work_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert made == (
        Operator("conv", 4, 8, (3, 3), 2, 1, 3, 3),
        Operator("conv", 8, 2, (2, 2), 1, 1, 3, 3),
        Operator("move", 4, 4, height=6, width=6),
        Operator("pool", 4, 4, (6, 6), 6, 4, 1, 1),
    )


@pytest.mark.parametrize(
    ("taps", "place", "groups"), [((5,), (40,), 1), ((3,), (40,), 16), ((3, 3), (6, 8), 1), ((3, 5, 7), (6, 8, 10), 2)]
)
def test_convolutions_along_any_axes_have_their_channels(taps, place, groups):
    value = lambda name, channels: helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, *place))
    weight = numpy_helper.from_array(np.zeros((32, 16 // groups, *taps), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[t // 2 for t in taps] * 2, group=groups)
    graph = helper.make_graph([node], "g", [value("x", 16)], [value("y", 32)], [weight])
    (made,) = work_of(model := helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert (made.ci, made.co, made.groups, made.height, made.kernel[0]) == (16, 32, groups, place[0], taps[0])
    assert made.macs == static.macs(model)[0] == 32 * 16 // groups * math.prod((*taps, *place))


def by_hand(node, given, made, stored, opset=20):
    """A model of one operator, without a check of its domain: given {input: shape}, stored {name: array}."""
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    inputs, outputs = [value(n, s) for n, s in given.items()], [value(n, s) for n, s in made.items()]
    graph = helper.make_graph([node], "g", inputs, outputs, tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, v) for d, v in (("", opset), (OWN, 1), ("own", 1))]
    )


OWN = "com.microsoft"
SCALE, ZERO = np.float32(1), np.uint8(0)
INTEGERS = {"as": SCALE, "az": ZERO, "w": np.zeros((5, 7), np.uint8), "ws": SCALE, "wz": ZERO}


@pytest.mark.parametrize(
    "model",
    [
        by_hand(helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain=OWN, transA=1), {"x": [2, 5, 3]},
                {"y": [2, 3, 7]}, {"w": np.zeros((5, 7), np.float32)}),
        by_hand(helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), {"x": [5, 3]}, {"y": [3, 7]},
                {"w": np.zeros((5, 7), np.float32)}),
        by_hand(helper.make_node("QGemm", ["x", *INTEGERS, "", "ys", "yz"], ["y"], domain=OWN), {"x": [3, 5]},
                {"y": [3, 7]}, {**INTEGERS, "ys": SCALE, "yz": ZERO}),
        by_hand(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": [5]}, {"y": []}, {"w": np.zeros(5, np.float32)}),
        by_hand(helper.make_node("FusedConv", ["x", "w"], ["y"], domain=OWN, kernel_shape=[3, 3]), {"x": [1, 4, 6, 6]},
                {"y": [1, 8, 4, 4]}, {"w": np.zeros((8, 4, 3, 3), np.float32)}),
        by_hand(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), {"x": [1, 4, 6, 6]}, {"y": [1, 8, 8, 8]},
                {"w": np.zeros((4, 8, 3, 3), np.float32)}),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)  # fmt: skip
def test_work_has_the_macs_of_any_product(model):
    (made,) = work_of(model)
    assert made.stored and made.macs == static.macs(model)[0] > 0
    assert made.int8 == (model.graph.node[0].op_type == "QGemm")


UNLIKE = {
    "LSTM": by_hand(
        helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4), {"x": [9, 1, 3]}, {"y": [9, 1, 1, 4]},
        {"w": np.zeros((1, 16, 3), np.float32), "r": np.zeros((1, 16, 4), np.float32)},
    ),
    "Einsum": by_hand(
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="nk,kc->nc"), {"x": [3, 5]}, {"y": [3, 7]},
        {"w": np.zeros((5, 7), np.float32)},
    ),
    "Attention": by_hand(
        helper.make_node("Attention", ["x", "w", ""], ["y"], domain=OWN, num_heads=1), {"x": [1, 5, 4]},
        {"y": [1, 5, 4]}, {"w": np.zeros((4, 12), np.float32)},
    ),
    "Mystery": by_hand(helper.make_node("Mystery", ["x"], ["y"], domain="own"), {"x": [3, 5]}, {"y": [3, 5]}, {}),
    "If": by_hand(
        helper.make_node("If", ["c"], ["y"], **{name: helper.make_graph(
            [helper.make_node("Exp", ["x"], [name])], name, [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])],
        ) for name in ("then_branch", "else_branch")}),
        {"x": [3]}, {"y": [3]}, {"c": np.array(True)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_the_time_of_what_is_unlike_all_that_was_timed_is_not_predicted(name, tmp_path):
    with pytest.raises(static.Open, match=f"has {name}, whose time is not predicted"):
        work_of(UNLIKE[name])
    path = tmp_path / "m.onnx"
    onnx.save(UNLIKE[name], path)
    found, why = of_file.told(path, targets.load("raspberry-pi-4"))
    assert found == () and name in why
    told = _emulated.untimed(path, targets.load("raspberry-pi-4"), [Problem("", "no emulator")])
    assert f"its latency is not predicted: it has {name}" in str(told) and "parameters" in str(told)
    assert {m.origin for m in told.measurements} == {"counted"}


def test_an_operator_whose_shape_is_not_known_is_not_left_out_of_the_time():
    node = helper.make_node("Exp", ["x"], ["y"])
    with pytest.raises(static.Open, match="the shape of `x` can't be found"):
        work_of(by_hand(node, {"x": ["n", "length"]}, {"y": ["n", "length"]}, {}))


def test_each_operator_counts_as_the_file_has_it():
    files = {p: onnx.load_model_from_string(probes.models()["mobile", p]) for p in costs.PRECISIONS}
    work = {p: work_of(file) for p, file in files.items()}
    assert {o.int8 for o in work["float"]} == {False} and {o.int8 for o in work["int8"]} == {True}
    mixed = files["int8"]
    first = next(n for n in mixed.graph.node if n.op_type == "Conv")
    mixed.graph.initializer.append(numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.float32), "plain"))
    first.input[1] = "plain"
    made = work_of(mixed)
    assert [o.int8 for o in made] == [False] + [True] * (len(made) - 1)
    given = target(core="cortex-a76", clock_mhz=2400.0, threads=4)
    whole = {p: latency.predict(work[p], given) for p in costs.PRECISIONS}
    assert whole == {p: latency.predict(work["float"], given, precision=p) for p in costs.PRECISIONS}
    assert (
        min(w.value for w in whole.values()) < latency.predict(made, given).value < max(w.value for w in whole.values())
    )
    device, dot = Device("cortex-a76", 1.0, 1), ("dotprod",)
    least = bound.bound(made[:1], device).low + bound.bound(made[1:], device, precision="int8", features=dot).low
    assert bound.bound(made, device, precision=None, features=dot).low == pytest.approx(least)


@pytest.mark.parametrize(
    ("name", "millions", "parameters"),
    [  # the papers' and model zoos' figures: multiply-accumulates and weights (without biases and norms), in millions
        ("squeezenet1.1", 388, 1.23), ("mobilenet_v1_1.0", 569, 4.2), ("mobilenet_v2_1.0", 300, 3.5),
        ("mobilenet_v3_large_1.0", 217, 5.4),
        ("shufflenet_v1_1.0x_g3", 137, 1.87), ("shufflenet_v2_1.0x", 146, 2.3), ("mnasnet_1.0", 315, 4.4),
        ("proxylessnasnet", 320, 4.1),
        ("efficientnet_b0", 390, 5.3), ("efficientnetv2_b0", 720, 7.1), ("regnety_400m", 400, 4.3),
        ("googlenet", 1580, 7.0),
        ("resnet18", 1814, 11.7), ("resnet50", 3860, 25.6), ("alexnet", 724, 61.0), ("vgg16", 15470, 138.3),
        ("yolov4-tiny", 3455, 6.06),
        ("vision_transformer", 55500, 86.9), ("efficientnet_lite0", 385, 4.65), ("nanodet_m", 360, 0.95),
    ],
)  # fmt: skip
def test_networks_have_their_published_size(name, millions, parameters):
    work = benchmark("networks").NETWORKS[name]().work
    assert macs(work) / 1e6 == pytest.approx(millions, rel=0.06)
    assert sum(o.weights for o in work) / 1e6 == pytest.approx(parameters, rel=0.04)


def test_a_definition_agrees_with_its_file():
    """The residual probe once more, by the benchmark's means: the two ways of counting are independent."""
    image = benchmark("networks").At(3, 112, 112)
    x = image.conv(32, 3, 2).conv(32, 3).each(2).conv(64, 3, 2).conv(64, 3).each(2).conv(128, 3, 2).conv(128, 3).each(2)
    x = x.conv(512, 3, 2).conv(512, 3).mean().fc(1000)
    made = work_of(onnx.load_model_from_string(probes.models()["residual", "float"]))
    assert costs.costs(x.work) == pytest.approx(costs.costs(made))


# ---------------------------------------------------------------- devices


def known(seed=0):
    """A population with plain numbers."""
    start = np.log([costs.START[n] for n in costs.NAMES])
    weights = np.zeros((len(population.TRAITS), 2 * COUNT))
    weights[0], weights[1] = np.tile(start, 2), -1.0
    precisions = np.kron(np.eye(2), np.ones((COUNT, COUNT)))
    return Population(
        "ncnn", weights, population.SPREAD**2 * (np.eye(2 * COUNT) + 1) + population.LEVEL**2 * precisions, 0.05**2
    )


def drawn(count, generator, truth, precision="float", noise=0.05):
    """Rows of a device whose costs are `truth`."""
    made = []
    for _ in range(count):
        given = generator.lognormal(0, 1.5, COUNT) * np.array([100, 100, 30, 10, 5, 2, 5, 5, 5e-5, 5, 1])
        value, _ = population.logarithm(truth, given, precision)
        made.append(Row(given, math.exp(value + noise * generator.standard_normal()), precision, "a source"))
    return made


def test_logarithm_by_hand_and_its_gradient_by_differences():
    theta = np.log(np.arange(1, 2 * COUNT + 1) / 10)
    given = amounts(gemm=10, dense=2)
    assert population.logarithm(theta, given, "float")[0] == pytest.approx(math.log(10 * 0.1 + 2 * 0.3))
    assert population.logarithm(theta, given, "int8")[0] == pytest.approx(math.log(10 * 1.2 + 2 * 1.4))
    value, gradient = population.logarithm(theta, given, "int8")
    for i in range(2 * COUNT):
        moved = theta + 1e-6 * (np.arange(2 * COUNT) == i)
        assert (population.logarithm(moved, given, "int8")[0] - value) / 1e-6 == pytest.approx(gradient[i], abs=1e-5)


def test_posterior_is_the_minimum_that_a_general_optimizer_finds():
    generator, pop = np.random.default_rng(1), known()
    mean = A72.traits() @ pop.weights
    rows = drawn(9, generator, mean + 0.3) + drawn(4, generator, mean - 0.2, "int8")
    inverse = np.linalg.inv(pop.spread)

    def penalty(theta):
        left = np.array([math.log(r.milliseconds) - population.logarithm(theta, r.costs, r.precision)[0] for r in rows])
        nu = population.FREEDOM
        return (nu + 1) / 2 * np.log1p(left**2 / (nu * pop.noise)).sum() + (theta - mean) @ inverse @ (theta - mean) / 2

    found = population.posterior(rows, mean, pop.spread, pop.noise)
    best = penalty(found.mean)
    for _ in range(200):
        assert penalty(found.mean + 0.01 * generator.standard_normal(2 * COUNT)) > best
    slope = [(penalty(found.mean + e) - penalty(found.mean - e)) / 2e-5 for e in 1e-5 * np.eye(2 * COUNT)]
    assert np.abs(slope).max() < 0.02


def test_no_rows_give_the_expectation_and_rows_narrow_it():
    pop, work = known(), [Operator("conv", 64, 64, (1, 1), 1, 1, 28, 28)]
    before = calibration.predict(work, calibration.fit((), A72, pop))
    assert before.kind == "transferred" and before.note.startswith("transferred: ")
    truth = A72.traits() @ pop.weights + 0.4
    after = calibration.predict(
        work, calibration.fit(drawn(20, np.random.default_rng(0), truth), A72, pop, name="board")
    )
    assert after.kind == "calibrated" and "20 files timed on board with ncnn, 1 thread" in after.note
    exact = math.exp(population.logarithm(truth, costs.costs(work), "float")[0])
    assert after.low < exact < after.high and after.high / after.low < before.high / before.low
    assert abs(after.value / exact - 1) < 0.1 < abs(before.value / exact - 1)


def test_the_interval_of_a_row_by_hand():
    made = calibration.Calibration("b", A72, "ncnn", np.zeros(2 * COUNT), 0.04 * np.eye(2 * COUNT), 0.05, 5, 2.0)
    # 4 ms; shares 3/4 and 1/4: variance 0.04 * 10/16 + 0.05 = 0.075
    found = calibration.of(amounts(gemm=3, dense=1), made, "float")
    assert found.value == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx(
        (4 * math.exp(-2 * math.sqrt(0.075)), 4 * math.exp(2 * math.sqrt(0.075)))
    )


def test_float_rows_say_something_of_int8():
    pop = known()
    truth = A72.traits() @ pop.weights + 0.5  # in both precisions: devices differ together
    fitted = calibration.fit(drawn(12, np.random.default_rng(0), truth), A72, pop)
    work = [Operator("conv", 64, 64, (1, 1), 1, 1, 28, 28)]
    prior, found = (calibration.predict(work, f, precision="int8") for f in (calibration.fit((), A72, pop), fitted))
    exact = math.exp(population.logarithm(truth, costs.costs(work), "int8")[0])
    assert abs(math.log(found.value / exact)) < abs(math.log(prior.value / exact))
    ratio, spread = calibration.ratio_of(costs.costs(work), fitted)
    assert math.exp(ratio) == pytest.approx(found.value / calibration.predict(work, fitted).value)
    assert abs(ratio) < fitted.reach * spread


def relative(pop, core, offset, board=""):
    """A calibration of a table of a board that is `offset` off what the population says."""
    device = Device(core, 2.0, 4)
    return calibration.Calibration(
        core, device, "ncnn", device.traits() @ pop.weights + offset, pop.spread, 0.01, 20, 2.0, board=board
    )


def test_relatives_of_the_same_core_pull_by_hand():
    pop = dataclasses.replace(known(), likeness=0.5, same=0.8)
    offset = np.full(2 * COUNT, 0.3)
    own = A72.traits() @ pop.weights
    mean, spread = calibration.expected(
        A72, pop, [relative(pop, "cortex-a72", offset), relative(pop, "cortex-a53", -offset)]
    )
    # one: l and 1 - l**2
    assert mean - own == pytest.approx(0.5 * offset) and spread == pytest.approx(0.75 * pop.spread)
    mean, spread = calibration.expected(A72, pop, [relative(pop, "cortex-a72", offset, b) for b in "ab"])
    # two boards: 2 l / (1 + l)
    assert mean - own == pytest.approx(2 / 3 * offset) and spread == pytest.approx(2 / 3 * pop.spread)
    mean, spread = calibration.expected(A72, pop, [relative(pop, "cortex-a72", offset, "a")] * 2)
    assert mean - own == pytest.approx(1 / 1.8 * offset)  # two tables of one board: 2 l / (1 + s)
    assert spread == pytest.approx((1 - 0.5 / 1.8) * pop.spread)
    wide = calibration.expected(A72, pop, runtime="onnxruntime")[1] - pop.spread
    assert wide[0, 0] == pytest.approx(pop.runtimes["float"] + population.APART) and wide[0, 1] == pytest.approx(
        pop.runtimes["float"]
    )
    assert wide[-1, -2] == pytest.approx(pop.runtimes["int8"]) and wide[0, -1] == 0


def test_many_tables_of_one_board_say_less_of_a_third_board_than_two_boards_do():
    """However many boards of a core were timed, the next one has a level of its own, and its interval is wider than its
    rows' noise."""
    pop, work = known(), [Operator("conv", 64, 64, (1, 1), 1, 1, 28, 28)]

    def factor(*boards):
        fitted = calibration.fit(
            (), A72, pop, relatives=[relative(pop, "cortex-a72", np.zeros(2 * COUNT), b) for b in boards]
        )
        found = calibration.predict(work, fitted)
        return math.log(found.high / found.value) / fitted.reach

    noise = math.sqrt(pop.noise + population.MISFIT)
    assert factor(*"ab") < factor(*"aaaaaaaa") < factor("a") < factor()
    # of all costs of a precision together
    level = math.sqrt((1 - pop.likeness) * (2 * population.SPREAD**2 / 2 + population.LEVEL**2))
    assert factor(*(str(i) for i in range(200))) > math.hypot(noise, level) > 3 * noise


def test_boards_of_a_family_differ_by_as_much_as_the_others_did_by_hand():
    boards = population.BOARDS | {"x86": {"spread": 2.0, "int8": 0.09}, "ARM in order": {"spread": 0.5, "int8": 0.0}}
    pop = dataclasses.replace(known(), boards=boards, likeness=0.5)
    pc = Device("avx2", 3.0, 1)
    _, spread = calibration.expected(pc, pop)
    assert spread[:COUNT] == pytest.approx(2 * pop.spread[:COUNT]) and spread[COUNT:, COUNT:] == pytest.approx(
        2 * pop.spread[COUNT:, COUNT:] + 0.09
    )
    _, spread = calibration.expected(pc, pop, [relative(pop, "avx2", np.zeros(2 * COUNT))])
    assert spread[0] == pytest.approx(2 * 0.75 * pop.spread[0]) and spread[-1, -1] == pytest.approx(
        1.5 * pop.spread[-1, -1] + 0.09
    )
    assert calibration.expected(Device("cortex-a55", 2.0, 4), pop)[1] == pytest.approx(0.5 * pop.spread)
    assert [
        Device(c, 1.0, 1).family for c in ("cortex-a53", "cortex-a55", "cortex-a73", "cortex-a76", "sse42")
    ] == list(population.FAMILIES)


def test_what_boards_of_a_family_differ_by_is_drawn_towards_all_by_hand():
    """Families of 1 and 2 boards around 4 and 1, all around 2: (4 + 3 * 2) / (1 + 3), (2 + 3 * 2) / (2 + 3); no board
    of the others: the mean."""
    own = {"a": ("x86", 4.0, 0.0, 0.0), "b": ("ARM in order", 1.0, 0.0, 0.0), "c": ("ARM in order", 1.0, 0.0, 0.0)}
    for name in ("networks", "published", "baselines", "figures", "results", "themselves"):
        benchmark(name)
    terms = benchmark("validate").terms_of(own)
    assert [terms[f]["spread"] for f in population.FAMILIES] == [2.0, 1.6, 2.0, 2.0, 2.5] and terms["x86"][
        "int8"
    ] == 0.0
    assert benchmark("validate").terms_of(own, "a")["x86"]["spread"] == 1.0
    # beyond what is expected: 0.8 and -0.1, around 0.35
    own = {"a": ("x86", 1.0, 0.9, 0.1), "b": ("ARM in order", 1.0, 0.0, 0.1)}
    terms = benchmark("validate").terms_of(own)
    assert terms["x86"]["int8"] == pytest.approx((0.8 + 3 * 0.35) / 4, abs=1e-4) and terms["ARM in order"][
        "int8"
    ] == pytest.approx(0.2375, abs=1e-4)


def test_the_ratio_of_int8_to_float_by_hand():
    """Costs of 1 and 2: shares 3/4 and 1/4 in both; the level that both precisions share cancels, and so does what the
    costs can't say."""
    theta = np.repeat([0.0, math.log(2)], COUNT)
    shared, own = 0.5, np.kron(np.diag([0.0, 0.04]), np.ones((COUNT, COUNT)))
    made = calibration.Calibration("b", A72, "ncnn", theta, shared + own, population.MISFIT + 0.02, 5, 2.0)
    assert calibration.ratio_of(amounts(gemm=3, dense=1), made) == pytest.approx(
        (math.log(2), math.sqrt(0.04 + 2 * 0.02))
    )


def test_a_board_counts_once_however_many_tables_it_has():
    generator, pop = np.random.default_rng(5), known()
    tables = [
        population.Table(
            f"t{i}",
            Device("cortex-a72", 1 + i / 8, 1),
            tuple(drawn(12, generator, A72.traits() @ pop.weights + 0.4 * i)),
            f"board {i}",
        )
        for i in range(4)
    ]
    once, often = population.learn(tables, "ncnn"), population.learn([*tables, *[tables[3]] * 20], "ncnn")
    alone = population.learn(
        [*tables, *(dataclasses.replace(tables[3], board=f"other {i}") for i in range(20))], "ncnn"
    )
    off = lambda found: np.abs(A72.traits() @ (found.weights - once.weights)).max()
    assert off(often) < 0.1 < 0.3 < off(alone)


def test_intervals_of_boards_without_rows_hold_by_simulation():
    """Boards of four cores, drawn from a model with a part that boards of a core share: of new boards 95 % of the rows
    lie inside, in a family whose boards differ little and in one whose boards differ much and have an int8 level of
    their own besides."""
    generator = np.random.default_rng(8)
    boards = population.BOARDS | {
        "x86": {"spread": 2.0, "int8": 0.25},
        "ARM out of order, v8.0": {"spread": 0.5, "int8": 0.0},
    }
    pop = dataclasses.replace(known(), boards=boards, reach={"calibrated": 1.96, "transferred": 1.96})
    like, inside = pop.likeness, {}
    normal = lambda: generator.standard_normal(2 * COUNT)
    for _ in range(60):
        for core in ("cortex-a72", "avx2"):
            device = Device(core, 2.0, 4)
            family = boards[device.family]
            root = math.sqrt(family["spread"]) * np.linalg.cholesky(pop.spread)
            shared, int8 = math.sqrt(like) * root @ normal(), np.repeat([0.0, math.sqrt(family["int8"])], COUNT)
            board = lambda root=root, shared=shared, int8=int8: (
                shared + math.sqrt(1 - like) * root @ normal() + int8 * normal()[0]
            )
            kin = [relative(pop, core, board(), f"b{i}") for i in range(3)]
            fitted = calibration.fit((), device, pop, relatives=kin)
            truth = device.traits() @ pop.weights + board()
            for precision in costs.PRECISIONS:
                for r in drawn(5, generator, truth, precision, noise=math.sqrt(pop.noise + population.MISFIT)):
                    p = calibration.of(r.costs, fitted, precision)
                    inside.setdefault(device.family, []).append(p.low <= r.milliseconds <= p.high)
    assert all(0.9 <= np.mean(v) <= 0.99 for v in inside.values()), {k: np.mean(v) for k, v in inside.items()}


def test_a_population_is_found_again_and_its_intervals_hold():
    """Forty devices drawn from known numbers: mean by trait within error, and intervals on rows that weren't given."""
    generator, pop = np.random.default_rng(3), known()
    root, tables, left = np.linalg.cholesky(pop.spread), [], []
    for i in range(40):
        device = Device("cortex-a72", float(generator.uniform(0.8, 3)), 1)
        truth = device.traits() @ pop.weights + root @ generator.standard_normal(2 * COUNT)
        rows = [*drawn(20, generator, truth), *drawn(12, generator, truth, "int8")]
        tables.append(population.Table(f"t{i}", device, tuple(rows[:-4])))
        left.append(rows[-4:])
    found = population.learn(tables, "ncnn")
    device = Device("cortex-a72", 1.5, 1)
    # 40 devices share a deviation of 0.35 each
    assert np.abs(device.traits() @ (found.weights - pop.weights)).mean() < 0.25
    assert 0.7 < np.trace(found.spread) / np.trace(pop.spread) < 1.5
    assert 0.03 < math.sqrt(found.noise) < 0.08
    known_noise = dataclasses.replace(found, reach={"calibrated": 1.96, "transferred": 1.96})
    inside = []
    for table, rows in zip(tables, left, strict=True):
        fitted = calibration.fit(table.rows, table.device, known_noise)
        fitted = dataclasses.replace(fitted, noise=fitted.noise - population.MISFIT)  # these networks have none
        inside += [
            p.low <= r.milliseconds <= p.high for r in rows for p in [calibration.of(r.costs, fitted, r.precision)]
        ]
    assert 0.88 <= np.mean(inside) <= 0.995


def test_a_network_that_does_nothing_is_refused():
    fitted = calibration.fit((), A72, known())
    with pytest.raises(ValueError, match="without operators"):
        calibration.predict([], fitted)


def flat(kind, shape, out, **given):
    """A network of one operator."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", out))]
    inputs = ["x", "w"] if kind == "Conv" else ["x", "x"] if kind == "Add" else ["x"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, (2, 3, 3, 3), np.ones(54))
    graph = helper.make_graph([helper.make_node(kind, inputs, ["y"], **given)], "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    "made",
    [
        flat("Identity", ["n", 4], ["n", 4]),
        flat("MaxPool", ["n", 3, 4, 4], ["n", 3, "h", "w"], kernel_shape=[5, 5]),
    ],
)  # fmt: skip
def test_a_network_that_does_nothing_has_no_latency(made):
    assert latency.predict(work_of(made), Target("pi", "a board", "aarch64", "cortex-a72", clock_mhz=1500.0)) is None


@pytest.mark.parametrize(
    "made",
    [
        flat("Relu", ["n", 0], ["n", 0]), flat("Add", ["n", 3, 0, 4], ["n", 3, 0, 4]),
        flat("GlobalAveragePool", ["n", 3, 0, 4], ["n", 3, 1, 1]),
    ],
)  # fmt: skip
def test_a_dimension_of_nothing_is_not_known(made):
    with pytest.raises(static.Open, match="the shape of `x` can't be found"):
        work_of(made)


@pytest.mark.parametrize("groups", [0, -1, 100])
def test_groups_that_channels_do_not_make_are_refused(groups):
    with pytest.raises(UsageError, match=f"has {groups} groups"):
        work_of(flat("Conv", ["n", 3, 8, 8], ["n", 2, 6, 6], group=groups))


def test_a_measurement_says_predicted_and_how():
    made = calibration.measurement(
        calibration.predict([Operator("conv", 4, 4)], calibration.fit((), A72, known())), target="pi", threads=1
    )
    assert made.origin == "predicted" and made.note.startswith("transferred: ") and made.low < made.value < made.high
    made = calibration.measurement(bound.bound([Operator("conv", 4, 4)], A72), target="pi", threads=1)
    assert made.note.startswith("bound: ") and made.high == math.inf and made.value == made.low


def test_bound_by_hand():
    pointwise = [Operator("conv", 100, 100, (1, 1), 1, 1, 10, 10)]  # a million multiply-accumulates
    # 4 per cycle, 10**6 cycles per ms
    assert bound.bound(pointwise, Device("cortex-a53", 1.0, 1)).low == pytest.approx(1 / 4)
    assert bound.bound(pointwise, Device("cortex-a76", 2.0, 4)).low == pytest.approx(1 / (8 * 2 * 4))
    assert bound.bound(
        pointwise, Device("cortex-a76", 1.0, 1), precision="int8", features=("dotprod",)
    ).low == pytest.approx(1 / 32)
    assert bound.bound(pointwise, Device("apple-m1", 1.0, 1)).low == pytest.approx(1 / 16)  # four units
    square = [Operator("conv", 100, 100, (3, 3), 1, 1, 10, 10)]
    assert bound.bound(square, Device("cortex-a53", 1.0, 1)).low == pytest.approx(9 * 64 / 324 / 4)


# ---------------------------------------------------------------- what ships


def test_shipped_boards_have_sources_and_fits():
    assert {b.name for b in shipped.boards()} >= {"raspberry-pi-3b-plus", "raspberry-pi-4b", "rk3399", "rk3588"}
    assert all(r.source for b in shipped.boards() for t in b.tables for r in t.rows)
    fitted = [c for c in shipped.calibrations("cortex-a72") if c.name.startswith("raspberry-pi-4b")]
    assert {c.device.threads for c in fitted} == {1, 4} and all(c.kind == "calibrated" and c.rows == 35 for c in fitted)
    work = benchmark("networks").NETWORKS["resnet18"]().work
    one = next(c for c in fitted if c.device.threads == 1)
    assert calibration.predict(work, one).value == pytest.approx(190.8, rel=0.25)  # published; one row of 35
    start = COUNT * costs.PRECISIONS.index("float")
    cost = dict(zip(costs.NAMES, np.exp(one.mean[start : start + COUNT]), strict=True))
    # milliseconds per million at 1.8 GHz with 4 lanes: 0.14 at its peak
    assert 0.05 < cost["gemm"] < 0.5 and cost["winograd"] < cost["dense"]


def test_what_is_known_without_own_rows():
    found = shipped.calibrate(Device("cortex-a72", 1.5, 4), runtime="onnxruntime")
    assert found.kind == "transferred" and "6 published tables of cortex-a72 with ncnn for onnxruntime" in found.note
    same = shipped.calibrate(Device("cortex-a72", 1.5, 4), runtime="ncnn")
    work = benchmark("networks").NETWORKS["mobilenet_v2_1.0"]().work
    wide, narrow = (p.high / p.low for p in (calibration.predict(work, c) for c in (found, same)))
    assert wide > 1.3 * narrow
    factors = [math.exp(found.reach * math.sqrt(shipped.population().runtimes[p])) for p in costs.PRECISIONS]
    assert "by a factor of {:.1f} in float and {:.1f} in int8 to each side".format(*factors) in found.note
    assert shipped.calibrate(Device("cortex-m7", 0.2, 1), runtime="onnxruntime") is None


def test_a_left_out_network_is_predicted_as_the_results_say():
    """MobileNetV2 taken out of all shipped rows: the benchmark's way, from what ships."""
    gone = costs.costs(benchmark("networks").NETWORKS["mobilenet_v2_1.0"]().work)

    def same(row):
        return np.allclose(row.costs, gone, rtol=1e-4, atol=1e-9)

    tables = [t for b in shipped.boards() for t in b.tables]
    rest = [dataclasses.replace(t, rows=tuple(r for r in t.rows if not same(r))) for t in tables]
    pop = dataclasses.replace(population.learn(rest, "ncnn"), reach=shipped.population().reach)
    errors, inside = [], []
    for table, given in zip(tables, rest, strict=True):
        for r in table.rows:
            if same(r):
                p = calibration.of(r.costs, calibration.fit(given.rows, table.device, pop), r.precision)
                errors.append(abs(p.value / r.milliseconds - 1))
                inside.append(p.low <= r.milliseconds <= p.high)
    assert len(errors) == len(tables) and np.median(errors) < 0.12 and np.mean(inside) >= 0.9


def target(**facts):
    given = {
        "architecture": "aarch64",
        "core": "cortex-a72",
        "emulated_as": "cortex-a76",
        "clock_mhz": 1500.0,
        "threads": 4,
    } | facts
    return Target("board", "A board", runtime=Runtime("onnxruntime", "1"), **given)


def test_the_best_that_is_known_of_a_target(tmp_path):
    work = benchmark("networks").NETWORKS["mobilenet_v2_1.0"]().work
    assert latency.device_of(target()) == Device("cortex-a72", 1.5, 4)
    assert latency.device_of(target(architecture="x86-64", features=("avx2", "avx512f"))) == Device("avx512", 1.5, 4)
    assert latency.predict(work, target(clock_mhz=None)) is None and latency.predict(work, target(core=None)) is None
    assert latency.predict(work, target()).kind == "transferred"
    assert latency.predict(work, target(core="cortex-m7")).kind == "bound"
    device, pop = Device("cortex-a72", 1.5, 4), shipped.population()
    rows = drawn(9, np.random.default_rng(0), device.traits() @ pop.weights + 0.2)
    own = shipped.Board("board", "A board", "onnxruntime", (population.Table("t", device, tuple(rows)),))
    shipped.write(tmp_path / "board.json", own, [[f"probe {i}" for i in range(9)]])
    read = latency.rows_of(tmp_path / "board.json", runtime="onnxruntime", threads=4)
    assert len(read) == 9 and latency.rows_of(tmp_path / "board.json", runtime="onnxruntime", threads=1) == ()
    assert latency.predict(work, target(), rows=read).kind == "calibrated"
    with pytest.raises(UsageError, match="timed with onnxruntime, not ncnn"):
        latency.rows_of(tmp_path / "board.json", runtime="ncnn", threads=4)


def result():
    return json.loads((LATENCY / "result.json").read_text())


@pytest.mark.parametrize(
    "way", ["boards 0", "boards 0, networks", "boards 3, networks", "boards 5, networks", "boards 3", "boards 5"]
)
def test_of_left_out_boards_the_intervals_hold(way):
    found = result()["ways"][way]
    whole = found["all"]
    assert 0.93 <= whole["inside"] <= 0.97 and whole["inside_low"] <= 0.95 <= whole["inside_high"]
    assert whole["macs"]["median_error"] > whole["median_error"]


def test_results_page_and_documentation_are_of_the_result():
    found, results = result(), benchmark("results")
    assert results.markdown(found) == (LATENCY / "RESULTS.md").read_text()
    page = results.PAGE.read_text()
    assert "\n".join(results.MARK.search(page).group(0).splitlines()[1:-1]) == results.paragraph(found)
    found["ways"]["boards 0, networks"]["all"]["median_error"] = 0.4321
    assert "43.2 %" in results.markdown(found) and "43 %" in results.paragraph(found) and "43 %" not in page


def tried(board, error, spread=1.0, **more):
    given = {
        "way": "w",
        "table": board,
        "family": "x86",
        "core": "avx2",
        "threads": "1",
        "network": "n",
        "precision": "float",
        "draw": 0,
    }
    return benchmark("figures").Try(board=board, error=error, spread=spread, baselines={}, truth=1.0, **given | more)


def test_the_reach_counts_boards_and_not_rows_by_hand():
    reach = benchmark("figures").reach
    many = [tried("a", e / 100) for e in range(1, 101)]  # of one board: 95 of 100 up to 0.95
    assert reach(many) == pytest.approx(0.95)
    assert reach([*many, tried("b", 3.0)]) == 3.0  # the other board is half of all
    assert reach([*many, tried("b", -3.0)], without="b") == pytest.approx(0.95)
    assert reach([dataclasses.replace(t, spread=0.5) for t in many]) == pytest.approx(1.9)


def test_coverage_has_an_interval_over_boards():
    figures = benchmark("figures")
    # all rows of one board of ten are missed
    rows = [tried(f"b{i}", 0.5 if i else 1.5) for i in range(10) for _ in range(20)]
    found = figures.figures(rows, {f"b{i}": 1.0 for i in range(10)})
    assert (
        found["inside"] == 0.9 and found["boards"] == 10 and found["median_error"] == pytest.approx(1 - math.exp(-0.5))
    )
    # by rows it would be 0.86 to 0.94
    assert found["inside_low"] == pytest.approx(0.7, abs=0.05) and found["inside_high"] == 1.0


def test_signs_by_hand():
    figures = benchmark("figures")

    def pair(said, truth, spread=0.1):
        plain = tried("a", 0.0)
        return figures.Pair(plain, dataclasses.replace(plain, precision="int8", truth=1.0 + truth), said, spread)

    found = figures.signs([pair(-0.5, -0.2), pair(-0.1, 0.3), pair(0.4, -0.2), pair(-0.3, -0.2)], 2.0)
    assert (found["right"], found["always"], found["decided"]) == (0.5, 0.75, 0.75) and found[
        "right_decided"
    ] == pytest.approx(2 / 3)
    assert found["inside"] == 0.25 and found["clear"] is None  # of four pairs
    far = [pair(-0.5, -0.2)] * 19 + [pair(0.45, -0.2)]  # 19 of 20
    assert figures.signs([*far, pair(0.1, -0.2)], 2.0)["clear"] == pytest.approx(math.exp(0.45))


def test_further_boards_have_the_facts_that_are_corrected():
    row = {
        "board": "RemiPi",
        "heading": "h",
        "core": "cortex-a55",
        "clock_ghz": "1.5",
        "fp16": "1",
        "threads": "4",
        "powersave": "0",
    }
    rows = [row | {"model": name, "min_ms": "2"} for name in ("mobilenet_int8", "nothing")]
    rows.append(row | {"board": "X (", "model": "vgg16", "min_ms": "3"})
    benchmark("networks")
    remi, other = benchmark("published").more(rows)
    assert remi.table.device == Device("cortex-a55", 1.2, 2, True) and other.table.device == Device(
        "cortex-a55", 1.5, 4, True
    )
    assert [(r.precision, r.milliseconds) for r in remi.table.rows] == [("int8", 2.0)] and remi.networks == (
        "mobilenet_v1_1.0",
    )
    assert remi.table.rows[0].source == "Tencent/ncnn benchmark/README.md, h" and (other.board, other.networks) == (
        "X",
        ("vgg16",),
    )


def test_baselines_by_hand():
    """Two boards, one twice as fast; a network of each precision is four times the other. A third board's level is the
    median of what is left."""
    networks, published = benchmark("networks"), benchmark("published")

    def table(board, level):
        rows = [(n, p, level * ms, "s") for n, ms in (("resnet18", 8.0), ("resnet50", 2.0)) for p in costs.PRECISIONS]
        return published._listing(board, Device("cortex-a72", 1.0, 1), board, rows)

    given, baselines = [table("a", 1.0), table("b", 2.0)], benchmark("baselines")
    share = baselines.additive(given, lambda x, i: True)
    assert share["resnet18", "float"] - share["resnet50", "float"] == pytest.approx(math.log(4))
    levels = baselines.levels(table("c", 5.0), share, lambda x, i: x.networks[i] == "resnet50")
    assert math.exp(levels["int8"] + share["resnet18", "int8"]) == pytest.approx(40.0)
    assert ("resnet50", "float") not in baselines.additive(given, lambda x, i: x.networks[i] == "resnet18")
    millions = macs(networks.NETWORKS["resnet18"]().work) / 1e6
    assert baselines.multiplied(given, lambda x, i: True)["resnet18", "float"] == pytest.approx(math.log(millions))


def test_files_go_there_and_back(tmp_path):
    board = next(b for b in shipped.boards() if b.name == "raspberry-pi-4b")
    names = [[f"n{i}" for i in range(len(t.rows) // 2)] * 2 + ["n0"] * (len(t.rows) % 2) for t in board.tables]
    single = dataclasses.replace(
        board, tables=tuple(dataclasses.replace(t, rows=tuple([t.rows[0]] * len(t.rows))) for t in board.tables)
    )
    shipped.write(tmp_path / "b.json", single, names)
    again = shipped.read(tmp_path / "b.json")
    assert [t.device for t in again.tables] == [t.device for t in board.tables] and again.runtime == "ncnn"
    assert [r.milliseconds for t in again.tables for r in t.rows] == [
        r.milliseconds for t in single.tables for r in t.rows
    ]
    assert again.tables[0].rows[0].costs == pytest.approx(board.tables[0].rows[0].costs, rel=1e-4)
    shipped.write_population(tmp_path / "p.json", shipped.population())
    assert shipped.read_population(tmp_path / "p.json").spread == pytest.approx(shipped.population().spread)


def spoilt(change):
    raw = json.loads((shipped.folder() / "raspberry-pi-4b.json").read_text())
    change(raw)
    return raw


HOSTILE = {
    "name": lambda raw: raw.update(name=3),
    "must have schema": lambda raw: raw.update(schema="edgekd.calibration/2"),
    "costs.resnet18": lambda raw: raw["costs"].update(resnet18=[1.0] * 10),
    "costs.alexnet": lambda raw: raw["costs"].update(alexnet=[-1.0] * 11),
    "names the network `nothing`": lambda raw: raw["tables"][0]["rows"].append(["nothing", "float", 1.0]),
    "must be [network, float or int8, milliseconds]": lambda raw: raw["tables"][0]["rows"].append(
        ["resnet18", "float", 0]
    ),
    "tables[1].rows[35]": lambda raw: raw["tables"][1]["rows"].append(["resnet18", ["float"], 1.0]),
    "tables[1].rows[36]": lambda raw: raw["tables"][1]["rows"].extend(
        [["resnet18", "float", 1.0], [["resnet18"], "float", 1.0]]
    ),
    "tables[0].source": lambda raw: raw["tables"][0].pop("source"),
    "tables[0].clock_ghz": lambda raw: raw["tables"][0].update(clock_ghz=0),
    "b.json: tables[0].clock_ghz": lambda raw: raw["tables"][0].update(clock_ghz=10**400),
    "tables[0].threads": lambda raw: raw["tables"][0].update(threads=True),
    "tables[0].half": lambda raw: raw["tables"][0].update(half="no"),
    "tables[0].core": lambda raw: raw["tables"][0].update(core=["cortex-a72"]),
    "must be a list with at least one table": lambda raw: raw.update(tables={}),
    "tables[0].rows: must be a list with at least one row": lambda raw: raw["tables"][0].update(rows={"a": 1}),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_files_are_refused(message, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps(spoilt(HOSTILE[message])))
    with pytest.raises(UsageError) as error:
        shipped.read(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b"\xff\xfe",
        b"[1]",
        b'{"schema": "edgekd.calibration/1"}',
        b'{"schema": "edgekd.calibration/1", "tables": [NaN]}',
    ],
)
def test_files_that_are_none_are_refused(data, tmp_path):
    (tmp_path / "b.json").write_bytes(data)
    with pytest.raises(UsageError):
        shipped.read(tmp_path / "b.json")
    with pytest.raises(UsageError):
        shipped.read(tmp_path / "missing.json")


def test_all_problems_of_a_file_at_once(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(
        json.dumps(spoilt(lambda raw: [HOSTILE[m](raw) for m in ("name", "costs.resnet18", "tables[0].half")]))
    )
    with pytest.raises(UsageError) as error:
        shipped.read(path)
    assert all(text in str(error.value) for text in ("name", "costs.resnet18", "tables[0].half"))


def test_a_population_that_is_no_covariance_is_refused(tmp_path):
    raw = json.loads((shipped.folder() / "population.json").read_text())
    raw["spread"][0][0] = -1.0
    raw["noise"] = "small"
    raw["boards"]["x86"].pop("int8")
    (tmp_path / "p.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match="noise") as error:
        shipped.read_population(tmp_path / "p.json")
    assert "boards.x86.int8" in str(error.value)
    raw["noise"], raw["boards"]["x86"]["int8"] = 0.01, 0.1
    (tmp_path / "p.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match="positive definite covariance"):
        shipped.read_population(tmp_path / "p.json")


# ---------------------------------------------------------------- probes


def test_probes_run_and_make_rows():
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    for (name, precision), data in probes.models().items():
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        (out,) = session.run(None, {given.name: np.ones(given.shape, np.float32)})
        assert list(out.shape) == session.get_outputs()[0].shape and np.isfinite(out).all(), (name, precision)
    rows = probes.rows({("operators", "float"): 2.0, ("operators", "int8"): 1.0}, "timed here")
    assert [(r.precision, r.milliseconds, r.source) for r in rows] == [
        ("float", 2.0, "timed here"),
        ("int8", 1.0, "timed here"),
    ]


def test_int8_probes_run_in_integers(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(probes.models()["mobile", "int8"], options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    assert kinds.count("QLinearConv") == 10 and "Conv" not in kinds and "Relu" not in kinds


def test_probes_tell_the_costs_apart():
    """Eleven kinds of work, and no direction of them that the probes leave free."""
    table = np.array(
        [costs.costs(work_of(onnx.load_model_from_string(d))) for (_, p), d in probes.models().items() if p == "float"]
    )
    shares = table * [costs.START[n] for n in costs.NAMES]
    shares /= shares.sum(1, keepdims=True)
    assert np.linalg.matrix_rank(shares, tol=1e-3) == COUNT
