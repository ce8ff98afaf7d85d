"""A probe is one file: what it declares and what all have to keep, and one of a contributor's that is dropped into the
folder."""

import dataclasses
import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import runs
from test_probes import network

from edgekd import components, probes, results
from edgekd.cli import run as command
from edgekd.decisions import budget
from edgekd.errors import UsageError
from edgekd.metrics import top1
from edgekd.probes import Subject
from edgekd.records import Deployment, Quantity
from edgekd.report import markdown, page, terminal
from edgekd.run import evaluate
from edgekd.run.schemas import schema

ZEROS = '''"""How many weights of a file are 0."""
from edgekd.probes import figure
from edgekd.records import Deployment, Quantity

MEASURES = (Quantity("zero_share", "%", "weights that are 0", better="higher", origin="counted", keep=5, column=45),)


def measure(subject):
    if subject.file is not None:
        import numpy as np
        from onnx import numpy_helper

        weights = [numpy_helper.to_array(t).ravel() for t in subject.model.graph.initializer if len(t.dims) > 1]
        yield figure(MEASURES[0], 100 * float((np.concatenate(weights) == 0).mean()))
'''


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The folder of probes with one more file."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "zero_share.py").write_text(ZEROS)
    monkeypatch.setattr(probes, "__path__", [*probes.__path__, str(folder)])
    yield
    sys.modules.pop("edgekd.probes.zero_share", None)
    vars(probes).pop("zero_share", None)


