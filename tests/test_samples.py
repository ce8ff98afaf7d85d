"""Samples of other people's models: axes, folders, images, sounds, sequences, and the one rule for values."""

import json
import re
import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from edgekd import cli
from edgekd.errors import UsageError
from edgekd.hosts import local
from edgekd.measure import jobs, opening, session
from edgekd.probes import static
from edgekd.run.schemas import schema
from edgekd.samples import media, preprocess, rows, sounds, split
from edgekd.samples.generated import random
from edgekd.samples.read import read, read_sequences
from edgekd.samples.signature import Signature, Tensor, of_model
from edgekd.samples.source import Source
from edgekd.verbs.compare import compare
from edgekd.verbs.profile import profile

F, I = np.dtype("float32"), np.dtype("int64")  # noqa: E741
TINY = session.Effort(processes=6, most=6, warmup_s=0.0, runs=5, steady_s=0.005, memory=2, warmup_cap_s=0.02, cap_s=0.2)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def file(path, nodes, inputs, outputs, constants):
    """An ONNX file: inputs and outputs {name: shape or (type, shape)}."""
    value = lambda n, s: h.make_tensor_value_info(n, *(s if isinstance(s, tuple) else (T.FLOAT, s)))
    graph = h.make_graph(
        nodes,
        "g",
        [value(n, s) for n, s in inputs.items()],
        [value(n, s) for n, s in outputs.items()],
        [nh.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return path


def cell(path, batch="n", along=1):
    """Adds its state [1, n, 4] (`along` 1) or [n, 4] to a product of what it takes, [n, 8]."""
    shape = [1, batch, 4] if along else [batch, 4]
    nodes = [h.make_node("Gemm", ["x", "w"], ["a"], name="in"), h.make_node("Gemm", ["flat", "r"], ["b"], name="back")]
    nodes = [h.make_node("Reshape", ["h", "two"], ["flat"]), *nodes, h.make_node("Add", ["a", "b"], ["c"])]
    nodes += [h.make_node("Tanh", ["c"], ["t"]), h.make_node("Reshape", ["t", "back to"], ["hn"])]
    nodes.append(h.make_node("Gemm", ["t", "v"], ["y"], name="out"))
    rows_of = [1, -1, 4] if along else [-1, 4]
    constants = {"w": numbers(8, 4), "r": numbers(4, 4, seed=1) / 2, "v": numbers(4, 3, seed=2)}
    constants |= {"two": np.array([-1, 4]), "back to": np.array(rows_of)}
    return file(path, nodes, {"x": [batch, 8], "h": shape}, {"y": [batch, 3], "hn": shape}, constants)


def classifier(path, shape, batch="n"):
    """Three classes of images or sounds [n, ...]."""
    size = int(np.prod([d for d in shape if isinstance(d, int)]))
    nodes = [h.make_node("Flatten", ["x"], ["f"]), h.make_node("Gemm", ["f", "w"], ["y"], name="fc")]
    return file(path, nodes, {"x": [batch, *shape]}, {"y": [batch, 3]}, {"w": numbers(size, 3)})


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quick", "standard"):
        monkeypatch.setitem(jobs.EFFORTS, name, TINY)


def run(capsys, *words):
    code = cli.run([*map(str, words), "--quiet"])
    told = capsys.readouterr()
    return code, told.out + told.err


def signature(**dims):
    return Signature({name: Tensor(I if name.startswith("i") else F, tuple(d)) for name, d in dims.items()})


class TestAxes:
    @pytest.mark.parametrize(
        "dims, dim",
        [
            ({"x": ["n", 8], "h": [1, "n", 4]}, "n"),
            ({"ids": ["batch", "seq"], "mask": ["batch", "seq"]}, "batch"),
            ({"ids": ["b", "seq"], "mask": ["b", "seq"]}, "b"),
            ({"x": ["seq", "batch", 8], "mask": ["batch", "seq"]}, "batch"),
            ({"x": ["n", 8], "e": ["m"]}, None),
            ({"x": [1, 8], "h": [1, 1, 4]}, None),
        ],
    )
    def test_the_symbolic_dimension_that_inputs_share(self, dims, dim):
        assert signature(**dims).sample_dim() == dim

    @pytest.mark.parametrize(
        "dims, shapes, axes, size",
        [
            ({"x": ["n", 8], "h": [1, "n", 4]}, {"x": (6, 8), "h": (1, 6, 4)}, {"x": 0, "h": 1}, None),
            ({"x": ["n", 8], "h": [1, "n", 4]}, {"x": (6, 8), "h": (6, 1, 4)}, {"x": 0, "h": 1}, None),
            ({"x": [1, 8], "h": [2, 1, 4]}, {"x": (6, 8), "h": (2, 6, 4)}, {"x": 0, "h": 1}, 1),
            ({"x": [1, 8], "h": [2, 1, 4]}, {"x": (6, 8), "h": (6, 2, 1, 4)}, {"x": 0, "h": "whole"}, None),
            ({"x": ["n", 8], "s": []}, {"x": (6, 8), "s": ()}, {"x": 0, "s": None}, None),
            ({"x": ["n", 8], "s": []}, {"x": (6, 8), "s": (6,)}, {"x": 0, "s": "whole"}, None),
            ({"x": ["n", 8], "a": [16, 4]}, {"x": (6, 8), "a": (16, 4)}, {"x": 0, "a": None}, None),
            ({"x": ["n", 8], "e": ["m"]}, {"x": (6, 8), "e": (9,)}, {"x": "whole", "e": "whole"}, None),
            ({"x": ["n", 8], "e": ["m"]}, {"x": (6, 8), "e": (6,)}, {"x": 0, "e": 0}, None),
        ],
    )
    def test_samples_are_found_and_fed_as_the_model_takes_them(self, dims, shapes, axes, size):
        arrays = {name: numbers(*shape) for name, shape in shapes.items()}
        np.savez("d.npz", **arrays)
        given = read(Source("d.npz"), signature(**dims))
        found = given.samples
        assert dict(found.axes) == axes and found.size == size and len(found) == given.total
        assert len(found) == (1 if axes["x"] == "whole" else 6)
        for number, feed in enumerate(found.take(slice(0, 2)).batches(1)):
            for name, array in arrays.items():
                axis, array = axes[name], array[number] if array.ndim > len(dims[name]) else array
                where = array.shape.index(6) if 6 in array.shape else None
                if isinstance(axis, int):  # the model's axis, whichever is the data's
                    array = np.expand_dims(np.take(array, number, where), axis)
                assert np.array_equal(feed[name], array), name

    @pytest.mark.parametrize(
        "name, given, option, along",
        [
            ("N", (11, 40, 8), {}, 1),
            ("N", (11, 40, 8), {"x": 1}, 1),
            ("N", (22, 5, 8), {}, 0),
            ("N", (11, 40, 8), {"x": 0}, 0),
            ("seq_len", (11, 40, 8), {}, 0),
        ],
    )
    def test_the_only_open_axis_is_that_of_the_samples(self, name, given, option, along):
        path = file(Path("m.onnx"), [h.make_node("Relu", ["x"], ["y"])], {"x": [11, name, 8]}, {"y": [11, name, 8]}, {})
        x = numbers(*given)
        np.savez("d.npz", x=x)
        found = read(Source("d.npz", option), of_model(onnx.load(path))).samples
        assert found.axes == {"x": along} and len(found) == given[along] and found.size == (None if along else 11)
        answered = jobs.score(path, found, folder=Path("score"))["y"]
        assert np.array_equal(answered, np.moveaxis(np.maximum(x, 0), along, 0))

    def test_an_open_axis_that_outputs_lack_is_none_of_samples(self):
        np.savez("d.npz", x=numbers(8, 5, 4))
        held = Signature({"x": Tensor(F, (8, "N", 4))}, {"y": Tensor(F, (8, 3))})
        assert read(Source("d.npz"), held).samples.axes == {"x": 0}

    @pytest.mark.parametrize("option", [(), ("--axis", "k=none")])
    @pytest.mark.parametrize("value", [np.float32(2), np.full(1, 2, np.float32)])
    def test_a_scalar_is_given_once(self, capsys, option, value):
        nodes = [h.make_node("Gemm", ["x", "w"], ["a"], name="fc"), h.make_node("Mul", ["a", "k"], ["y"])]
        path = file(Path("m.onnx"), nodes, {"x": ["n", 8], "k": []}, {"y": ["n", 3]}, {"w": numbers(8, 3)})
        np.savez("d.npz", x=numbers(40, 8), k=value)
        assert read(Source("d.npz"), of_model(onnx.load(path))).samples.feed()["k"].shape == ()
        words = ("--data", "d.npz", *option)
        code, told = run(capsys, "quantize", path, *words, "--slower-int8", "--out", "int8.onnx")
        assert code == 0 and "1 of 1 layers in int8" in told
        assert run(capsys, "explain", "int8.onnx", "--float", path, *words)[0] == 0

    def test_axes_by_name_go_before(self, capsys):
        np.savez("d.npz", x=numbers(6, 8), e=numbers(6, 8))
        dims = signature(x=["n", 8], e=["n", 8])
        found = read(Source("d.npz", {"e": None}), Signature({**dims.inputs, "e": Tensor(F, ("m", 8))})).samples
        assert found.axes == {"x": 0, "e": None} and len(found) == 6
        assert found.take([2, 3]).feed()["e"].shape == (6, 8)
        with pytest.raises(UsageError, match=r"z is not an input(.|\n)*e has 2 axes, and none is 2"):
            read(Source("d.npz", {"z": 0, "e": 2}), dims)
        code, told = run(capsys, "profile", "m.onnx", "--axis", "x")
        assert code == 2 and "is not NAME=K or NAME=none" in told
        code, told = run(capsys, "profile", "m.onnx", "--axis", "x=0", "--axis", "x=1")
        assert code == 2 and "x is given twice" in told

    def test_inputs_that_share_a_dimension_have_as_many_samples(self):
        np.savez("d.npz", x=numbers(6, 8), h=numbers(1, 5, 4))
        with pytest.raises(UsageError, match=r"same number of rows, at least one \(x: 6, h: 5\)(.|\n)*--axis"):
            read(Source("d.npz"), signature(x=["n", 8], h=[1, "n", 4]))

    def test_random_samples_lie_along_the_same_axis(self):
        found = random(signature(x=["n", 8], h=[2, "n", 4], s=[]))
        assert {n: a.shape for n, a in found.feed().items()} == {"x": (16, 8), "h": (2, 16, 4), "s": ()}

    def test_a_state_along_the_second_axis_is_answered_as_by_onnxruntime(self):
        path = cell(Path("m.onnx"))
        np.savez("d.npz", x=numbers(150, 8), h=numbers(1, 150, 4))
        found = read(Source("d.npz"), of_model(onnx.load(path))).samples
        answered = jobs.score(path, found, folder=Path("score"))
        y, hn = onnxruntime.InferenceSession(path).run(["y", "hn"], {"x": numbers(150, 8), "h": numbers(1, 150, 4)})
        assert np.allclose(answered["y"], y, atol=1e-6) and np.allclose(answered["hn"], hn[0][:, None], atol=1e-6)

    def test_more_at_once_than_memory_holds(self, capsys):
        path = file(Path("m.onnx"), [h.make_node("Relu", ["x"], ["y"])], {"x": [2**40, 8]}, {"y": [2**40, 8]}, {})
        np.savez("d.npz", x=numbers(200, 8))
        for words in (["quantize", path, "--data", "d.npz", "--out", "i.onnx"], ["profile", path, "--data", "d.npz"]):
            code, told = run(capsys, *words)
            assert code == 2 and "d.npz: has 200 samples, the model takes 1099511627776 at once" in told
        code, told = run(capsys, "profile", path)
        assert code == 2 and "input x: has the shape [1099511627776, 8]" in told


class TestFolders:
    def graphs(self):
        """Files of one graph each: features of 3 to 12 nodes, and the nodes that edges lead to."""
        Path("graphs").mkdir()
        for i in range(40):
            n = 3 + i % 10
            np.savez(f"graphs/{i:02}.npz", x=numbers(n, 8, seed=i), i=np.arange(2 * n) % n)
        nodes = [h.make_node("Gemm", ["x", "w"], ["t"], name="fc"), h.make_node("Gather", ["t", "i"], ["y"])]
        return file(
            Path("m.onnx"), nodes, {"x": ["n", 8], "i": (T.INT64, ["m"])}, {"y": ["m", 4]}, {"w": numbers(8, 4)}
        )

    def test_a_file_per_sample_of_different_lengths(self, capsys):
        path = self.graphs()
        found = read(Source("graphs"), of_model(onnx.load(path))).samples
        assert found.axes == {"x": "whole", "i": "whole"} and len(found) == 40 and found.alone
        answered = jobs.score(path, found, folder=Path("score"))["y"]
        session = onnxruntime.InferenceSession(path)
        assert np.allclose(answered, np.concatenate([session.run(None, f)[0] for f in found.batches(7)]), atol=1e-6)
        code, told = run(capsys, "quantize", path, "--data", "graphs", "--out", "int8.onnx")
        assert code == 0 and "1 of 1 layers in int8" in told and "40 calibration samples" in told
        assert " dB" in told and "greatest value the same in" in told
        code, told = run(capsys, "compare", path, "int8.onnx", "--data", "graphs")
        assert code in (0, 3) and "B / A" in told
        code, told = run(capsys, "explain", "int8.onnx", "--float", path, "--data", "graphs")
        assert code == 0 and "samples of validation" in told

    def test_files_without_the_axis_of_samples_are_stacked(self):
        Path("d").mkdir()
        for i in range(5):
            np.savez(f"d/{i}.npz", inputs=numbers(8, seed=i), labels=i % 3)
        found = read(Source("d"), signature(x=["n", 8])).samples
        assert found.axes == {"x": 0} and found.feed()["x"].shape == (5, 8) and found.labels.tolist() == [0, 1, 2, 0, 1]
        assert np.array_equal(found.arrays["x"][3], numbers(8, seed=3))

    def test_what_is_wrong_is_told_with_the_file(self):
        path = self.graphs()
        np.savez("graphs/07.npz", x=numbers(4, 9), i=np.arange(4))
        with pytest.raises(UsageError, match=r"07.npz: x has the shape \[4, 9\], the model takes \[n, 8\]"):
            read(Source("graphs"), of_model(onnx.load(path)))
        np.savez("graphs/07.npz", x=numbers(4, 8))
        with pytest.raises(UsageError, match="07.npz: has x, and 00.npz has x, i"):
            read(Source("graphs"), of_model(onnx.load(path)))
        bad = numbers(4, 8)
        bad[2, 1] = np.nan
        np.savez("graphs/07.npz", x=bad, i=np.arange(4))
        with pytest.raises(UsageError, match=r"not finite, in 1 of 40 samples; the first is 07.npz"):
            read(Source("graphs"), of_model(onnx.load(path)))
        Path("graphs/a.png").write_bytes(b"")
        with pytest.raises(UsageError, match="several kinds: 1 images, 40 archives"):
            read(Source("graphs"), of_model(onnx.load(path)))
        with pytest.raises(UsageError, match="empty: holds no samples"):
            Path("empty").mkdir()
            read(Source("empty"), of_model(onnx.load(path)))


def pictures(folder, count=6, size=(10, 8), classes=("cat", "dog", "eel")):
    """Small .png files of random colours, in a folder per class."""
    from PIL import Image

    for i in range(count):
        below = Path(folder) / classes[i % len(classes)]
        below.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(below / f"{i}.png")


class TestImages:
    def test_unit_and_imagenet_and_the_layouts(self):
        pictures("d", size=(8, 8))
        dims = {"nchw": ["n", 3, 8, 8], "nhwc": ["n", 8, 8, 3]}
        found = {k: read(Source("d", preprocess="unit"), signature(x=d)).samples for k, d in dims.items()}
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.float32)  # the first of class 0
        assert np.allclose(found["nhwc"].arrays["x"][0], pixels / 255, atol=1e-6)
        assert np.array_equal(found["nchw"].arrays["x"], found["nhwc"].arrays["x"].transpose(0, 3, 1, 2))
        assert found["nchw"].labels.tolist() == [0, 0, 1, 1, 2, 2] and found["nchw"].names[1] == "cat/3.png"

    def test_imagenet_is_what_torchvision_computes(self):
        from PIL import Image

        pictures("d", 1, (70, 50))
        found = read(Source("d", preprocess="imagenet"), signature(x=["n", 3, 28, 28])).samples.arrays["x"][0]
        opened = Image.open("d/cat/0.png").resize((32, int(70 * 32 / 50)), Image.Resampling.BILINEAR)
        pixels = np.asarray(opened, np.float32)[round((44 - 28) / 2) :][:28, 2:30] / 255
        wanted = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        # the longer side is rounded, not cut off: up to a row beside
        assert found.shape == (3, 28, 28) and np.abs(found - wanted.transpose(2, 0, 1)).mean() < 0.35

    def test_a_file_says_how(self):
        pictures("d", 1, (8, 8))
        how = {"resize": [4, 4], "crop": 4, "scale": 1, "mean": [1, 2, 3], "deviation": [2], "order": "bgr"}
        Path("p.json").write_text(json.dumps({**how, "layout": "nhwc"}))
        found = read(Source("d", preprocess="p.json"), signature(x=["n", "h", "w", 3])).samples.arrays["x"][0]
        from PIL import Image

        pixels = np.asarray(Image.open("d/cat/0.png").resize((4, 4), Image.Resampling.BILINEAR), np.float32)[..., ::-1]
        assert np.allclose(found, (pixels - [1, 2, 3]) / 2)

    def test_integers_take_pixels_as_they_are(self):
        pictures("d", 2, (8, 8), ("a",))
        taken = Signature({"x": Tensor(np.dtype("uint8"), ("n", 8, 8, 3))})
        found = read(Source("d"), taken).samples
        assert found.arrays["x"].dtype == np.uint8
        assert np.array_equal(found.arrays["x"][1], np.random.default_rng(1).integers(0, 256, (8, 8, 3)))

    @pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
    def test_16_bits_are_the_range_of_8(self, ending):
        from PIL import Image

        Path("d").mkdir()
        grey = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
        Image.fromarray(grey).save(f"d/a.{ending}")
        found = read(Source("d", preprocess="unit"), signature(x=["n", 1, 8, 8])).samples.arrays["x"][0, 0]
        assert np.abs(found - grey / 65535).max() <= 0.5 / 255 + 1e-6

    def test_values_of_no_known_range_are_refused(self):
        from PIL import Image

        Path("d").mkdir()
        for kind in ("float32", "int32"):
            Image.fromarray(np.ones((8, 8), kind)).save(f"d/{kind}.tiff")
        with pytest.raises(UsageError) as caught:
            read(Source("d", preprocess="unit"), signature(x=["n", 3, 8, 8]))
        assert [p.place for p in caught.value.problems] == ["d/float32.tiff", "d/int32.tiff"]
        assert "holds floats, and" in str(caught.value) and "16 bits per channel" in str(caught.value)

    @pytest.mark.parametrize(
        "how, dims, part",
        [
            (None, ["n", 3, 8, 8], "--preprocess: is missing"),
            ("imagnet", ["n", 3, 8, 8], "did you mean `imagenet`"),
            ("none.json", ["n", 3, 8, 8], "none.json: can't be read"),
            ("bad.json", ["n", 3, 8, 8], "input should be greater than or equal to 1, not 0"),
            ("bad.json", ["n", 3, 8, 8], "unknown key"),
            ("unit", ["n", 3, "h", "w"], "leaves the size of images open"),
            ("unit", ["n", 5, 8, 8], "no image of 1 or 3 channels"),
            ("imagenet", ["n", 1, 8, 8], "for 3 channels, and the input x has 1"),
        ],
    )
    def test_what_is_missing_or_wrong(self, how, dims, part):
        pictures("d", 1)
        Path("bad.json").write_text('{"crop": 0, "men": [1]}')
        with pytest.raises(UsageError) as caught:
            read(Source("d", preprocess=how), signature(x=dims))
        assert part in str(caught.value)

    @pytest.mark.parametrize(
        "how, wanted",
        [
            ({"resize": 0}, ["resize: input should be greater than or equal to 1, not 0"]),
            ({"resize": True}, ["resize: input should be a valid integer or a list, not True"]),
            (
                {"crop": [0, "a"]},
                ["crop.0: input should be greater", "crop.1: input should be a valid integer, not 'a'"],
            ),
            ({"crop": [1]}, ["crop.1: is missing"]),
            ({"crop": [1, 2, 3]}, ["crop: must have at most 2 items, not [1, 2, 3]"]),
            ({"deviation": [0]}, ["deviation.0: input should be greater than 0, not 0"]),
            ({"mean": ["a"]}, ["mean.0: input should be a valid number, not 'a'"]),
            ({"mean": []}, ["mean: must have at least 1 item, not []"]),
            ({"scale": 0}, ["scale, or scale / deviation, is 0 or too large"]),
            ({"scale": 1e300}, ["scale, or scale / deviation, is 0 or too large"]),
            ({"deviation": [1, 1e-320]}, ["scale, or scale / deviation, is 0 or too large"]),
        ],
    )
    def test_settings_are_named_as_the_file_has_them(self, how, wanted):
        Path("p.json").write_text(json.dumps(how))
        with pytest.raises(UsageError) as caught:
            preprocess.load("p.json")
        problems = [str(p) for p in caught.value.problems]
        assert len(problems) == len(wanted), problems
        assert all(p.startswith(f"p.json: {w}") for p, w in zip(problems, wanted, strict=True)), problems

    def test_broken_images_are_named(self):
        pictures("d")
        for name in ("d/cat/0.png", "d/dog/1.png"):
            Path(name).write_bytes(Path(name).read_bytes()[:60])
        with pytest.raises(UsageError, match="0.png: can't be read as an image") as caught:
            read(Source("d", preprocess="unit"), signature(x=["n", 3, 8, 8]))
        assert len(caught.value.problems) == 2

    def test_without_pillow_the_extra_is_named(self, monkeypatch, capsys):
        pictures("d")
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        path = classifier(Path("m.onnx"), [3, 8, 8])
        code, told = run(capsys, "quantize", path, "--data", "d", "--preprocess", "unit", "--out", "i.onnx")
        assert code == 4 and 'pip install "edgekd[images]"' in told

    def test_quantize_and_profile_score_by_the_folders(self, capsys):
        pictures("d", 12, (8, 8))
        path = classifier(Path("m.onnx"), [3, 8, 8])
        code, told = run(capsys, "quantize", path, "--data", "d", "--preprocess", "unit", "--out", "i.onnx")
        assert code == 0 and "top1:" in told and "12 calibration samples" in told
        code, told = run(capsys, "profile", "i.onnx", "--data", "d", "--preprocess", "unit")
        assert code == 0 and "top1" in told

    def test_labels_are_numbers_where_all_folders_are(self):
        pictures("d", 3, (8, 8), ("2", "10", "0"))
        assert media.listed(Path("d")).labels.tolist() == [0, 10, 2]
        pictures("f", 2, (8, 8), ("7", "9" * 20))
        assert media.listed(Path("f")).labels.tolist() == [0, 1]  # 64 bits don't hold it
        pictures("e", 1, (8, 8), ("a",))
        (Path("e") / "a" / "0.png").rename(Path("e") / "0.png")
        assert media.listed(Path("e")).labels is None


def sound(path, values, rate=8000, width=2, channels=1):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        top = 2 ** (8 * width - 1)
        steps = np.clip(np.rint(np.asarray(values) * top), -top, top - 1).astype(np.int64)
        steps = steps + 128 if width == 1 else steps
        out.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in steps))


