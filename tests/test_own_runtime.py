"""A runtime and a format of one's own, each one file: named in a target, they go through compress, profile, compare and
gate with nothing else changed. Every figure is of the runtime that its target names."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from board import board

from edgekd import environment, results, runtimes, targets
from edgekd.delivery import bundle
from edgekd.errors import EnvironmentUnfit, RunFailed, UsageError
from edgekd.hosts import arm, emulator, local
from edgekd.measure import folders, jobs
from edgekd.records import Deployment, Runtime, Target
from edgekd.run import plan, resolve
from edgekd.runtimes.onnxruntime import load
from edgekd.samples.source import Source
from edgekd.verbs._emulated import emulate
from edgekd.verbs.compare import compare
from edgekd.verbs.compress import compress
from edgekd.verbs.gate import gate
from edgekd.verbs.profile import profile

ORT = '[[runtime]]\nname = "onnxruntime"\n'
REFERENCE = '[[runtime]]\nname = "own.reference"\n'
LAYERS = '[[runtime]]\nname = "own.interpreter"\nformat = "own.layers"\n'
RECIPE = tiny.SHORT.replace("[[stage]]", "control = false\n[[stage]]", 1)
WAYS = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "interpreter": ("own.layers", "own.interpreter"),
}


def written(folder, runtimes, name="mine"):
    """A target of this machine's kind, with runtimes as given."""
    facts = environment.describe()
    features = [f for f in facts["features"] if f in targets.KERNELS]
    text = f'title = "{name}"\narchitecture = "{facts["architecture"]}"\nfeatures = {json.dumps(features)}\n'
    (folder / f"{name}.toml").write_text(text + runtimes)
    return str(folder / f"{name}.toml")


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, result) of a run for a target with two runtimes, each with its format."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patched:
        tiny.settle(folder, patched)
        (folder / "r.toml").write_text(RECIPE)
        outcome = compress(folder / "r.toml", targets=[written(folder, ORT + LAYERS)], out="run")
    return folder / "run", outcome.result


def planned(*names):
    resolved = resolve.resolved(None, targets=names)
    return resolved, plan.make(resolved)


# ---------------------------------------------------------------- what is planned


def test_a_target_with_several_runtimes_has_candidates_of_all(run):
    _, result = run
    ids = [c.id for c in result.candidates]
    assert ids == [f"{name}.{way}" for name in ("teacher", "distill", "quantize") for way in WAYS]
    assert all((c.form, c.runtime) == WAYS[c.id.rpartition(".")[2]] for c in result.candidates)
    by_id = {c.id: c for c in result.candidates}
    assert by_id["quantize.interpreter"].parents == ("distill.interpreter",)
    assert by_id["quantize.onnxruntime"].sha256 != by_id["quantize.interpreter"].sha256


def test_one_step_exports_each_format_that_targets_want(tmp_path):
    names = [written(tmp_path, ORT + LAYERS, "several"), written(tmp_path, REFERENCE, "one"), "host"]
    _, made = planned(*names)
    points = [p for p in made.points if p.point.startswith("quantize")]
    assert {(p.deployment.runtime, p.targets) for p in points} == {
        ("onnxruntime", ("several", "host")),
        ("own.interpreter", ("several",)),
        ("own.reference", ("one",)),
    }
    exports = [s.part for s in made.steps.values() if s.stage == "export" and s.source == points[0].step]
    assert sorted((part.format.name, part.runtime) for part in exports) == [
        ("onnx", "onnxruntime"),  # the format's reference runtime: one file, held to the model once
        ("own.layers", "own.interpreter"),
    ]


@pytest.mark.parametrize("text", [REFERENCE, LAYERS, ORT])
def test_names_are_as_ever_where_all_targets_have_one_way(tmp_path, text):
    plain = [p.id for p in planned("host")[1].points]
    assert [p.id for p in planned(written(tmp_path, text))[1].points] == plain
    single = text.replace("[[runtime]]", "[runtime]")
    assert targets.load(written(tmp_path, single)) == targets.load(written(tmp_path, text))


def test_what_nothing_runs_on_shares_the_files_of_its_formats_reference():
    _, made = planned("host", "cortex-m4-stm32l4r5")
    assert {p.deployment for p in made.points} == {Deployment()} and not any(p.way for p in made.points)
    shared = {p.id for p in made.points if p.targets == ("host", "cortex-m4-stm32l4r5")}
    assert {"teacher", "alone", "distill"} <= shared


