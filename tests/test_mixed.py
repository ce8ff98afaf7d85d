"""Which layers stay in float or get other bits: by what they lose, by what it buys, and that a file computes it so."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from test_quantization import FAMILIES, data, stirred
from torch import nn
from toys import Stop, artifact, run_in, teacher_in, toy_task, weights

from edgekd import quantization, targets
from edgekd.errors import UsageError
from edgekd.formats import _qdq
from edgekd.formats import onnx as format
from edgekd.measure.operators import Operator, Operators
from edgekd.quantization import calibrated
from edgekd.quantization import grid as grids
from edgekd.quantization.diagnosis.mixed_precision import choose, layer_of, named, saved
from edgekd.quantization.diagnosis.sensitivity import SAMPLES, sensitivity
from edgekd.quantization.qdq import compare
from edgekd.quantization.torch_graph import check, exact, fake
from edgekd.quantization.torch_graph.capture import capture
from edgekd.quantization.torch_graph.sites import layers, place
from edgekd.records import Scheme
from edgekd.run import plan, resolve
from edgekd.runtimes.onnxruntime import load
from edgekd.stages.export import Export
from edgekd.stages.quantize import Quantize
from edgekd.training.terms import Term


def exported(model, x, folder, scheme):
    """(outputs of the settled model, of the file, grid read back from JSON, file, captured graph)"""
    module, graph = calibrated(model, [x], scheme=scheme), capture(model, x[:2])
    grids.write(fake.settle(module), folder / "grid.json")
    grid, path = grids.read(folder / "grid.json"), folder / "model.onnx"
    format.export(graph, grid, x[:2], path)
    ours = exact.Settled(fake.apply(graph, grid))(x).numpy()
    return ours, load(str(path), 1)({"input": x.numpy()})["output"], grid, path, graph


def test_a_file_of_another_graph_is_refused(tmp_path):
    graphs = [capture(nn.Sequential(*(nn.Linear(4, 4) for _ in range(n))), torch.zeros(2, 4)) for n in (1, 2)]
    format.export(graphs[0], None, torch.zeros(2, 4), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="the file has 1 layers, the graph 2"):
        named(onnx.load(tmp_path / "m.onnx"), graphs[1])


def sharing(known, names):
    """The layers that share a weight with those named, too."""
    return tuple(n for n in known if known[n] in {known[m] for m in names})


WHICH = [
    ("residual", "first"),
    ("depthwise", "middle"),
    ("residual", "all"),
    ("encoder", "all"),
    *((f, "last") for f in FAMILIES),
]


class TestFloatLayers:
    @pytest.mark.parametrize("family, which", WHICH)
    def test_a_file_computes_them_in_float_and_the_rest_in_integers(self, family, which, tmp_path):
        make, shape = FAMILIES[family]
        model, x = stirred(make()), data(shape, 300)
        known = layers(capture(model, x[:2]))
        names = {"first": list(known)[:1], "last": list(known)[-1:], "middle": list(known)[1:3], "all": list(known)}[
            which
        ]
        names = sharing(known, names)
        ours, theirs, grid, path, graph = exported(model, x, tmp_path, Scheme(float_layers=names))
        assert grid.scheme.float_layers == names
        tied = place(graph, names).tied
        (output,) = (
            tied.get(n.name, n.name) for node in graph.graph.nodes if node.op == "output" for n in node.all_input_nodes
        )
        equality = check.compare(ours, theirs, grid.sites[output].scale[0])
        assert equality.reasons == () and equality.equal > 0.995, equality
        rows = compare.compare(path, {"input": x[:50].numpy()})
        assert sum(r.differ for r in rows if r.integer) == 0
        deep = {"depthwise": 1}.get(family, 0)  # onnxruntime has no transposed convolution in integers
        extra = 0 if any("transpose" in n for n in names) else deep
        assert len(format.float_kernels(path)) == len(names) + extra

    def test_without_the_detour_onnxruntime_rounds_their_weights(self, tmp_path, monkeypatch):
        """What the int32 bias is for: beside a weight of 1, int8 with one scale holds no 0.001."""
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        model[0].weight.data, model[2].weight.data = torch.eye(4), torch.tensor([[1.0, 0, 0, 0], [0, 0.001, 0, 0]])
        model[0].bias.data, model[2].bias.data = torch.zeros(4), torch.zeros(2)
        x, scheme = (
            torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) / torch.tensor([1000.0, 1, 1, 1]),
            Scheme(float_layers=("linear_1",)),
        )
        seen = []
        for _ in range(2):
            ours, theirs, grid, path, _ = exported(model, x, tmp_path, scheme)
            seen.append((len(format.float_kernels(path)), bool(theirs[:, 1].any())))
            assert ours[:, 1].any()
            monkeypatch.setattr(_qdq, "_kept_float", lambda node, *_: [node])
        assert seen == [(1, True), (0, False)]

    @pytest.mark.parametrize("bias", [[0.0, 1.0, -1e-30, 3e38, 0.1, -16777217.0, 1e-12]])
    def test_a_bias_is_the_same_numbers(self, bias, tmp_path):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 7))
        model[2].bias.data = torch.tensor(bias)
        *_, path, graph = exported(model, data((3,), 50), tmp_path, Scheme(float_layers=("linear_1",)))
        file = named(onnx.load(path), graph).graph
        stored = {i.name: numpy_helper.to_array(i) for i in file.initializer}
        layer = next(n for n in file.node if n.name == "linear_1")
        q, scale = (stored[n] for n in next(n for n in file.node if n.output[0] == layer.input[2]).input[:2])
        assert q.dtype == np.int32 and (q.astype(np.float32) * scale).tolist() == np.array(bias, np.float32).tolist()

    def test_layers_without_a_bias_too(self, tmp_path):
        model = stirred(
            nn.Sequential(
                nn.Conv2d(2, 6, 3),
                nn.ReLU(),
                nn.Conv2d(6, 4, 3, groups=2, bias=False),
                nn.ReLU(),
                nn.Conv2d(4, 2, 1, bias=False),
            )
        )
        x = data((2, 8, 8), 100)
        ours, theirs, grid, path, _ = exported(model, x, tmp_path, Scheme(float_layers=("conv2d_1", "conv2d_2")))
        assert (
            len(format.float_kernels(path)) == 2
            and check.compare(ours, theirs, grid.sites["conv2d_2"].scale[0]).reasons == ()
        )

    def test_values_between_float_layers_have_no_site(self):
        graph = capture(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.zeros(2, 4))
        assert len(place(graph).values) == 5
        found = place(graph, ("linear", "linear_1"))
        assert list(found.values) == ["linear_1", "linear_2", "linear_3"] and list(found.weights) == [
            "2__weight",
            "3__weight",
        ]
        assert list(found.biases) == ["linear_2", "linear_3"]


class TestLayerBits:
    def test_in_the_grid_and_in_the_file(self, tmp_path):
        make, shape = FAMILIES["residual"]
        x = data(shape, 200)
        scheme = Scheme(weight_bits=4, pairs16=False, layer_bits={"conv2d": 8, "linear": 7})
        ours, theirs, grid, path, graph = exported(stirred(make()), x, tmp_path, scheme)
        assert grid.scheme == scheme and check.compare(ours, theirs, grid.sites["linear"].scale[0]).reasons == ()
        file = named(onnx.load(path), graph).graph
        stored = {i.name: numpy_helper.to_array(i) for i in file.initializer}
        made = {n.output[0]: n.input[0] for n in file.node if n.op_type == "DequantizeLinear"}
        widest = {n.name: int(np.abs(stored[made[n.input[1]]].astype(int)).max()) for n in file.node if n.name}
        assert widest == {**dict.fromkeys(layers(graph), 7), "conv2d": 127, "linear": 63}

    @pytest.mark.parametrize("family", ["depthwise", "encoder"])
    def test_one_scale_for_a_whole_weight(self, tmp_path, family):
        make, shape = FAMILIES[family]
        x = data(shape, 200)
        ours, theirs, grid, path, _ = exported(stirred(make()), x, tmp_path, Scheme(per_channel=False))
        assert np.array_equal(ours, theirs) and all(len(site.scale) == 1 for site in grid.sites.values())
        file = onnx.load(path).graph
        stored = {i.name: numpy_helper.to_array(i) for i in file.initializer}
        weights = [
            n
            for n in file.node
            if n.op_type == "DequantizeLinear" and stored.get(n.input[0], np.zeros(0)).dtype == np.int8
        ]
        assert weights and all(stored[n.input[1]].size == 1 for n in weights)

    def test_a_target_file_has_no_layers(self, tmp_path):
        (tmp_path / "mine.toml").write_text(
            'title = "x"\narchitecture = "aarch64"\nint8 = { float_layers = ["conv2d"] }\n'
        )
        with pytest.raises(UsageError, match="there is no fact `float_layers`"):
            targets.load(tmp_path / "mine.toml")


@pytest.mark.parametrize("family", ["depthwise", "encoder", "twice"])
def test_the_layers_of_a_file_are_known(family, tmp_path):
    """By the weight that each reads: its largest value is planted."""
    make, shape = FAMILIES[family]
    model, x = stirred(make()), data(shape, 20)
    graph = capture(model, x[:2])
    known = layers(graph)
    for number, target in enumerate(dict.fromkeys(known.values())):
        getattr(graph, target).data.flatten()[0] = 100.0 + number
    format.export(graph, None, x[:2], tmp_path / "m.onnx")
    file = named(onnx.load(tmp_path / "m.onnx"), graph).graph
    stored = {i.name: numpy_helper.to_array(i) for i in file.initializer}
    assert {n.name: stored[n.input[1]].max() for n in file.node if n.name} == {
        n: getattr(graph, t).max().item() for n, t in known.items()
    }


# ---------------------------------------------------------------- sensitivity


def power(a, b):
    return (a.double() - b.double()).square().mean().item()


class TestSensitivity:
    def test_by_hand(self):
        """One weight of 1, an input grid 0, 1, ... 255: 0.25 becomes 0, 10.5 becomes 10 (half to even); (1/16 + 1/4)
        / 2."""
        graph = capture(nn.Sequential(nn.Linear(1, 1, bias=False)), torch.zeros(2, 1))
        graph.get_parameter("0__weight").data.fill_(1)
        module = calibrated(graph, [torch.arange(256.0).reshape(-1, 1)])
        (found,) = sensitivity(module, capture(graph, torch.zeros(2, 1)), [torch.tensor([[0.25], [10.5]])]).values()
        assert found.noise == pytest.approx(5 / 32) and found.kl is None
        assert found.gain == pytest.approx(0)  # the output keeps its grid, which rounds the same two

    @pytest.mark.parametrize("family", ["residual", "perceptron", "twice"])
    def test_against_other_ways_to_the_same(self, family):
        make, shape = FAMILIES[family]
        model, x = stirred(make()), data(shape, 60)
        graph = capture(model, x[:2])
        module = calibrated(model, [x], scheme=Scheme(weight_bits=4))
        grid, known = fake.settle(module), layers(graph)
        before = {n: t.clone() for n, t in module.state_dict().items()}
        found = sensitivity(module, graph, [x[:25], x[25:]])
        assert list(found) == list(known) and all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
        with torch.no_grad():
            wanted, every = graph(x), module(x)
            for name, seen in found.items():
                names = sharing(known, [name])
                kept = place(graph, names)
                sites = {s: grid.sites[s] for s in (*kept.values, *(t.replace("__", ".") for t in kept.weights))}
                rest = fake.apply(
                    graph,
                    dataclasses.replace(grid, scheme=dataclasses.replace(grid.scheme, float_layers=names), sites=sites),
                )
                assert seen.gain == pytest.approx(power(every, wanted) - power(rest(x), wanted), rel=1e-6, abs=1e-15)
                answers = [
                    torch.nn.functional.kl_div(torch.log_softmax(m, 1), torch.softmax(wanted, 1), reduction="batchmean")
                    for m in (every, rest(x))
                ]
                assert seen.kl_gain == pytest.approx((answers[0] - answers[1]).item(), rel=0.1, abs=1e-6)
        if family == "perceptron":  # a layer alone: in plain tensors
            weights_ = [getattr(graph, target) for target in known.values()]
            biases = [getattr(graph, bias.target) for bias in place(graph).biases.values()]
            w, b, s = weights_[0], biases[0], grid.sites
            (site,) = (n for n in s if n.startswith("input"))
            q = lambda v, at: (
                ((v / s[at].scale[0]).round() + s[at].zero_point).clamp(0, 255).sub(s[at].zero_point) * s[at].scale[0]
            )
            scale = torch.tensor(s[next(iter(known.values())).replace("__", ".")].scale)[:, None]
            first = q(torch.relu(q(x, site) @ ((w / scale).round() * scale).T + b), "relu")
            later = torch.relu(first @ weights_[1].T + biases[1])
            made = later @ weights_[2].T + biases[2]
            assert found["linear"].noise == pytest.approx(power(made, wanted), rel=1e-3)

    def test_a_planted_layer_is_found(self):
        """One weight far from the others takes its layer's only scale."""
        model, x = stirred(FAMILIES["perceptron"][0]()), data((10,), 100)
        model[3].weight.data[0] = 0
        model[3].weight.data[0, 0] = 300 * model[3].weight.abs().max()
        model[6].weight.data[:, 0] /= 300
        module = calibrated(model, [x], scheme=Scheme(per_channel=False))
        found = sensitivity(module, capture(model, x[:2]), [x])
        assert max(found, key=lambda n: found[n].noise) == max(found, key=lambda n: found[n].gain) == "linear_1"

    def test_no_more_rows_than_said(self):
        model, x = stirred(FAMILIES["perceptron"][0]()), data((10,), SAMPLES)
        graph, module = capture(model, x[:2]), calibrated(model, [x])
        endless = (
            b for b in (x[:100], torch.cat([x[100:], torch.full((50, 10), 9.0)]), torch.full((4, 10), float("nan")))
        )
        assert sensitivity(module, graph, endless) == sensitivity(module, graph, [x[:100], x[100:]])