class TestSounds:
    @pytest.mark.parametrize("width", [1, 2, 3, 4])
    def test_values_of_every_width(self, width):
        values = np.array([0, 0.5, -0.5, 0.25, -1])
        sound("s.wav", values, width=width)
        found, rate = sounds.decoded(Path("s.wav"))
        assert rate == 8000 and np.allclose(found, values, atol=0.008 if width == 1 else 1e-4)

    def test_floats_and_several_channels(self):
        from scipy.io import wavfile

        wavfile.write("f.wav", 8000, np.float32([[0.5, 0.25], [-1, 0]]))
        assert sounds.decoded(Path("f.wav"))[0].tolist() == [0.375, -0.5]

    @pytest.mark.parametrize("width", [1, 2, 3, 4])
    @pytest.mark.filterwarnings("error")
    def test_the_extensible_form(self, width):
        """As Windows and recorders of more than two channels write it, with a chunk that holds no sound."""
        values = np.array([0, 0.5, -0.5, 0.25, -1, 0.125])
        sound("s.wav", values, width=width)
        data = Path("s.wav").read_bytes()[44 : 44 + 6 * width]
        guid = b"\x01\x00\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
        form = struct.pack("<HHIIHHHHI", 0xFFFE, 2, 8000, 16000 * width, 2 * width, 8 * width, 22, 8 * width, 3) + guid
        chunk = lambda name, body: name + struct.pack("<I", len(body)) + body
        body = b"WAVE" + chunk(b"fmt ", form) + chunk(b"odd ", b"1234") + chunk(b"data", data)
        Path("e.wav").write_bytes(chunk(b"RIFF", body))
        found, rate = sounds.decoded(Path("e.wav"))
        assert rate == 8000 and np.allclose(found, [0.25, -0.125, -0.4375], atol=0.01 if width == 1 else 1e-4)

    def test_no_channels(self):
        sound("s.wav", np.ones(8) / 2)
        raw = bytearray(Path("s.wav").read_bytes())
        raw[22:24] = b"\0\0"
        Path("s.wav").write_bytes(raw)
        with pytest.raises(UsageError, match="s.wav: can't be read as .wav: bad # of channels"):
            sounds.decoded(Path("s.wav"))

    def test_they_are_cut_or_filled_to_what_the_model_takes(self):
        sound("d/a.wav", np.linspace(0, 0.9, 10))
        sound("d/b.wav", np.ones(4) / 2)
        found = read(Source("d"), signature(x=["n", 1, 6])).samples
        assert found.arrays["x"].shape == (2, 1, 6) and found.labels is None
        assert np.allclose(found.arrays["x"][0, 0], np.linspace(0, 0.9, 10)[2:8], atol=1e-4)
        assert np.allclose(found.arrays["x"][1, 0], [0.5] * 4 + [0, 0], atol=1e-4)

    @pytest.mark.parametrize("how", [{"rate": 10**12}, {"length": 10**10}])
    def test_no_more_than_memory_holds(self, how):
        sound("d/a.wav", np.ones(10) / 2)
        Path("p.json").write_text(json.dumps(how))
        with pytest.raises(UsageError, match=f"p.json: {next(iter(how))}: input should be less than or equal to"):
            read(Source("d", preprocess="p.json"), signature(x=["n", 8]))

    def test_a_rate_in_a_file_that_makes_it_too_long(self):
        sound("d/a.wav", np.ones(1000) / 2, rate=1)
        Path("p.json").write_text('{"rate": 768000}')
        with pytest.raises(UsageError, match="a.wav: has a sample rate of 1 Hz: at 768000 Hz it is longer"):
            read(Source("d", preprocess="p.json"), signature(x=["n", 8]))

    def test_an_open_length_keeps_each(self):
        sound("d/a.wav", np.ones(10) / 2)
        sound("d/b.wav", np.ones(4) / 2)
        found = read(Source("d"), signature(x=["n", "length"])).samples
        assert [f["x"].shape for f in found.batches(8)] == [(1, 10), (1, 4)]

    def test_another_rate(self):
        sound("d/a.wav", np.sin(np.arange(800) / 20), rate=8000)
        Path("p.json").write_text('{"rate": 16000, "length": 1600}')
        found = read(Source("d", preprocess="p.json"), signature(x=["n", "length"])).samples.arrays["x"][0]
        assert found.shape == (1600,) and np.abs(found[200:1400] - np.sin(np.arange(1600) / 40)[200:1400]).max() < 0.02

    def test_what_is_wrong(self):
        sound("d/a.wav", np.ones(10) / 2)
        with pytest.raises(UsageError, match="a sound is"):
            read(Source("d"), signature(x=["n", 3, 8, 8]))
        with pytest.raises(UsageError, match="imagenet is for images"):
            read(Source("d", preprocess="imagenet"), signature(x=["n", 6]))
        for how in ({"mean": [0.1, 0.2, 0.3]}, {"deviation": [1, 2]}):
            Path("p.json").write_text(json.dumps(how))
            with pytest.raises(UsageError, match="--preprocess: `mean` and `deviation` are for . channels, and the"):
                read(Source("d", preprocess="p.json"), signature(x=["n", 6]))
        Path("d/a.wav").write_bytes(b"RIFF")
        with pytest.raises(UsageError, match="a.wav: can't be read as .wav"):
            read(Source("d"), signature(x=["n", 6]))