def test_names_tell_ways_apart_as_shortly_as_they_can():
    way = lambda *told: Deployment(*told)
    ort, other, same = way("onnx", "onnxruntime"), way("onnx", "a.reference"), way("ort", "onnxruntime")
    assert list(plan.ways([ort]).values()) == [""] and list(plan.ways([]).values()) == []
    assert list(plan.ways([ort, other, ort]).values()) == ["onnxruntime", "reference"]
    assert list(plan.ways([ort, same]).values()) == ["onnxruntime-onnx", "onnxruntime-ort"]
    assert list(plan.ways([other, way("onnx", "b.reference")]).values()) == ["a.reference-onnx", "b.reference-onnx"]


def test_a_point_that_is_extended_stays_with_its_runtime(tmp_path):
    resolved, made = planned(written(tmp_path, ORT + REFERENCE))
    point = next(p for p in made.points if p.id == "quantize.reference")
    layer = next(iter(resolved.task.models))  # any text: nothing is trained here
    wider = plan.extended(resolved, made, point, {"float_layers": (layer,)}, "-float1")
    (new,) = wider.points[len(made.points) :]
    assert (new.id, new.parents, new.deployment) == ("quantize-float1.reference", point.parents, point.deployment)


def test_another_runtime_or_format_is_another_key(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    own = Path(__file__).parent / "own"
    for name in ("layers", "interpreter"):
        text = (own / f"{name}.py").read_text().replace("own.layers", "mine.layers")
        (tmp_path / "mine" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    target = written(tmp_path, LAYERS.replace("own.", "mine."))
    key = lambda: [p.export for p in planned(target)[1].points][-1]
    before = key()
    with open(tmp_path / "mine" / "interpreter.py", "a") as file:
        file.write("\nx = 1\n")
    changed = key()
    with open(tmp_path / "mine" / "layers.py", "a") as file:
        file.write("\nx = 1\n")
    assert len({before, changed, key()}) == 3


# ---------------------------------------------------------------- what is measured


def test_every_figure_says_which_runtime_made_it(run):
    _, result = run
    for c in result.candidates:
        told = c.runtime == "own.interpreter"
        taken = [m for m in c.measurements if m.target == "mine"]
        assert {"top1", "latency_p50_ms", "peak_rss_bytes"} <= {m.name for m in taken}
        assert {m.origin for m in taken} == {"measured"}
        assert {"in own.interpreter 0.9" in m.note for m in taken} == {told}


def test_answers_are_those_of_the_runtime_that_is_named(run):
    folder, result = run
    chosen = next(c for c in result.candidates if c.id == result.targets["mine"].chosen)
    kept = results.load_predictions(folder / "predictions" / f"{chosen.id}.npz")
    assert np.array_equal(kept.outputs, load(str(folder / chosen.file), 1)({"input": tiny.x[240:]})["output"])


CONSTANT = """
import onnxruntime
FORMAT = "onnx"
NEEDS = ("onnxruntime",)

def load(path, threads=1):
    import numpy as np
    def infer(arrays):
        return {"output": np.tile(np.float32([0, 0, 9]), (len(arrays["input"]), 1))}
    infer.inputs, infer.outputs = {"input": ("float32", (None, 1, 10, 10))}, ("output",)
    return infer
"""


def test_no_number_of_one_runtime_passes_as_anothers(tmp_path, monkeypatch):
    """A runtime that always answers the last class: were its target's files run in onnxruntime, its figures would be
    others, and the same files in both would share them."""
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "constant.py").write_text(CONSTANT)
    (tmp_path / "r.toml").write_text(RECIPE)
    names = [written(tmp_path, '[runtime]\nname = "constant"\n', "always"), written(tmp_path, ORT, "plain")]
    result = compress(tmp_path / "r.toml", targets=names, out="run").result
    share = 100 * float((tiny.y[240:] == 2).mean())
    for c in result.candidates:
        figures = {(m.target, m.split): m.value for m in c.measurements if m.name == "top1"}
        assert {target for target, _ in figures} == {"always" if c.runtime == "constant" else "plain"}
        if c.runtime == "constant":
            assert figures["always", "test"] == pytest.approx(share)
        times = [m for m in c.measurements if m.name == "latency_p50_ms"]
        assert times and all(("constant" in m.note) == (c.runtime == "constant") for m in times), c.id
    by_way = {c.id.rpartition(".")[::2]: c.sha256 for c in result.candidates}
    assert by_way["quantize", "constant"] == by_way["quantize", "onnxruntime"]


def test_what_was_measured_before_an_upgrade_is_not_taken_after_it():
    """Of a runtime of one's own: the versions of what it needs, on the machine that runs it, are in its identity."""
    at = lambda version: folders.identity("own.reference", SimpleNamespace(versions=lambda names: {"numpy": version}))
    assert at("2.1") == at("2.1") != at("2.2") and at("2.1").startswith("-own.reference-")
    assert folders.identity("own.reference") == folders.identity("own.reference", local.host())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "text, message",
    [
        (b"FORMAT = 5\ndef load(path, threads): pass\n", "FORMAT of odd.py must be text or a list of texts, not 5"),
        (b'FORMAT = {"onnx": 1}\ndef load(path, threads): pass\n', "FORMAT of odd.py must be text"),
        (b'FORMAT = "onnx"\nNEEDS = 3\ndef load(path, threads): pass\n', "NEEDS of odd.py must be text"),
        (b"FORMAT = (\n", "odd.py is not Python"),
        (b"FORMAT = '\xff'\n", "odd.py is not Python"),
        (b"FORMAT = 'onnx'\0\n", "odd.py is not Python"),
        (b"FORMAT = 'onnx'\n", "`odd` has no function `load`"),
    ],
)
def test_a_runtime_that_says_what_can_not_be_is_refused_by_its_file(tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "odd.py").write_bytes(text)
    with pytest.raises(UsageError) as caught:
        targets.load(written(tmp_path, '[runtime]\nname = "odd"\n', "here"))
    assert message in str(caught.value)