# ---------------------------------------------------------------- what it buys


class TestChoose:
    def test_by_hand(self):
        noise = {"slow": 0.0, "dear": 9.0, "cheap": 4.0, "free": 1.0, "quiet": 0.0, "untimed": 99.0}
        saves = {"slow": -2.0, "dear": 6.0, "cheap": 1.0, "free": 0.0, "quiet": 0.0}
        assert choose(noise, saves, 0) == ("slow", "cheap", "free")  # 2 given back: 1 for `cheap`
        assert choose(noise, saves, 5) == ("slow", "dear", "cheap", "free")
        assert choose(noise, {**saves, "slow": 0.5}, 0) == ("free",) and choose({}, {}, 10) == ()
        # by the microsecond it were `small` alone
        assert choose({"small": 2.0, "large": 10.0}, {"small": 1.0, "large": 10.0}, 10) == ("large",)

    @given(st.lists(st.tuples(st.integers(0, 20), st.integers(-3, 10)), max_size=8), st.integers(0, 25))
    @settings(max_examples=200, deadline=None)
    def test_against_all_choices(self, layers_, budget):
        noise, saves = ({f"l{i}": float(pair[k]) for i, pair in enumerate(layers_)} for k in (0, 1))
        found = choose(noise, saves, budget)
        value, cost = (lambda names, of: sum(of[n] for n in names)), saves
        slower = {n for n in noise if saves[n] < 0}
        every = [c for r in range(len(noise) + 1) for c in itertools.combinations(noise, r) if value(c, cost) <= budget]
        best = max(value(c, noise) for c in every)
        assert found in every and slower <= set(found)
        assert (
            2 * value(found, noise) >= best
            and value(found, noise) - value(slower, noise) >= (best - value(slower, noise)) / 2
        )
        if len({s for s in saves.values() if s >= 0}) <= 1:  # at one price, the greedy choice is the best
            assert value(found, noise) == best