def bad(value, *shape, at=3):
    x = numbers(*shape)
    x[at, 1] = value
    return x


VALUES = {
    "nan": ({"inputs": bad(np.nan, 40, 8)}, "not finite, in 1 of 40 samples; the first is sample 3"),
    "inf": ({"inputs": bad(np.inf, 40, 8)}, "not finite, in 1 of 40 samples; the first is sample 3"),
    "1e30": ({"inputs": bad(1e30, 40, 8)}, "too large for float32: their squares overflow, in 1 of 40 samples"),
    "too wide": ({"inputs": numbers(40, 8) + np.eye(40, 8) * 1e300}, "the first is sample 0"),
    "int": ({"inputs": np.full((40, 8), 2**25)}, "integers above 16777216, which float32 can't tell apart"),
    "text": ({"inputs": np.full((40, 8), "a")}, "x is <U1, the model takes float32"),
    "complex": ({"inputs": np.full((40, 8), 1j)}, "x is complex128, the model takes float32"),
    "shape": ({"inputs": numbers(40, 7)}, "x has samples of shape [7], the model takes [n, 8]"),
    "objects": ({"inputs": np.array([{}, 1], object)}, "holds Python objects"),
    "label": ({"inputs": numbers(40, 8), "labels": np.r_[np.zeros(39, int), 3]}, "hold 3, the first of sample 39"),
    "negative": ({"inputs": numbers(40, 8), "labels": np.r_[-1, np.zeros(39, int)]}, "hold -1, the first of sample 0"),
    "words": ({"inputs": numbers(40, 8), "labels": np.full(40, "cat")}, "labels are <U3, not numbers"),
    "no number": ({"inputs": numbers(40, 8), "labels": np.full(40, np.nan)}, "labels hold numbers that are not finite"),
}