def test_what_a_runtime_says_may_be_annotated(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "annotated.py").write_text('FORMAT: str = "onnx"\n\ndef load(path, threads):\n    return None\n')
    assert targets.load(written(tmp_path, '[runtime]\nname = "annotated"\n', "here")).runtime.name == "annotated"


@pytest.mark.parametrize("reference", ['"nope"', "7"])
def test_a_format_whose_reference_does_not_read_it_is_refused(tmp_path, monkeypatch, reference):
    monkeypatch.syspath_prepend(str(tmp_path))
    form, lines = f"form{len(reference)}", 'SUFFIX = ".f"\nREFERENCE = {}\n\ndef export(*given, **more): pass\n'
    (tmp_path / f"{form}.py").write_text(lines.format(reference))
    (tmp_path / f"reads_{form}.py").write_text(f'FORMAT = "{form}"\n\ndef load(path, threads): pass\n')
    with pytest.raises(UsageError, match="is not a runtime that reads it"):
        targets.load(written(tmp_path, f'[runtime]\nname = "reads_{form}"\n', "here"))


@pytest.mark.parametrize(
    "text, place, message",
    [
        ('name = "own.nothing"', "runtime.name", "edgekd has no runtime `own.nothing`"),
        ('name = "own.layers"', "runtime.name", "no runtime `own.layers`, and layers.py declares no FORMAT"),
        ('name = "json"', "runtime.name", "edgekd has no runtime `json`"),
        ('name = "../own/reference"', "runtime.name", "edgekd has no runtime"),
        ('name = "own.interpreter"\nformat = "onnx"', "runtime.format", "own.interpreter reads own.layers, not onnx"),
        ('name = "onnxruntime"\nformat = "own.layers"', "runtime.format", "onnxruntime reads onnx, not own.layers"),
        ('name = "none"\nformat = "own.layers"', "runtime.format", "the format names no reference runtime"),
        ('name = "none"\nformat = "pte"', "runtime.format", "no format is named `pte`"),
        ('name = "onnxruntime"\nformt = "onnx"', "runtime.formt", "there is no fact `formt`"),
    ],
)
def test_a_runtime_that_cannot_be_is_refused_where_it_is_named(tmp_path, text, place, message):
    with pytest.raises(UsageError) as error:
        targets.load(written(tmp_path, f"[runtime]\n{text}\n"))
    (problem,) = error.value.problems
    assert problem.place == f"mine.toml: {place}" and message in problem.message