class TestSaved:
    def test_names(self):
        known = ["conv2d", "conv2d_1", "linear"]
        given = {
            "conv2d": "conv2d",
            "conv2d_1_token_5": "conv2d_1",
            "conv2d_token_12": "conv2d",
            "fused linear": "linear",
            "QLinearAdd_1": None,
        }
        assert {name: layer_of(name, known) for name in given} == given

    @pytest.mark.parametrize("family", ["residual", "encoder"])
    def test_every_layer_of_a_real_trace(self, family, tmp_path):
        """Planted times: int8 takes 1 us for the k-th operator, float 100 us."""
        import onnxruntime

        make, shape = FAMILIES[family]
        model, x = stirred(make()), data(shape, 40)
        *_, path, graph = exported(model, x, tmp_path, Scheme())
        format.export(capture(model, x[:2]), None, x[:2], tmp_path / "float.onnx")
        found = []
        for file, ms in ((tmp_path / "float.onnx", 0.1), (path, 0.001)):
            onnx.save(named(onnx.load(file), graph), file)
            options = onnxruntime.SessionOptions()
            options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / file.stem)
            session = onnxruntime.InferenceSession(str(file), options)
            session.run(None, {"input": x[:1].numpy()})
            events = json.loads(Path(session.end_profiling()).read_text())
            seen = [
                (e["name"].removesuffix("_kernel_time"), e["args"]["op_name"])
                for e in events
                if e["name"].endswith("_kernel_time")
            ]
            found.append(Operators(tuple(Operator(*key, ms, 0.1) for key in seen), 1, 0))
        assert saved(*found, tmp_path / "float.onnx", path) == pytest.approx(dict.fromkeys(layers(graph), 99.0))


