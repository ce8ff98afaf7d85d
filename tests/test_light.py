"""edgekd-light: the same package without what trains. Verbs that need files alone run without these libraries."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import runs
from onnx import TensorProto, helper, numpy_helper, save

from edgekd import environment
from edgekd.verbs import doctor

ROOT = Path(__file__).resolve().parent.parent
ABSENT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(environment.TRAINING)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a float file, samples, a run and its bundle; Python finds none of what trains there."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(ABSENT)
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s).astype(np.float32) for s in ((8, 1, 3, 3), (8, 4))]
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w1"], ["output"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "net.onnx")
    np.savez(folder / "d.npz", inputs=rng.normal(size=(40, 1, 8, 8)).astype(np.float32), labels=np.arange(40) % 4)
    runs.make(folder / "run")
    return folder


def say(home, *arguments):
    there = {**os.environ, "PYTHONPATH": f"{home / 'site'}{os.pathsep}{ROOT}", "EDGEKD_STORE": str(home / "store")}
    command = [sys.executable, "-m", "edgekd", *arguments]
    done = subprocess.run(command, cwd=home, env=there, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "line, code, told",
    [
        ("quantize net.onnx --data d.npz --out q.onnx --quiet", 0, "of 2 layers in int8"),
        ("profile net.onnx --preset quick --quiet", 0, "latency_p50_ms"),
        ("compare net.onnx net.onnx --preset quick --quiet", None, "latency_p50_ms"),
        ("explain q.onnx --float net.onnx --data d.npz --quiet", 0, "q beside net.onnx"),
        ("try net.onnx q.onnx d.npz --quiet", 0, "dB"),
        ("gate run", None, "edgekd gate"),
        ("report run", 0, "report.html"),
        ("list", 0, "losses: needs torch, which is not installed"),
        ("list targets", 0, "raspberry-pi-4"),
        ("schema recipe", 0, '"title": "edgekd recipe"'),
    ],
)
def test_verbs_that_take_files_need_nothing_that_trains(home, line, code, told):
    found, out, err = say(home, *line.split())
    assert told in out and "No module" not in err and "internal error" not in err, err
    assert found == code or (code is None and found in (0, 1, 3))


@pytest.mark.parametrize("line", ["compress", "list losses"])
def test_what_trains_says_what_is_lacking(home, line):
    code, _, err = say(home, *line.split())
    assert code == 4 and "needs torch, which is not installed" in err and "pip install edgekd" in err


def test_the_hint_takes_the_light_distribution_away_first(monkeypatch):
    error = ModuleNotFoundError("No module named 'sklearn'", name="sklearn.datasets")
    (there,) = environment.left_out(error).problems
    assert there.message == "needs scikit-learn, which is not installed" and "uninstall" not in there.hint
    monkeypatch.setattr(environment.reading, "version", lambda name: "1")
    (there,) = environment.left_out(error).problems
    assert "edgekd-light" in there.message and "pip uninstall edgekd-light" in there.hint
    assert environment.left_out(ModuleNotFoundError("no", name="torchvision")) is None


def test_doctor_misses_nothing_of_what_was_left_out_on_purpose(monkeypatch):
    there = dict.fromkeys(doctor.NEEDED, "1")
    monkeypatch.setattr(environment, "versions", lambda names: {n: there[n] for n in names if n in there})
    text, code = doctor.doctor(False)
    assert code == 4 and "torch is not installed" in text and re.search(r"torch +MISSING", text)
    there["edgekd-light"] = "1"
    text, code = doctor.doctor(False)
    assert code == 0 and "nothing can be trained here" in text and "torch" not in text.split("libraries")[1]


def test_both_distributions_ask_for_the_same_versions():
    whole, light = (tomllib.loads((ROOT / p / "pyproject.toml").read_text())["project"] for p in (".", ".light"))
    left_out = tuple(environment.TRAINING.values())
    kept = [line for line in whole["dependencies"] if re.split(r"[\[><=]", line)[0] not in left_out]
    assert light["dependencies"] == kept and len(kept) == len(whole["dependencies"]) - len(left_out)
    for fact in ("requires-python", "license", "scripts"):
        assert light[fact] == whole[fact]
    extras = {name: e for name, e in whole["optional-dependencies"].items() if name not in ("test", "mutants")}
    assert light["optional-dependencies"] == extras


def test_both_wheels_hold_the_same_package(tmp_path):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling: pip install edgekd[test]")
    for folder in (ROOT, ROOT / ".light"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    whole, light = (zipfile.ZipFile(next(tmp_path.glob(f"{name}-*.whl"))) for name in ("edgekd", "edgekd_light"))
    held = [{n: z.getinfo(n).CRC for n in z.namelist() if ".dist-info/" not in n} for z in (whole, light)]
    assert held[0] == held[1] and "edgekd/quantization/grid.py" in held[0]
    assert any(name.endswith("LICENSE") for name in light.namelist())