@pytest.mark.parametrize(
    "text, place, message",
    [
        (ORT + ORT + 'version = "1.2"\n', "runtime.1", "stands twice"),
        (ORT + '[[runtime]]\nname = "none"\n', "runtime.1.name", "stands beside other runtimes"),
        (ORT + '[[runtime]]\nname = "executorch"\n', "runtime.1.name", "no runtime `executorch`"),
        (ORT + "[[runtime]]\nname = 3\n", "runtime.1.name", "string"),
        (ORT + '[[runtime]]\nname = "own.reference"\nx = 1\n', "runtime.1.x", "there is no fact `x`"),
        (ORT * 9, "runtime", "has 9 tables"),
        ("runtime = []\n", "runtime", "has 0 tables"),
    ],
)
def test_of_several_the_wrong_one_is_named(tmp_path, text, place, message):
    with pytest.raises(UsageError) as error:
        targets.load(written(tmp_path, text))
    assert (f"mine.toml: {place}", True) in [(p.place, message in p.message) for p in error.value.problems]


def test_a_target_without_a_runtime_has_one_problem(tmp_path):
    with pytest.raises(UsageError) as error:
        targets.load(written(tmp_path, "runtime = []\n"))
    assert [p.message for p in error.value.problems] == ["has 0 tables"]