# ---------------------------------------------------------------- the stage


class TestStage:
    def test_trains_resumes_and_exports(self, tmp_path, monkeypatch):
        monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", -1.0)
        task = toy_task()
        source = teacher_in(tmp_path / "t", task)
        stage = Quantize(
            epochs=3,
            batch=20,
            losses=(Term("cross_entropy"),),
            float_layers=("linear",),
            layer_bits={"linear_1": 5},
        )
        whole, cut = run_in(tmp_path / "whole", task), tmp_path / "cut"
        stage(source, whole)

        def stop(done, total, text):
            if done == 7:
                raise Stop

        with pytest.raises(Stop):
            stage(source, run_in(cut, task, progress=stop))
        again = run_in(cut, task)
        stage(source, again)
        assert all(torch.equal(t, weights(again)[n]) for n, t in weights(whole).items())
        made = dataclasses.replace(artifact(again, "quantized"), files={"weights.safetensors": "x"})
        graph, module, grid = quantization.load(made, task, quantization.example_of(again.data("train")))
        assert grid.scheme == Scheme(float_layers=("linear",), layer_bits={"linear_1": 5})
        assert {n: (s.low, s.high) for n, s in grid.sites.items() if s.low} == {"4.weight": (-15, 15)}
        facts = Export()(made, run_in(tmp_path / "e", task)).facts
        assert facts["equality"]["reasons"] == () and len(facts["float_kernels"]) == 1

    @pytest.mark.parametrize(
        "given, texts",
        [
            (
                {"float_layers": ["conv2"]},
                ["float_layers: the model's graph has no layer `conv2`", "`conv2d`? its layers are conv2d, conv2d_1,"],
            ),
            (
                {"layer_bits": {"x": 4}},
                ["layer_bits: the model's graph has no layer `x`", "its layers are conv2d, conv2d_1,"],
            ),
            ({"layer_bits": {"conv2d": 9}}, ["layer_bits.conv2d: input should be less than or equal to 8"]),
            (
                {"layer_bits": {"conv2d": 7}, "float_layers": ["conv2d"]},
                ["`conv2d` is also in float_layers"],
            ),
        ],
    )
    def test_wrong_names_are_told_before_anything_runs(self, given, texts):
        lines = [{"use": "distill", "epochs": 1}, {"use": "quantize", "epochs": 1, **given}]
        with pytest.raises(UsageError) as refused:
            plan.make(resolve.resolved({"task": "digits", "threads": 1, "stage": lines}))
        told = [str(p) for p in refused.value.problems]
        assert any(all(t in line for t in texts) for line in told), told

    def test_right_names_are_part_of_the_key(self):
        def keys(**given):
            lines = [{"use": "distill", "epochs": 1}, {"use": "quantize", "epochs": 1, **given}]
            return set(plan.make(resolve.resolved({"task": "digits", "threads": 1, "stage": lines})).steps)

        assert len(keys() & keys(float_layers=["conv2d"])) == len(keys() & keys(layer_bits={"linear": 7})) < len(keys())

    def test_layers_that_share_a_weight_go_together(self):
        model, x = FAMILIES["twice"][0](), data((4, 8, 8), 2)
        told = lambda **given: [str(p) for p in Quantize(**given).check(model, x)]
        assert (
            told(float_layers=("linear", "linear_1", "conv2d", "conv2d_1"))
            == told(layer_bits={"linear": 5, "linear_1": 5})
            == []
        )
        assert any("`linear` shares its weight with `linear_1`" in t for t in told(float_layers=("linear",)))
        assert len(told(layer_bits={"conv2d": 5, "conv2d_1": 6})) == 2


