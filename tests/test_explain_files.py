"""`explain` of files that people bring: layers by the names that `--float-layer` takes, options that `quantize` has,
and forms that can't be read."""

import dataclasses
import re
import shlex
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from edgekd import cli
from edgekd.errors import UsageError
from edgekd.explain import fixed, layers, requantize
from edgekd.explain.trial import State, Tried
from edgekd.files import sha256
from edgekd.onnx_files import external
from edgekd.probes import figure
from edgekd.probes.signal_to_noise import SIGNAL_TO_NOISE
from edgekd.quantization.diagnosis.fixes import Fix, offered, options
from edgekd.quantization.diagnosis.layers import Finding, Looked, Lost
from edgekd.quantization.diagnosis.signal_to_noise import Agreement
from edgekd.quantization.qdq.pairing import pair
from edgekd.verbs.explain import explain
from edgekd.verbs.quantize import quantize


def network(activation, norm=False):
    """conv (one loud channel in weights and bias) -> activation -> conv -> mean -> fc."""
    rng = np.random.default_rng(0)
    tensors = {
        "w0": rng.normal(size=(8, 3, 3, 3)) / 5,
        "b0": rng.normal(size=8) / 10,
        "w1": rng.normal(size=(8, 8, 3, 3)) / 8,
        "w2": rng.normal(size=(8, 4)),
    }
    tensors["w0"][3] *= 60
    tensors["b0"][3] = 20.0
    tensors["w1"][:, 3] /= 10  # what reads it makes it small again
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="second"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="mean"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("MatMul", ["e", "w2"], ["y"], name="fc"),
    ]
    if norm:
        ones = {"s": np.ones(8), "o": np.zeros(8), "m": np.zeros(8), "v": np.ones(8)}
        nodes[2].output[0] = "c0"
        nodes.insert(3, helper.make_node("BatchNormalization", ["c0", *ones], ["c"], name="norm"))
        tensors |= ones
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def files(tmp_path):
    """(folder with net.onnx, d.npz and q.onnx; how explain is called)."""
    onnx.save(network("Relu"), tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(128, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", inputs=x, labels=rng.integers(0, 4, 128))
    quantize(tmp_path / "net.onnx", data=tmp_path / "d.npz", out=tmp_path / "q.onnx")
    return tmp_path, {"plain": tmp_path / "net.onnx", "data": tmp_path / "d.npz"}


def test_layers_have_the_names_that_quantize_takes_and_fixes_are_its_options(files):
    folder, given = files
    found = explain(folder / "q.onnx", **given)
    (findings,) = found.findings.values()
    assert findings[-1].layer == "first" and findings[-1].cause == "outlier channel"
    assert "norm" not in findings[-1].evidence, "the file has none"
    assert findings[-1].fix == "--equalize or --ranges mse or --float-layer first"
    assert next(f for f in findings if f.cause == "rounding").fix == "--correct-bias or --float-layer second"
    words = {w for f in findings for w in re.findall(r"--[\w-]+", f.fix)}
    told = CliRunner().invoke(cli.cli, ["quantize", "--help"]).output
    assert words and all(w in told for w in words)
    assert "edgekd quantize" in found.text
    names = re.findall(r"--float-layer (\S+)", " ".join(f.fix for f in findings))
    quantize(folder / "net.onnx", data=folder / "d.npz", out=folder / "again.onnx", float_layers=names)


@pytest.mark.parametrize("apart", [False, True])
def test_a_fixed_file_is_kept_whole_and_is_the_one_that_its_command_makes(files, monkeypatch, apart):
    """Also one whose weights are in a second file; the limit above which they are is lowered."""
    folder, given = files
    if apart:
        monkeypatch.setattr(external, "LIMIT", external.ROOM + 500)
        monkeypatch.setattr(external, "SMALL", 64)
    (made,) = explain(folder / "q.onnx", **given, fix=True).fixes
    assert made.remedy.settings == {"before": ("equalize",)} and made.recovered
    assert made.sha256 == sha256(folder / made.file) and len(external.files(folder / made.file)) == apart
    before, after = (next(m.value for m in f if m.name == "signal_to_noise") for f in (made.before, made.after))
    assert before < 15 < 20 < after
    assert cli.run([*shlex.split(made.lasting)[1:], "--quiet"]) == 0
    kept = {p.name: p.read_bytes() for p in (folder / "fixed").iterdir() if p.suffix != ".json"}
    assert kept == {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("q.onnx")}


@pytest.mark.parametrize("snr, told", [(3.0, "no layer alone explains the loss"), (35.0, "no layer shows")])
def test_a_loss_that_no_layer_explains_is_not_called_none(files, monkeypatch, snr, told):
    folder, given = files
    seen = Looked((), (), (Agreement("y", snr),), False)
    monkeypatch.setattr(layers, "look", lambda *_, **__: seen)
    text = explain(folder / "q.onnx", **given).text
    assert told in text and ("--max-drop" in text) == (snr < 20)


def test_a_norm_is_named_where_there_is_one(files):
    folder, given = files
    onnx.save(network("Relu", norm=True), folder / "net.onnx")
    (findings,) = explain(folder / "q.onnx", **given).findings.values()
    assert findings[-1].cause == "folded batch norm" and "a norm with a tiny variance" in findings[-1].evidence


def test_operators_that_one_file_has_as_their_definition_are_paired(files):
    """onnxruntime writes HardSwish as HardSigmoid and Mul where it folds a file, and its quantizer keeps it; here the
    former is a sum of integers."""
    folder, given = files
    whole = network("HardSwish")
    onnx.save(whole, folder / "net.onnx")
    quantize(folder / "net.onnx", data=folder / "d.npz", out=folder / "q.onnx")
    kinds = [n.op_type for n in onnx.load(folder / "q.onnx").graph.node]
    assert {"Add", "Mul"} <= {*kinds} and not {"HardSigmoid", "HardSwish"} & {*kinds}
    (findings,) = explain(folder / "q.onnx", **given).findings.values()
    product = next(f for f in findings if f.layer.startswith("Mul("))
    assert product.layer == "Mul(b)" and product.fix.endswith("--float-layer second"), "by the layer that reads it"
    known = [("", "HardSwish")]
    parts = onnx.inliner.inline_selected_functions(whole, known, False, inline_schema_functions=True)
    assert [n.op_type for n in pair(parts, whole).quantized.nodes] == [n.op_type for n in parts.graph.node]
    with pytest.raises(UsageError, match="not the same network"):
        pair(network("Sigmoid"), whole)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.feeds = iter([{"x": np.ones((4, 3, 8, 8), np.float32)}])

    def get_next(self):
        return next(self.feeds, None)


def operators(source, made):
    quantize_static(source, made, Reader(), quant_format=QuantFormat.QOperator)


@pytest.mark.parametrize("make, kind", [(operators, "QLinearConv"), (quantize_dynamic, "ConvInteger")])
def test_other_forms_are_named(files, make, kind):
    folder, given = files
    make(folder / "net.onnx", folder / "other.onnx")
    with pytest.raises(UsageError, match=f"holds integer operators .*{kind}.*, which explain can't read") as caught:
        explain(folder / "other.onnx", **given)
    assert "QuantFormat.QDQ" in caught.value.problems[0].hint


def test_a_file_that_is_not_there_is_no_run(files):
    folder, given = files
    with pytest.raises(UsageError, match="q9.onnx: there is no such file") as caught:
        explain(folder / "q9.onnx", **given)
    assert len(caught.value.problems) == 1


def test_a_float_file_is_no_int8_file(files):
    folder, given = files
    with pytest.raises(UsageError, match="is a float file: nothing in it is quantized"):
        explain(folder / "net.onnx", **given)


def test_what_is_offered_ends_with_the_layer_in_float():
    finding = lambda cause: Finding("Conv(v1)", cause, "", "", Lost(3.0))
    now = requantize.of_file(64, {"Conv(v1)": ("/f/conv",)})
    assert [dict(s) for s in offered(finding("saturation"), now)] == [
        {},
        {"weight_bits": 7},
        {"float_layers": ("/f/conv",)},
    ]
    ours = dataclasses.replace(now, same=True)
    assert [options(s) for s in offered(finding("outlier"), ours)] == [
        ["--ranges", "percentile"],
        ["--ranges", "mse"],
        ["--ranges", "entropy"],
        ["--float-layer", "/f/conv"],
    ]
    bare = dataclasses.replace(ours, layers={})
    assert [options(s) for s in offered(finding("rounding"), bare)] == [["--correct-bias"]]
    assert [options(s) for s in offered(finding("outlier channel"), bare)] == [["--equalize"], ["--ranges", "mse"]]
    assert [s["before"] for s in offered(finding("outlier channel"), dataclasses.replace(bare, parts=None))[:2]] == [
        ("equalize",),
        ("equalize", "smooth"),
    ]
    assert offered(finding("per-tensor weights on depthwise"), bare) == []


@pytest.mark.parametrize(
    "change, told",
    [((0.0, -1.88, 1.88), "not significant"), ((2.0, 0.5, 3.5), "better"), ((-2.0, -3.5, -0.5), "worse")],
)
def test_a_change_is_called_better_only_where_its_interval_says_so(change, told):
    noise = lambda value: figure(SIGNAL_TO_NOISE, value, n=64, split="test")
    made = fixed.Fixed("q", True, True, "fixed/q.onnx", before=(noise(5.0),), after=(noise(9.0),), change=change)
    text = fixed._beside(made)
    assert f"], {told}, 64 samples of test" in text


@pytest.mark.parametrize("typed, told", [(True, "--ranges mse"), (False, 'ranges = "mse"')])
def test_a_fix_is_called_as_it_is_typed(typed, told):
    """As options of quantize for files, as a line of the recipe for a run."""
    tried = Tried(Fix({"ranges": "mse"}, ("outlier",)), State(None, 0.1), "helps")
    again = Tried(Fix({}), State(None, 0.1), "does not")
    made = fixed.Fixed("q", False, note="no", tried=(tried, again), now=State(None, 0.2), typed=typed)
    assert f"\n{told}  " in str(made) and ("with its defaults" in str(made)) == typed


@pytest.mark.parametrize("settings", [{"ranges": "mse"}, {"float_layers": ("first",)}])
def test_what_makes_a_fixed_file_again_times_nothing(settings, tmp_path, monkeypatch):
    """Else times of another moment may put layers into float, and the file is another one."""
    given, target = SimpleNamespace(words=list), SimpleNamespace(name="host")
    source = SimpleNamespace(model=tmp_path / "net.onnx", samples=None, target=target, given=given)
    monkeypatch.setattr(requantize, "_file", lambda *given: (SimpleNamespace(samples=64), None))
    way = requantize._from_files(SimpleNamespace(labels=None, int8_file=tmp_path / "q.onnx"), source)
    assert ("--slower-int8" in way.lasting(settings)) == ("float_layers" not in settings)


def test_a_sum_with_a_stored_number_is_one_in_files_of_others(tmp_path):
    """onnxruntime's quantizer writes such a sum in integers, as edgekd writes a hard sigmoid."""
    rng = np.random.default_rng(0)
    stored = {"w": rng.normal(size=(8, 3, 3, 3)), "c": rng.normal(size=(1, 8, 1, 1)), "v": rng.normal(size=(8, 4))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "c"], ["d"], name="sum"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="last"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in (("x", ["n", 3, 8, 8]), ("y", ["n", 4]))]
    weights = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in stored.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    x = rng.normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", inputs=x)

    class Reader(CalibrationDataReader):
        rows = iter(x)

        def get_next(self):
            row = next(self.rows, None)
            return None if row is None else {"x": row[None]}

    quantize_static(tmp_path / "net.onnx", tmp_path / "q.onnx", Reader(), quant_format=QuantFormat.QDQ)
    found = pair(onnx.load(tmp_path / "net.onnx"), onnx.load(tmp_path / "q.onnx"))
    assert {"Conv", "Add", "MatMul"} <= {layer.kind for layer in found.layers}