@pytest.fixture
def quits(tmp_path, monkeypatch):
    """A target whose runtime calls sys.exit() where it opens a file."""
    (tmp_path / "quits.py").write_text(
        'import sys\nFORMAT = "onnx"\nNEEDS = ()\n\ndef load(path, threads):\n    sys.exit(3)\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return written(tmp_path, '[runtime]\nname = "quits"\n')


def test_a_runtime_that_calls_sys_exit_is_named(network, quits):
    with pytest.raises(UsageError, match=r"quits.py:6: calls sys.exit\(3\)"):
        environment.opened("quits", network / "m.onnx")
    with pytest.raises(UsageError, match=r"does not run in quits: quits.py:6 calls sys.exit\(3\)"):
        profile(network / "m.onnx", target=quits, data=network / "d.npz", preset="quick")


def test_a_format_that_writes_no_file_is_named(tmp_path, monkeypatch):
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "nothing.py").write_text("SUFFIX = '.nothing'\n\ndef export(*given, **named):\n    return {}\n")
    (tmp_path / "reader.py").write_text('FORMAT = "nothing"\nNEEDS = ()\n\ndef load(path, threads): pass\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "r.toml").write_text(RECIPE)
    with pytest.raises(RunFailed, match=r"format nothing: its `export` wrote no model.nothing\n  hint: export\(graph"):
        compress(tmp_path / "r.toml", targets=[written(tmp_path, '[runtime]\nname = "reader"\n')], out="run")


def test_others_is_no_key_of_a_file(tmp_path):
    with pytest.raises(UsageError, match="there is no fact `others`"):
        targets.load(written(tmp_path, "others = []\n"))


def test_a_format_that_says_too_little_is_refused(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text("SUFFIX = '.half.json'\n")
    (tmp_path / "reader.py").write_text('FORMAT = ("onnx", "half")\n\ndef load(path, threads): pass\n')
    monkeypatch.chdir(tmp_path)
    assert targets.load(written(tmp_path, '[runtime]\nname = "reader"\n')).runtime == Runtime("reader", "", "onnx")
    with pytest.raises(UsageError, match="`half` is not a format: it lacks SUFFIX or `export`"):
        targets.load(written(tmp_path, '[runtime]\nname = "reader"\nformat = "half"\n'))


def test_what_a_runtime_says_is_read_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "kit").mkdir()
    text = '"""Fast."""\nfrom no_such_library import load\nFORMAT = "onnx"\nNEEDS = ("no-such-library", "numpy")\n'
    (tmp_path / "kit" / "fast.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert runtimes.formats("kit.fast") == ("onnx",) and runtimes.about("kit.fast") == "Fast."
    assert runtimes.needs("kit.fast") == ("no-such-library", "numpy")
    assert targets.load(written(tmp_path, '[runtime]\nname = "kit.fast"\n')).runtime.format == "onnx"


@pytest.fixture
def absent(tmp_path, monkeypatch):
    """A target whose runtime is not installed here."""
    (tmp_path / "absent.py").write_text(
        'import no_such\nFORMAT = "onnx"\nNEEDS = ("no-such", "also-not")\nload = no_such.load\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return written(tmp_path, '[runtime]\nname = "absent"\n')


def test_a_runtime_that_is_not_installed_is_told_before_anything_is_trained(tmp_path, monkeypatch, absent):
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    with pytest.raises(EnvironmentUnfit) as error:
        compress(tmp_path / "r.toml", targets=[absent], out="run")
    (problem,) = error.value.problems
    assert problem.place == "runtime absent" and "has no no-such and no also-not on this machine" in problem.message
    assert problem.hint.endswith("-m pip install no-such also-not") and not (tmp_path / "run").exists()


def test_measuring_with_a_runtime_that_is_not_installed_is_refused(tmp_path, absent):
    given = {"runtime": "absent", "folder": tmp_path / "job"}
    with pytest.raises(EnvironmentUnfit, match="has no no-such"):
        jobs.score(tmp_path / "m.onnx", np.zeros((1, 2)), **given)
    with pytest.raises(EnvironmentUnfit, match="has no no-such"):
        environment.opened("absent", tmp_path / "m.onnx")


def test_an_emulated_core_has_what_its_set_up_has(tmp_path, monkeypatch):
    setup = arm.Setup(tmp_path, "python", "1.31.1")
    monkeypatch.setattr(arm, "find", lambda: setup)
    monkeypatch.setattr(arm, "emulator", lambda folder: arm.Emulator("qemu-aarch64", "7.2"))
    pi = targets.load("raspberry-pi-4")
    other = Target("pi", "pi", "aarch64", emulated_as="cortex-a72", runtime=Runtime("own.reference"))
    with pytest.raises(EnvironmentUnfit, match="the arm64 set-up has no onnx, which own.reference needs"):
        emulator.launch(other)
    monkeypatch.setattr(arm, "core", lambda *_: arm.Core("cortex-a72", tmp_path, (), (), 0))
    for runtime in (pi.runtime, Runtime("own.interpreter", "", "own.layers")):
        target = Target("pi", "pi", "aarch64", emulated_as="cortex-a72", runtime=runtime)
        assert "qemu 7.2" in emulator.launch(target)["identity"]


# ---------------------------------------------------------------- what is delivered


def test_the_file_of_ones_own_format_is_delivered(tmp_path, monkeypatch):
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "r.toml").write_text(RECIPE)
    result = compress(tmp_path / "r.toml", targets=[written(tmp_path, LAYERS)], out="run").result
    found = result.targets["mine"]
    chosen = next(c for c in result.candidates if c.id == found.chosen)
    assert chosen.file == f"models/{chosen.id}.layers" and (chosen.form, chosen.runtime) == WAYS["interpreter"]
    manifest = bundle.read(tmp_path / "run" / "bundles" / "mine")
    assert (manifest.model, manifest.form, manifest.runtime) == ("model.layers", "own.layers", "own.interpreter")
    golden = results.load_arrays(tmp_path / "run" / "bundles" / "mine" / "golden.npz")
    again = environment.opened("own.interpreter", tmp_path / "run" / chosen.file)({"input": golden["inputs.input"]})
    assert np.array_equal(again["output"], golden["outputs.output"])
    assert {m.name for m in chosen.measurements if m.origin == "counted"} == {"file_bytes"}


# ---------------------------------------------------------------- what the other verbs make of it


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """{suffix: file} of one network in both formats, before any training."""
    import torch
    from own import layers

    from edgekd.formats import onnx
    from edgekd.quantization.torch_graph.capture import capture

    folder = tmp_path_factory.mktemp("network")
    graph, x = capture(tiny.Net(24).eval(), torch.from_numpy(tiny.x[:2])), torch.from_numpy(tiny.x[:2])
    given = {"metadata": {}, "inputs": ("input",), "outputs": ("output",)}
    onnx.export(graph, None, x, folder / "m.onnx", **given)
    layers.export(graph, None, x, folder / "m.layers", **given)
    np.savez(folder / "d.npz", inputs=tiny.x[:40], labels=tiny.y[:40])
    return folder


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
    tiny.hurry()


@pytest.mark.parametrize(
    "file, text, ran", [("m.onnx", REFERENCE, "own.reference 1."), ("m.layers", LAYERS, "own.interpreter 0.9")]
)
def test_profile_measures_in_the_runtime_of_the_target(tmp_path, network, quickly, file, text, ran):
    found = profile(network / file, target=written(tmp_path, text), data=network / "d.npz", preset="quick")
    measured = [m for m in found.measurements if m.origin == "measured"]
    assert {"top1", "latency_p50_ms", "peak_rss_bytes"} <= {m.name for m in measured}
    assert all(f"in {ran}" in m.note and m.target == "mine" for m in measured)
    top1 = next(m for m in measured if m.name == "top1")
    assert top1.value == profile(network / "m.onnx", data=network / "d.npz", preset="quick").measurements[0].value
    assert found.operators is None and ran.split()[0] in str(found)


def test_profile_draws_inputs_from_what_the_runtime_says(tmp_path, network, quickly):
    found = profile(network / "m.layers", target=written(tmp_path, LAYERS), preset="quick")
    assert "16 random samples" in found.note and found.measurements
    told = jobs.signature(network / "m.layers", runtime="own.interpreter", folder=tmp_path / "s")
    assert told == {"input": ("float32", (None, 1, 10, 10))}


def test_of_several_runtimes_the_one_that_takes_the_file_opens_it(tmp_path, network, quickly):
    target = written(tmp_path, ORT + REFERENCE + LAYERS)
    for file, ran in (("m.onnx", None), ("m.layers", "own.interpreter")):
        found = profile(network / file, target=target, preset="quick")
        latency = next(m for m in found.measurements if m.name == "latency_p50_ms")
        assert ("in own." in latency.note) == (ran is not None) and (ran or "") in latency.note


def test_a_file_of_another_format_is_told(tmp_path, network):
    with pytest.raises(UsageError, match="is not an ONNX file"):
        profile(network / "m.layers", preset="quick")
    with pytest.raises(UsageError, match="m.onnx: does not run in own.interpreter"):
        profile(network / "m.onnx", target=written(tmp_path, LAYERS), data=network / "d.npz", preset="quick")
    with pytest.raises(UsageError, match="nothing.layers: can't be read"):
        profile(tmp_path / "nothing.layers", target=written(tmp_path, LAYERS), preset="quick")


def test_compare_times_in_the_runtime_of_the_target(tmp_path, network, quickly):
    found = compare(network / "m.layers", network / "m.layers", target=written(tmp_path, LAYERS), preset="quick")
    assert all("in own.interpreter 0.9" in m.note for m in found.comparison.a)


def test_gate_and_report_take_a_run_with_several_runtimes(run):
    folder, result = run
    assert gate(folder).exit_code == 0
    assert "quantize.interpreter" in (folder / "report.md").read_text()
    manifest = bundle.read(folder / "bundles" / "mine")
    assert (manifest.form, manifest.runtime) == WAYS[result.targets["mine"].chosen.rpartition(".")[2]]


def test_a_board_runs_it_from_the_file_that_is_brought(tmp_path, network, quickly, monkeypatch):
    with board(tmp_path / "b") as there:
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(there.config))
        target = written(tmp_path, LAYERS)
        found = profile(network / "m.layers", target=target, data=network / "d.npz", preset="quick", on=there.address)
        assert all("in own.interpreter 0.9" in m.note for m in found.measurements if m.origin == "measured")
        drawn = profile(network / "m.layers", target=target, preset="quick", on=there.address)
        assert "16 random samples" in drawn.note and there.left() == []


def test_a_board_without_what_a_runtime_needs_is_told(tmp_path, network, absent, monkeypatch):
    with board(tmp_path / "b") as there:
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(there.config))
        with pytest.raises(EnvironmentUnfit) as error:
            profile(network / "m.onnx", target=absent, preset="quick", on=there.address)
        (problem,) = error.value.problems
        assert "there has no no-such and no also-not" in problem.message
        assert "-m pip install no-such also-not" in problem.hint and there.left() == []


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64 on the PATH")
def test_an_emulated_target_answers_in_its_runtime(tmp_path, network):
    text = 'title = "old"\narchitecture = "x86-64"\nemulated_as = "Nehalem"\n' + LAYERS
    (tmp_path / "old.toml").write_text(text)
    found = emulate(network / "m.layers", Source(network / "d.npz"), targets=[str(tmp_path / "old.toml")])
    emulated = {m.name: m for m in found.measurements if m.origin == "emulated" and m.target == "old"}
    assert {"top1", "host_agreement"} <= emulated.keys()
    assert all("in own.interpreter" in m.note for m in emulated.values())
    with pytest.raises(UsageError, match="are of several runtimes: onnxruntime, own.interpreter"):
        emulate(network / "m.layers", Source(), targets=[str(tmp_path / "old.toml"), "x86-64-sse42"])