# ---------------------------------------------------------------- what is not among the ways


@pytest.mark.parametrize(("dtype", "kernel"), [(np.uint8, "QLinearConv"), (np.uint16, "Conv")])
def test_the_runtime_has_no_integer_kernel_for_16_bit_activations(dtype, kernel, tmp_path):
    """Which is why a layer is int8 or float: with 16 bits it computes in float and rounds on top. Should this fail,
    there is a third way."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).integers(-127, 128, (8, 8, 3, 3)).astype(np.int8)
    step = np.float32(0.05 if dtype is np.uint8 else 0.05 / 256)
    values = {
        "w": weight,
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "s": step,
        "z": dtype(np.iinfo(dtype).max // 2 + 1),
    }
    chain = (
        ("QuantizeLinear", "x s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("DequantizeLinear", "w ws wz", "wd"),
        ("Conv", "d wd", "c"),
    )
    nodes = [
        helper.make_node(op, inputs.split(), [out])
        for op, inputs, out in (*chain, ("QuantizeLinear", "c s z", "r"), ("DequantizeLinear", "r s z", "y"))
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 6, 6][:2] + side)
        for n, side in (("x", [6, 6]), ("y", [4, 4]))
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, n) for n, v in values.items()]
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert [k for k in kinds if "Conv" in k] == [kernel]
