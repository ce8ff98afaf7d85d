"""Bytes in, channels last, class indices out, preprocessing in the first layer: exact, and checked."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from edgekd import cli
from edgekd.errors import RunFailed, UsageError
from edgekd.quantization.onnx_graph import convert, fold_preprocess, interface, normalize

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(pads=(1, 1, 1, 1), group=1, bias=True, first="Conv"):
    """[n, 3, 8, 8] -> scores [n, 5]."""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.normal(size=(6, 3 // group, 3, 3)), "b": rng.normal(size=6), "v": rng.normal(size=(6, 5))}
    nodes = [
        h.make_node("Conv", ["a" if first != "Conv" else "x", "w", *(["b"] if bias else [])], ["c"], name="conv",
                    pads=list(pads), group=group),
        h.make_node("Relu", ["c"], ["r"]),
        h.make_node("GlobalAveragePool", ["r"], ["p"]),
        h.make_node("Flatten", ["p"], ["f"]),
        h.make_node("MatMul", ["f", "v"], ["y"], name="fc"),
    ]  # fmt: skip
    if first != "Conv":
        nodes.insert(0, h.make_node(first, ["x"], ["a"], name="before"))
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, ["n", 3, 8, 8])],
        [h.make_tensor_value_info("y", T.FLOAT, ["n", 5])],
        [nh.from_array(a.astype(np.float32), n) for n, a in tensors.items()],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)


def answers(model, **feed):
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


def pixels(count=16):
    return np.random.default_rng(1).integers(0, 256, (count, 3, 8, 8)).astype(np.float32)


def normal(p, mean=MEAN, deviation=DEVIATION):
    column = lambda v: np.array(v, np.float64).reshape(-1, 1, 1)
    return ((p / 255 - column(mean)) / column(deviation)).astype(np.float32)


def test_a_weight_by_hand():
    """x = (p / 255 - 0.5) / 0.25: a 1 x 1 convolution 2 x + 1 is 8 / 255 (p - 128) + 1 + 8 * 128 / 255 - 4."""
    node = h.make_node("Conv", ["x", "w", "b"], ["y"])
    value = lambda n: h.make_tensor_value_info(n, T.FLOAT, ["n", 1, 1, 1])
    tensors = [nh.from_array(np.full(s, v, np.float32), n) for n, s, v in (("w", (1, 1, 1, 1), 2), ("b", 1, 1))]
    graph = h.make_graph([node], "g", [value("x")], [value("y")], tensors)
    made = fold_preprocess.fold(h.make_model(graph, ir_version=9), 1 / 255, [0.5], [0.25])
    weight, bias = (nh.to_array(i).ravel()[0] for i in made.model.graph.initializer)
    assert made.zero_point == 128 and made.value == made.image == "x" and made.range == (-128.0, 127.0)
    assert weight == np.float32(8 / 255) and bias == np.float32(1 + 8 * 128 / 255 - 4)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"group": 3}, {"pads": (0, 0, 0, 0)}, {"pads": (0, 1, 2, 0)}])
def test_the_folded_file_answers_pixels_as_the_float_file_normalized_ones(options):
    model, p = normalize.normalized(network(**options)), pixels()
    made = fold_preprocess.fold(model, 1 / 255, MEAN, DEVIATION)
    wanted, found = answers(model, x=normal(p)), answers(made.model, x=p - made.zero_point)
    assert ("Pad" in [n.op_type for n in made.model.graph.node]) == any(options.get("pads", (1,)))
    # the padding is rounded to whole pixels: at most half of one, 0.5 / 255 / 0.224 of a deviation
    atol = 0.05 if any(options.get("pads", (1,))) else 1e-5
    assert np.allclose(found, wanted, rtol=1e-5, atol=atol * np.abs(wanted).max())


def test_padding_that_is_whole_pixels_is_exact():
    model, p, mean = normalize.normalized(network()), pixels(), [10 / 255, 20 / 255, 30 / 255]
    made = fold_preprocess.fold(model, 1 / 255, mean, [0.5])
    wanted = answers(model, x=normal(p, mean, [0.5]))
    assert np.allclose(answers(made.model, x=p - made.zero_point), wanted, rtol=1e-4, atol=1e-4)
    assert made.zero_point == 20 and not made.rounded
    assert fold_preprocess.fold(model, 1 / 255, MEAN, DEVIATION).rounded
    # one number for all channels, which pads with 128 for 127.5
    assert fold_preprocess.fold(model, 1 / 255, [0.5], [0.5]).rounded
    assert not fold_preprocess.fold(normalize.normalized(network(pads=(0, 0, 0, 0))), 1 / 255, [0.5], [0.5]).rounded


def quantized(mean=MEAN, deviation=DEVIATION, **options):
    folded = fold_preprocess.fold(normalize.normalized(network(**options)), 1 / 255, mean, deviation)
    less = pixels(64) - folded.zero_point
    return folded, convert.quantize(folded.model, {"x": less}, fixed={folded.value: folded.range}).model, less


def test_bytes_are_the_pixels(tmp_path):
    folded, model, less = quantized()
    made, form = interface.dressed(model, uint8=True, nhwc=True, argmax=True, pixels={"x": folded.zero_point})
    assert form.bytes == {"x": interface.Bytes(1.0, folded.zero_point)} and form.last == ("x",)
    seen = np.moveaxis(pixels(64), 1, -1).astype(np.uint8)
    assert np.array_equal(interface.taken(form, {"x": less})["x"], seen)
    found = answers(made, x=seen)
    assert found.dtype == np.int64 and np.array_equal(found, answers(model, x=less).argmax(1))
    interface.same(model, made, form, {"x": less}, "file")
    kinds = [n.op_type for n in made.graph.node]
    assert kinds.count("QuantizeLinear") == [n.op_type for n in model.graph.node].count("QuantizeLinear") - 1
    shown = made.graph.input[0].type.tensor_type
    assert shown.elem_type == T.UINT8 and [d.dim_value or d.dim_param for d in shown.shape.dim] == ["n", 8, 8, 3]
    (told,) = [p.value for p in made.metadata_props if p.key == "edgekd.input.x"]
    assert told == f"scale 1.0 zero_point {folded.zero_point}"


def test_float_pixels():
    folded, model, less = quantized()
    made, form = interface.dressed(model, pixels={"x": folded.zero_point})
    assert np.array_equal(answers(made, x=pixels(64)), answers(model, x=less))
    interface.same(model, made, form, {"x": less}, "file")


def test_bytes_without_folding_have_the_scale_of_the_file():
    x = normal(pixels(64))
    model = convert.quantize(network(), {"x": x}).model
    made, form = interface.dressed(model, uint8=True)
    one = form.bytes["x"]
    steps = np.clip(np.rint(x / np.float32(one.scale)) + one.zero_point, 0, 255).astype(np.uint8)
    assert np.array_equal(answers(made, x=steps), answers(model, x=x))
    interface.same(model, made, form, {"x": x}, "file")


def test_bytes_where_float_layers_read_pixels():
    folded = fold_preprocess.fold(normalize.normalized(network(pads=(0, 0, 0, 0))), 1 / 255, MEAN, DEVIATION)
    made, form = interface.dressed(folded.model, uint8=True, pixels={"x": folded.zero_point})
    p = pixels()
    assert np.allclose(answers(made, x=p.astype(np.uint8)), answers(folded.model, x=p - folded.zero_point), atol=1e-5)
    assert [n.op_type for n in made.graph.node][:2] == ["Cast", "Sub"]
    with pytest.raises(UsageError, match="x is read by Conv.c. in float"):
        interface.dressed(folded.model, uint8=True)


def test_a_file_that_answers_otherwise_is_not_delivered():
    _, model, less = quantized()
    made, form = interface.dressed(model, argmax=True)
    bias = next(i for i in made.graph.initializer if i.name == "v.q")
    bias.CopyFrom(nh.from_array(nh.to_array(bias)[:, ::-1].copy(), bias.name))
    with pytest.raises(RunFailed, match="output y is not what it was"):
        interface.same(model, made, form, {"x": less}, "file")


@pytest.mark.parametrize(
    "mean, options, told",
    [
        ((0.5, 0.5), {}, "has numbers for 2 channels, and x has 3"),
        (MEAN, {"first": "Sigmoid"}, "x is read by Sigmoid"),
        ((-0.5,) * 2 + (0.1,), {}, "pads with zeros, which are the pixels -128"),
    ],
)
def test_what_can_not_be_folded_is_told(mean, options, told):
    with pytest.raises(UsageError, match=told):
        fold_preprocess.fold(normalize.normalized(network(**options)), 1 / 255, mean, [1.0])


@pytest.mark.parametrize(
    "where, told", [("output", "x is an output too"), ("none", "no layer reads x"), ("if", "subgraph")]
)
def test_an_image_that_no_convolution_alone_reads_can_not_be_folded(where, told):
    model = network()
    if where == "output":
        model.graph.output.append(model.graph.input[0])
    elif where == "none":
        model.graph.node[0].input[0] = "k"
        model.graph.initializer.append(nh.from_array(np.ones((1, 3, 8, 8), np.float32), "k"))
    else:
        one = h.make_graph([h.make_node("Relu", ["x"], ["i"])], "b", [], [h.make_tensor_value_info("i", T.FLOAT, None)])
        two = h.make_graph([h.make_node("Abs", ["x"], ["j"])], "b", [], [h.make_tensor_value_info("j", T.FLOAT, None)])
        model.graph.input.append(h.make_tensor_value_info("yes", T.BOOL, []))
        model.graph.node.append(h.make_node("If", ["yes"], ["z"], then_branch=one, else_branch=two))
        model.graph.output.append(h.make_tensor_value_info("z", T.FLOAT, None))
    with pytest.raises(UsageError, match=told):
        fold_preprocess.fold(model, 1 / 255, [0.5], [0.5])


def test_what_there_is_not_can_not_change():
    node = h.make_node("Cast", ["x"], ["y"], to=T.INT64)
    value = lambda n, t: h.make_tensor_value_info(n, t, ["n", 3])
    model = h.make_model(h.make_graph([node], "g", [value("x", T.INT32)], [value("y", T.INT64)]), ir_version=9)
    for option, told in (
        ("uint8", "no input takes 32-bit floats"),
        ("nhwc", "is an image"),
        ("argmax", "no output is scores"),
    ):
        with pytest.raises(UsageError, match=told):
            interface.dressed(model, **{option: True})


# ---------------------------------------------------------------- as options of quantize


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The network, and 40 images in folders by class."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), tmp_path / "net.onnx")
    for i, p in enumerate(pixels(40).astype(np.uint8)):
        (tmp_path / "photos" / str(i % 5)).mkdir(parents=True, exist_ok=True)
        image.fromarray(p.transpose(1, 2, 0)).save(tmp_path / "photos" / str(i % 5) / f"{i:02d}.png")
    return tmp_path


def say(capsys, *words):
    code = cli.run([*words, "--quiet"])
    return code, *capsys.readouterr()


IMAGES = ["quantize", "net.onnx", "--data", "photos", "--preprocess", "imagenet"]


def test_a_file_for_a_camera(place, capsys):
    options = ["--fold-preprocess", "imagenet", "--input", "uint8", "--layout", "nhwc", "--argmax"]
    code, out, err = say(capsys, *IMAGES, "--out", "camera.onnx", *options, "--slower-int8")
    assert code == 0, err
    assert "input x: bytes [n, 8, 8, 3], the pixels, RGB\n" in out and "output y: class indices [n]" in out
    assert "2 of 2 layers in int8" in out and "preprocessing is folded into the first layer" in out
    assert "dB beside the float file, as the pixels that pad the image are rounded to whole ones" in out
    # the same file that takes pixels as floats, and answers scores
    code, out, err = say(capsys, *IMAGES, "--out", "scores.onnx", *options[:2], "--slower-int8")
    assert code == 0 and "input x: floats [n, 3, 8, 8], the pixels, 0 to 255, RGB\n" in out, err
    seen = pixels(40).astype(np.uint8)
    camera = answers(onnx.load("camera.onnx"), x=np.moveaxis(seen, 1, -1))
    assert np.array_equal(camera, answers(onnx.load("scores.onnx"), x=pixels(40)).argmax(1))
    code, out, _ = say(capsys, "try", "net.onnx", "camera.onnx", "photos/0/00.png", "--preprocess", "imagenet")
    assert code == 0 and "1 of 1 answers are the same" in out


def test_the_changed_file_names_its_float_layers_too(place, capsys):
    options = ["--fold-preprocess", "imagenet", "--input", "uint8", "--float-layer", "conv"]
    assert say(capsys, *IMAGES, "--out", "camera.onnx", *options)[0] == 0
    kinds = [n.op_type for n in onnx.load("camera.onnx").graph.node]
    assert "QuantizeLinear" in kinds and kinds[:2] == ["Cast", "Sub"]
    code, _, _ = say(capsys, *IMAGES, "--out", "again.onnx", *options[:4], "--like", "camera.onnx")
    assert code == 0 and (place / "again.onnx").read_bytes() == (place / "camera.onnx").read_bytes()


def test_what_a_file_has_not_is_told_before_anything_runs(place, capsys):
    (place / "words.json").write_text('{"mean": "x"}')
    code, _, err = say(capsys, *IMAGES, "--out", "a.onnx", "--fold-preprocess", "words.json", "--ranges", "minmix")
    assert code == 2 and "mean" in err and "minmix" in err
    code, _, err = say(capsys, *IMAGES, "--out", "a.onnx", "--fold-preprocess", "unit")
    assert code == 2 and "is no image of bytes that was normalized so" in err and not (place / "a.onnx").exists()


def test_nothing_is_said_of_padding_that_there_is_not(place, capsys):
    onnx.save(network(pads=(0, 0, 0, 0)), "net.onnx")
    code, out, _ = say(capsys, *IMAGES, "--out", "a.onnx", "--fold-preprocess", "imagenet", "--slower-int8")
    assert code == 0 and "dB beside the float file\n" in out and "rounded" not in out


def test_all_that_is_wrong_with_inputs_and_outputs_at_once(place, capsys):
    node = h.make_node("Cast", ["x"], ["y"], to=T.INT64)
    value = lambda n, t: h.make_tensor_value_info(n, t, ["n", 3])
    graph = h.make_graph([node], "g", [value("x", T.INT32)], [value("y", T.INT64)])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), "cast.onnx")
    np.savez("d.npz", x=np.zeros((40, 3), np.int32))
    options = ["--input", "uint8", "--layout", "nhwc", "--argmax", "--fold-preprocess", "imagenat"]
    code, _, err = say(capsys, "quantize", "cast.onnx", "--data", "d.npz", "--out", "a.onnx", *options)
    assert code == 2 and "did you mean `imagenet`?" in err
    assert all(f"error: {told}" in err for told in ("--input uint8: no", "--layout nhwc: no", "--argmax: no"))


def test_a_file_with_its_weights_in_a_second_one(place, capsys, monkeypatch):
    """As if one file could hold no more than some bytes."""
    from edgekd.onnx_files import external

    assert say(capsys, *IMAGES, "--out", "one.onnx", "--input", "uint8", "--slower-int8")[0] == 0
    monkeypatch.setattr(external, "LIMIT", 2**20 + 100)
    monkeypatch.setattr(external, "SMALL", 64)
    code, _, err = say(capsys, *IMAGES, "--out", "two.onnx", "--input", "uint8", "--slower-int8")
    assert code == 0, err
    assert sorted(f.name for f in place.glob("two*")) == ["two.onnx", "two.onnx.data"]
    run = lambda name: onnxruntime.InferenceSession(name).run(None, {"x": pixels(4).astype(np.uint8)})[0]
    assert np.array_equal(run("one.onnx"), run("two.onnx"))


def test_a_changed_file_that_onnxruntime_can_not_run(place, capsys, monkeypatch):
    real = interface.dressed

    def dressed(model, **options):
        made, form = real(model, **options)
        made.graph.node[0].input[0] = "nowhere"
        return made, form

    monkeypatch.setattr(interface, "dressed", dressed)
    code, _, err = say(capsys, *IMAGES, "--out", "a.onnx", "--input", "uint8", "--slower-int8")
    assert code == 6 and "error: a.onnx: onnxruntime can't run it with these inputs and outputs: " in err
    assert not (place / "a.onnx").exists()


def test_states_of_a_streaming_model_keep_their_form(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    value = lambda n, size: h.make_tensor_value_info(n, T.FLOAT, [1, size])
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("MatMul", ["h", "r"], ["b"]),
        h.make_node("Add", ["a", "b"], ["g"]),
        h.make_node("Tanh", ["g"], ["hn"]),
    ]
    nodes.append(h.make_node("MatMul", ["hn", "u"], ["y"]))
    shapes = {"w": (8, 16), "r": (16, 16), "u": (16, 5)}
    tensors = [nh.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    graph = h.make_graph(nodes, "g", [value("x", 8), value("h", 16)], [value("y", 5), value("hn", 16)], tensors)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), "stream.onnx")
    np.savez("s.npz", x=rng.normal(size=(8, 8, 8)).astype(np.float32))
    words = ["quantize", "stream.onnx", "--data", "s.npz", "--state", "hn=h", "--out", "o.onnx", "--slower-int8"]
    code, _, err = say(capsys, *words, "--input", "uint8", "--argmax")
    assert code == 0, err
    made = onnx.load("o.onnx").graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*made.input, *made.output)}
    assert kinds == {"x": T.UINT8, "h": T.FLOAT, "y": T.INT64, "hn": T.FLOAT}