class TestValues:
    @pytest.mark.filterwarnings("error")
    def test_float16_is_taken_without_a_warning(self):
        np.savez("d.npz", x=numbers(40, 8).astype(np.float16))
        found = read(Source("d.npz"), signature(x=["n", 8])).samples.arrays["x"]
        assert found.dtype == F and np.array_equal(found, numbers(40, 8).astype(np.float16))

    @pytest.mark.parametrize("name", VALUES)
    def test_all_verbs_refuse_the_same_with_the_same_words(self, name, capsys):
        arrays, part = VALUES[name]
        np.savez("d.npz", **arrays)
        path = classifier(Path("m.onnx"), [8])
        said = set()
        for words in (
            ["quantize", path, "--out", "i.onnx"],
            ["profile", path],
            ["compare", path, path],
            ["explain", path, "--float", path],
        ):
            code, told = run(capsys, *words, "--data", "d.npz")
            assert code == 2 and part in told, told
            said.add(next(line for line in told.splitlines() if part in line).removeprefix("error: "))
        assert len(said) == 1, said

    @pytest.mark.parametrize(
        "dtype, array, part",
        [
            ("int64", numbers(4, 8), "x is float32, the model takes int64"),
            ("bool", np.zeros((4, 8), int), "x is int64, the model takes bool"),
            ("uint8", np.full((4, 8), 256), "outside of uint8, 0 to 255, in 4 of 4 samples; the first is sample 0"),
            ("int32", np.full((4, 8), 2**31), "outside of int32"),
            ("float16", np.full((4, 8), 1e5), "too large for float16"),
        ],
    )
    def test_values_that_another_type_does_not_hold(self, dtype, array, part):
        np.savez("d.npz", inputs=array)
        with pytest.raises(UsageError) as caught:
            read(Source("d.npz"), Signature({"x": Tensor(np.dtype(dtype), ("n", 8))}))
        assert part in str(caught.value)

    @pytest.mark.parametrize(
        "dtype, array",
        [
            ("float32", np.full((4, 8), 200, np.uint8)),
            ("float32", np.full((4, 8), 0.1)),
            ("float32", np.ones((4, 8), bool)),
            ("int32", np.full((4, 8), 7)),
            ("uint8", np.full((4, 8), 255)),
        ],
    )
    def test_values_that_it_holds_are_converted(self, dtype, array):
        np.savez("d.npz", inputs=array)
        found = read(Source("d.npz"), Signature({"x": Tensor(np.dtype(dtype), ("n", 8))})).samples.arrays["x"]
        assert found.dtype == dtype and np.allclose(found, array)