@pytest.fixture
def file(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")  # whose weights are all 0
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("name", components.names("probes"))
def test_every_file_declares_what_it_measures(name, file):
    probe = importlib.import_module(f"edgekd.probes.{name}")
    assert probe.__doc__ and probe.MEASURES and all(isinstance(q, Quantity) for q in probe.MEASURES)
    if not hasattr(probe, "measure"):
        return
    assert list(probe.measure(Subject())) == []
    logits = np.random.default_rng(0).normal(size=(60, 3))
    answers = {"outputs": logits, "labels": logits.argmax(1), "metrics": [top1()], "teacher": -logits, "split": "test"}
    lines = [{"n": 9, "p50_ms": 1.0, "p90_ms": 2.0, "load_ms": 3.0, "first_ms": 4.0}] * 6
    times = probes.Times(lines, [5, 6], [1, 2])
    found = list(
        probe.measure(Subject(file=file, facts={"saturation": [], "stream": {"bytes": 8}}, times=times, **answers))
    )
    own = {q.name: q for q in probe.MEASURES}
    assert found and {m.name for m in found} <= {*own, "top1"}
    for m in (m for m in found if m.name in own):
        quantity = own[m.name]
        assert (m.unit, m.origin, m.split) == (quantity.unit, quantity.origin, "test" if quantity.split else None)
        assert m.low <= m.value <= m.high and (m.origin != "counted" or m.low == m.high)


def test_two_probes_of_one_name_are_told(planted, monkeypatch):
    monkeypatch.setattr(components, "names", lambda folder: ["static", "zero_share"])
    import edgekd.probes.zero_share as other

    monkeypatch.setattr(other, "MEASURES", (dataclasses.replace(other.MEASURES[0], name="macs"),))
    with pytest.raises(UsageError, match=r"zero_share.py: measures `macs`, as .*static.py does"):
        probes._declared.__wrapped__(("static", "zero_share"))


QUANTITY = "from edgekd.records import Quantity\n"
DECLARED = QUANTITY + 'MEASURES = (Quantity("x", "%", "x"),)\n'


@pytest.mark.parametrize(
    "folder, text, says",
    [
        ("probes", "def (:", "can't be imported: SyntaxError"),
        ("probes", "import no_such_library", "hint: install `no_such_library`"),
        ("probes", "raise SystemExit(3)", "can't be imported: SystemExit"),
        ("probes", "", "MEASURES must be a tuple of"),
        ("probes", "MEASURES = ()", "MEASURES must be a tuple of"),
        ("probes", "MEASURES = ('macs',)", "MEASURES must be a tuple of"),
        ("probes", DECLARED.replace('"x")', '"x", better="up")'), "x: better is 'up'"),
        ("probes", DECLARED + "measure = 3", "`measure` is not a function"),
        ("probes", DECLARED.replace('"x"', '"macs"', 1), "`macs`"),
        ("verbs", "def (:", "can't be imported: SyntaxError"),
        ("verbs", "", "defines no command"),
        ("verbs", "command = 3", "defines no command"),
        ("losses", "def (:", "can't be imported: SyntaxError"),
        ("stages", "raise ValueError('no')", "can't be imported: ValueError: no"),
    ],
)
def test_a_broken_file_in_a_folder_is_named(folder, text, says, tmp_path, monkeypatch, capsys):
    package = importlib.import_module(f"edgekd.{folder}")
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        assert command(["--help"] if folder == "verbs" else ["list", folder]) == 2
    finally:
        sys.modules.pop(f"edgekd.{folder}.broken", None)
        vars(package).pop("broken", None)
    err = capsys.readouterr().err
    assert str(tmp_path / "broken.py") in err and says in err and "internal" not in err


def test_a_loss_that_is_not_in_its_file_is_told_where_it_is_named(tmp_path, monkeypatch):
    from edgekd import losses
    from edgekd.run import resolve

    (tmp_path / "broken.py").write_text("def other(student, teacher, batch): ...\n")
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    recipe = {"task": "digits", "stage": [{"use": "distill", "losses": [{"use": "broken"}]}]}
    with pytest.raises(
        UsageError, match=r"losses\[0\]: .*broken.py defines neither `broken`, nor its class, nor `loss`"
    ):
        resolve.resolved(recipe)


def test_a_planted_probe_is_profiled_and_listed(planted, file, tmp_path, capsys):
    """On a device that nothing runs on, where a profile is what is counted."""
    assert command(["profile", str(file), "--target", "cortex-m4-stm32l4r5", "--json", str(tmp_path / "p.json")]) == 0
    assert "zero_share        100 %" in capsys.readouterr().out
    told = {m["name"]: m["value"] for m in json.loads((tmp_path / "p.json").read_text())["measurements"]}
    assert told["zero_share"] == 100 and {"file_bytes", "macs", "parameters", "activation_bytes"} < told.keys()
    assert command(["list", "probes"]) == 0
    assert "weights that are 0" in capsys.readouterr().out


def test_a_planted_probe_is_measured_by_compress(planted, file):
    point = SimpleNamespace(targets=(), deployment=Deployment())
    o = SimpleNamespace(file=file, artifact=SimpleNamespace(facts={}), point=point)
    seen = SimpleNamespace(inputs={"x": np.zeros((2, 3, 8, 8), np.float32)})
    resolved = SimpleNamespace(targets=(), data=lambda split: seen, task=SimpleNamespace(inputs=(("x",),)))
    found = {m.name: m for m in evaluate.described(o, None, {}, resolved, {})}
    assert found["zero_share"].value == 100 and found["zero_share"].origin == "counted"


def test_a_planted_probe_has_budgets(planted, tmp_path, capsys):
    told = lambda rule: [p.message for p in budget.problems({"any": {"zero_share": rule}}, metrics={"top1": "%"})]
    assert told("min 30 %") == [] and told("regress max 3 % vs baseline") == []
    assert told("min 30 kB") == ["zero_share is not in kB"] and "between 0 and 100" in told("min 101 %")[0]
    folder = measured(runs.make(tmp_path / "run"), 25.0)
    path = tmp_path / "budget.toml"
    for rule, code in (("min 30 %", 1), ("min 20 %", 0)):
        path.write_text(f'[any]\nzero_share = "{rule}"\n')
        assert command(["gate", str(folder), "--budget", str(path), "--only", "deterministic"]) == code
        assert "25 % counted" in capsys.readouterr().out


def test_a_planted_probe_is_reported(planted, tmp_path):
    result = results.read(measured(runs.make(tmp_path / "run"), 25.0))
    assert '<th class="n">zero_share %</th>' in page.render(result)
    assert "| zero\\_share % |" in markdown.render(result)
    assert "zero_share % c" in terminal.table(result, width=200)
    assert "zero_share % c" not in terminal.table(result, width=60)


def test_a_planted_probe_is_in_the_schemas(planted):
    names = schema("result")["$defs"]["Measurement"]["properties"]["name"]["anyOf"]
    assert {"const": "zero_share", "description": "weights that are 0, in %; higher is better; counted"} in names
    for kind in ("budget", "recipe"):
        made = schema(kind)
        assert "weights that are 0" in made["$defs"]["Rules"]["properties"]["zero_share"]["description"]
        gate = made["properties"]["gate"] if kind == "recipe" else made["$defs"]["Gate"]["properties"]["gate"]
        assert gate["additionalProperties"] == {"$ref": "#/$defs/Rules"}


def measured(folder, value):
    """The run, with a figure of every candidate that it was not made with."""
    result = results.read(folder)
    more = probes.figure(probes.declared()["zero_share"], value)
    every = tuple(dataclasses.replace(c, measurements=(*c.measurements, more)) for c in result.candidates)
    results.write(dataclasses.replace(result, candidates=every), folder / "result.json")
    return folder


def test_a_quantity_of_which_neither_way_is_better_has_no_drop(planted, monkeypatch):
    import edgekd.probes.zero_share as other

    neither = dataclasses.replace(other.MEASURES[0], better=None)
    monkeypatch.setattr("edgekd.probes.declared", lambda: {neither.name: neither})
    (problem,) = budget.problems({"any": {"zero_share": "drop max 3 pt vs teacher"}})
    assert problem.message == "neither direction of zero_share is better, so it has no `drop`"
    assert budget.problems({"any": {"zero_share": "max 3 %"}}) == []