class TestRandom:
    def test_it_is_what_no_data_gives(self):
        path = classifier(Path("m.onnx"), [8])
        found = [opening.given(path, s, None, Path("s"), local.host()).samples for s in (Source("random"), Source())]
        assert np.array_equal(*(f.arrays["x"] for f in found)) and len(found[0]) == 16 and found[0].labels is None

    def test_quantize_and_explain_refuse_it(self, capsys):
        path = classifier(Path("m.onnx"), [8])
        for words in (["quantize", path, "--out", "i.onnx"], ["explain", path, "--float", path]):
            code, told = run(capsys, *words, "--data", "random")
            assert code == 2 and "--data random: random values" in told and "give real samples" in told


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_many_samples_are_not_held_in_memory(save, dtype):
    """Nor those that are chosen: 64 MB of float32 of them."""
    x = np.random.default_rng(0).integers(0, 4, (4096, 64, 64)).astype(dtype)
    save("d.npz", inputs=x)
    rows = np.arange(0, 4096)[::-1][:3600]
    tracemalloc.start()
    samples = read(Source("d.npz"), signature(x=["n", 64, 64]), lambda total, size: rows).samples
    sums = [float(feed["x"].sum()) for feed in samples.batches(64)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    assert samples.arrays["x"].dtype == np.float32 and np.array_equal(samples.arrays["x"], x[rows])
    assert sums == [float(x[rows[i : i + 64]].sum()) for i in range(0, len(rows), 64)]


@pytest.mark.parametrize("kind", ["archives", "images"])
def test_folders_are_not_held_in_memory(kind):
    """48 MB of float32."""
    from PIL import Image

    x = np.random.default_rng(0).integers(0, 256, (64, 250, 250, 3), dtype=np.uint8)
    Path("d").mkdir()
    for i, one in enumerate(x):
        if kind == "archives":
            np.savez(f"d/{i:03}.npz", x=one.astype(np.float32).transpose(2, 0, 1) / 255)
        else:
            Image.fromarray(one).save(f"d/{i:03}.png", compress_level=1)
    tracemalloc.start()
    how = None if kind == "archives" else "unit"
    found = read(Source("d", preprocess=how), signature(x=["n", 3, 250, 250])).samples.arrays["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6
    assert found.shape == (64, 3, 250, 250) and np.allclose(found, x.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_a_folder_of_one_scalar_each_is_read():
    Path("d").mkdir()
    for i in range(3):
        np.savez(f"d/{i}.npz", x=np.float32(i), y=np.full(2, i, np.float32))
    found = read(Source("d"), signature(x=["n"], y=["n", 2])).samples.arrays
    assert found["x"].tolist() == [0, 1, 2] and found["y"].tolist() == [[0, 0], [1, 1], [2, 2]]


class TestSequences:
    def test_states_are_zeros_at_the_start_and_go_on(self):
        path = cell(Path("m.onnx"))
        np.savez("d.npz", inputs=numbers(5, 7, 8))
        sequences = read_sequences(Source("d.npz", states={"h": "hn"}), of_model(onnx.load(path)))
        session = onnxruntime.InferenceSession(path)
        infer = lambda feed: dict(zip(["y", "hn"], session.run(["y", "hn"], feed), strict=True))
        steps = sequences.steps(infer)
        assert len(steps) == 35 and steps.begins.sum() == 5 and steps.axes == {"x": 0, "h": 1}
        wanted = []
        for x in numbers(5, 7, 8):
            state = np.zeros((1, 1, 4), np.float32)
            for step in x:
                wanted.append(state[:, 0])
                state = infer({"x": step[None], "h": state})["hn"]
        assert np.array_equal(steps.arrays["h"], np.stack(wanted)) and np.array_equal(
            steps.arrays["x"], numbers(5, 7, 8).reshape(35, 8)
        )

    @pytest.mark.parametrize("along", [0, 1])
    @pytest.mark.parametrize("batch", ["n", 1])
    def test_quantize_compares_each_file_with_its_own_states(self, along, batch, capsys):
        path = cell(Path("m.onnx"), batch, along)
        x = numbers(6, 9, 8)
        np.savez("d.npz", inputs=x, labels=np.zeros((6, 9), int))
        words = ["--data", "d.npz", "--state", "hn=h"]
        code, told = run(capsys, "quantize", path, "--out", "i.onnx", *words)
        assert code == 0 and "54 calibration samples" in told and "top1" in told, told
        assert "steps: of 6 sequences for calibration, and of the same to compare" in told
        answers = []
        for name in ("m.onnx", "i.onnx"):
            session, found = onnxruntime.InferenceSession(name), []
            for sequence in x:
                state = np.zeros((1, 1, 4) if along else (1, 4), np.float32)
                for step in sequence:
                    y, state = session.run(["y", "hn"], {"x": step[None], "h": state})
                    found.append(y[0])
            answers.append(np.array(found))
        plain, int8 = answers
        noise = np.square(plain - int8).mean(1)
        signal = np.square(plain - plain.mean(0)).mean(1)
        ratio = (noise / np.maximum(signal, np.median(signal))).mean()
        assert f"y: {-10 * np.log10(ratio):.1f} dB" in told
        assert f"{100 * (plain.argmax(1) == 0).mean():.2f} % float" in told

    def test_profile_times_a_step_and_explain_looks_at_the_steps(self, capsys):
        path = cell(Path("m.onnx"))
        Path("d").mkdir()
        for i in range(20):
            np.savez(f"d/{i:02}.npz", x=numbers(5 + i % 3, 8, seed=i))
        words = ["--data", "d", "--state", "hn=h"]
        code, told = run(capsys, "quantize", path, "--out", "i.onnx", *words)
        assert code == 0 and "held-out" not in told
        code, told = run(capsys, "profile", path, *words)
        assert code == 0 and "timed per step, over" in told and "of 20 sequences" in told
        code, told = run(capsys, "explain", "i.onnx", "--float", path, *words)
        assert code == 0 and "samples of validation" in told

    def test_profile_scores_the_steps_of_sequences_with_labels(self, monkeypatch):
        """As a loop over onnxruntime answers them, each with its own states; `compare` says what it timed."""
        path, x = cell(Path("m.onnx")), numbers(6, 9, 8)
        y = np.random.default_rng(1).integers(0, 3, (6, 9))
        np.savez("d.npz", inputs=x, labels=y)
        session, right = onnxruntime.InferenceSession(path), []
        for sequence, labels in zip(x, y, strict=True):
            state = np.zeros((1, 1, 4), np.float32)
            for step, label in zip(sequence, labels, strict=True):
                made, state = session.run(["y", "hn"], {"x": step[None], "h": state})
                right.append(made.argmax() == label)
        given = {"data": "d.npz", "states": {"h": "hn"}, "preset": "probe"}
        parsed, parse = [], static.read
        monkeypatch.setattr(static, "read", lambda path: parsed.append(path) or parse(path))
        found = profile(path, **given)
        assert len(parsed) == 1
        assert found.note == "timed per step, over 54 steps of 6 of 6 sequences; scored over the same"
        (top1,) = (m for m in found.measurements if m.name == "top1")
        assert top1.value == pytest.approx(100 * np.mean(right))
        assert "timed per step, over 54 steps of 6 of 6 sequences" in str(compare(path, path, **given))

    def test_every_fourth_sequence_is_held_out(self):
        calibrated, kept = split.of_sequences([10] * 40, 512)
        assert kept.tolist() == list(range(3, 40, 4)) and not set(kept) & set(calibrated)
        assert len(split.of_sequences([10] * 8, 512)[1]) == 0

    @pytest.mark.parametrize(
        "states, arrays, part",
        [
            ({"h": "z"}, {"inputs": numbers(5, 7, 8)}, "--state z=h: z is not an output"),
            ({"z": "hn"}, {"inputs": numbers(5, 7, 8)}, "has one array `inputs`"),
            ({"h": "hn"}, {"inputs": numbers(5, 8)}, "x has the shape [5, 8], the model takes [n, steps, 8]"),
            ({"h": "hn"}, {"inputs": bad(np.nan, 5, 7, 8)}, "not finite, in 1 of 5 samples; the first is sample 3"),
            ({"h": "hn"}, {"inputs": numbers(5, 7, 8), "labels": np.zeros(4)}, "one label for each step"),
        ],
    )
    def test_what_is_wrong(self, states, arrays, part):
        path = cell(Path("m.onnx"))
        np.savez("d.npz", **arrays)
        with pytest.raises(UsageError) as caught:
            read_sequences(Source("d.npz", states=states), of_model(onnx.load(path)))
        assert part in str(caught.value)


def test_class_numbers_as_output_are_compared_and_judged(capsys):
    nodes = [h.make_node("Gemm", ["x", "w"], ["s"], name="fc"), h.make_node("ArgMax", ["s"], ["y"], axis=1, keepdims=0)]
    path = file(Path("m.onnx"), nodes, {"x": ["n", 8]}, {"y": (T.INT64, ["n"])}, {"w": numbers(8, 3)})
    x = numbers(64, 8)
    np.savez("d.npz", inputs=x, labels=onnxruntime.InferenceSession(path).run(None, {"x": x})[0])
    code, told = run(capsys, "quantize", path, "--data", "d.npz", "--out", "i.onnx")
    equal = onnxruntime.InferenceSession("i.onnx").run(None, {"x": x})[0] == np.load("d.npz")["labels"]
    assert code == 0 and f"y: {100 * equal.mean():.2f} % equal values" in told
    assert f"top1: 100.00 % float, {100 * equal.mean():.2f} % int8" in told


def test_labels_that_are_not_used_are_told(capsys):
    path = cell(Path("m.onnx"))
    np.savez("d.npz", x=numbers(40, 8), h=numbers(1, 40, 4), labels=np.zeros(40, int))
    code, told = run(capsys, "quantize", path, "--data", "d.npz", "--out", "i.onnx")
    assert code == 0 and "`labels` were not used" in told


def test_rows_of_different_shapes_are_joined():
    parts = [np.ones((1, 3, 4)), np.ones((1, 5, 4))]
    assert rows.joined(parts).shape == (8, 4)
    assert rows.joined([np.ones((1, 2, 3, 3)), np.ones((1, 2, 5, 4))]).shape == (29, 2)
    assert rows.joined([np.float32(1), np.float32(2)]).tolist() == [1, 2]
    assert rows.joined([np.ones((1, 7, 4)), np.ones((1, 2, 4))], 1).shape == (9, 1, 4)


def test_files_for_preprocess_in_the_pages_are_read():
    page = (Path(__file__).parent.parent / "docs" / "samples.md").read_text("utf-8")
    blocks = re.findall(r"^```json\n(.*?)^```", page, re.S | re.M)
    for block in blocks:
        Path("p.json").write_text(block)
        assert preprocess.load("p.json") != preprocess.Preprocess()
    assert len(blocks) == 2


def test_the_schema_tells_what_a_file_may_hold():
    jsonschema = pytest.importorskip("jsonschema")
    made = schema("preprocess")
    for good in ({}, {"crop": 4, "layout": "nhwc"}, {"resize": [4, 5], "mean": [0.5, 1, 2], "rate": 16000}):
        jsonschema.validate(good, made)
        Path("p.json").write_text(json.dumps(good))
        preprocess.load("p.json")
    for wrong in ({"crop": 0}, {"men": [1]}, {"deviation": [0]}, {"mean": []}, {"layout": "hwc"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, made)
        Path("p.json").write_text(json.dumps(wrong))
        with pytest.raises(UsageError):
            preprocess.load("p.json")


def test_commands_say_the_same_again():
    source = Source("d", {"a": None, "b": 1}, "unit", {"h": "hn"})
    wanted = "--data d --axis a=none --axis b=1 --preprocess unit --state hn=h"
    assert source.words() == wanted.split() and Source().words() == []
    assert preprocess.load("unit") == preprocess.Preprocess()
