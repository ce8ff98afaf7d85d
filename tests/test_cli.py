"""The command line: exit codes of the contract, problems told at once with their place, no traceback."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edgekd.cli import run as command


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))


def say(capsys, *arguments):
    code = command(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.mark.parametrize(
    "kind",
    ["targets", "tasks", "stages", "losses", "ensembles", "criteria", "ranges", "formats", "runtimes", "metrics"],
)
def test_list(capsys, kind):
    code, out, _ = say(capsys, "list", kind)
    assert code == 0 and len(out.splitlines()) >= 3
    part = {
        "targets": "host",
        "tasks": "digits",
        "stages": "quantize",
        "losses": "kl",
        "criteria": "magnitude",
        "ranges": "entropy",
    }.get(kind)
    assert part is None or part in out


@pytest.mark.parametrize("kind", ["result", "manifest", "budget", "target", "recipe"])
def test_schema_is_json_schema(capsys, kind):
    import jsonschema

    code, out, _ = say(capsys, "schema", kind)
    assert code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


VERB = """
import click

@click.command()
def command():
    "Says hello."
    click.echo("hello")
    return 3
"""


def test_a_file_in_the_folder_is_a_verb(tmp_path, capsys, monkeypatch):
    import edgekd.verbs

    monkeypatch.setattr(edgekd.verbs, "__path__", [*edgekd.verbs.__path__, str(tmp_path)])
    (tmp_path / "say_hello.py").write_text(VERB)
    (tmp_path / "_say_nothing.py").write_text(VERB)
    (tmp_path / "greetings").mkdir()
    (tmp_path / "greetings/__init__.py").write_text('"""More of them."""')
    code, out, _ = say(capsys, "--help")
    assert code == 0 and "say-hello  Says hello." in out and "More of them." in out and "nothing" not in out
    assert say(capsys, "say-hello") == (3, "hello\n", "")
    assert say(capsys, "say-nothing")[0] == 2


def test_doctor(capsys):
    code, out, _ = say(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["versions"]["torch"] and facts["missing"] == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["compress", "nowhere.toml"], ["there is no such recipe", "hint"]),
        (["compress", "--target", "hosst"], ["hosst", "did you mean"]),
        (["compress", "--set", "distil.epochs=3"], ["did you mean `distill`"]),
        (["compress", "--set", "prune.macs=0.01"], ["macs", "can be reached"]),
        (["compress", "--set", "gate.any.top2='min 3 %'"], ["top2", "did you mean"]),
        (["compress", "--set", 'select.minimize=["latency"]'], ["latency", "hint"]),
        (["compress", "--set", "prune.criterion=magnitud"], ["did you mean `magnitude`"]),
        (["compress", "--time-budget", "soon"], ["90s, 20m or 2h"]),
        (["gate", "nowhere"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["profile", "nowhere.onnx"], ["nowhere.onnx"]),
        (["compare", "a.onnx", "b.onnx"], ["a.onnx"]),
        (["nonsense"], ["No such command"]),
    ],
)
def test_wrong_input_is_exit_code_2(capsys, arguments, words):
    code, out, err = say(capsys, *arguments)
    assert code == 2 and out == "" and all(word in err for word in words), err


TASK = """
import numpy as np
from torch import nn
import edgekd
x, y = np.random.default_rng(0).normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
{change}
def net(width, classes=3):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, classes))
task = edgekd.Task(name="mine", version="1", models={{"teacher": lambda: net(8), "student": lambda: net(4, {classes})}},
    data=edgekd.arrays(x[:40], y[:40], x[40:], y[40:], validation=0.2), metrics=(edgekd.top1(),), classes=3)
"""


@pytest.mark.parametrize(
    "change, classes, words",
    [
        ("", 5, ["[B, 3]", "[B, 5]"]),
        ("y = y + 1", 3, ["label", "3"]),
        ("x[7, 2] = np.nan", 3, ["NaN or infinite", "train"]),
        ("raise OSError('disk')", 3, ["OSError"]),
        ("import notthere", 3, ["notthere"]),
        ("y = y + 1; x[0] = np.inf", 5, ["labels are outside", "NaN or infinite", "[B, 5]", "problems"]),
    ],
)
def test_a_wrong_task_tells_all_at_once(tmp_path, capsys, change, classes, words):
    (tmp_path / "wrongtask.py").write_text(TASK.format(change=change, classes=classes))
    (tmp_path / "r.toml").write_text('task = "wrongtask:task"\n[[stage]]\nuse = "distill"\nepochs = 1\n')
    sys.modules.pop("wrongtask", None)
    code, _, err = say(capsys, "compress", "r.toml")
    assert code == 2 and all(word in err for word in words), err
    assert not (tmp_path / "runs").exists()


def test_divergence_is_exit_code_6(tmp_path, capsys):
    (tmp_path / "difftask.py").write_text(TASK.format(change="x = x * 1e18", classes=3))
    (tmp_path / "r.toml").write_text(
        'task = "difftask:task"\n'
        "[[stage]]\n"
        'use = "train"\n'
        "epochs = 2\n"
        "lr = 1e30\n"
        "[model.teacher]\n"
        "train = { epochs = 2, lr = 1e30 }\n"
    )
    code, _, err = say(capsys, "compress", "r.toml", "--quiet")
    assert code == 6 and "diverged" in err and "teacher" in err and "hint" in err


def test_what_cannot_be_pruned_is_named(tmp_path, capsys):
    text = TASK.format(change="", classes=3).replace("def net", """class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 3)
    def forward(self, x):
        return self.b(self.a(x).view(-1, 2, 16).flatten(1).reshape(-1, 32))
def net""").replace('"student": lambda: net(4, 3)', '"student": Fixed')  # fmt: skip
    (tmp_path / "fixedtask.py").write_text(text)
    (tmp_path / "r.toml").write_text(
        'task = "fixedtask:task"\n[[stage]]\nuse = "distill"\n[[stage]]\nuse = "prune"\nmacs = 0.5\n'
    )
    code, _, err = say(capsys, "compress", "r.toml")
    assert code == 2 and "`a`" in err, err


def test_interrupt_is_130_and_nothing_is_lost(tmp_path):
    import os
    import signal
    import time

    code = "from edgekd.cli import run; import sys; sys.exit(run(['compress', '--quiet', '--out', 'run']))"
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite that runs in the background has it ignored
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ, preexec_fn=heard, **streams)
    for _ in range(600):
        if (tmp_path / "run/log.jsonl").exists() and "epoch" in (tmp_path / "run/log.jsonl").read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err


def test_profile_and_compare_of_a_file(tmp_path, capsys, monkeypatch):
    import tiny
    import torch

    from edgekd.formats import onnx
    from edgekd.measure import jobs
    from edgekd.models.networks import perceptron
    from edgekd.quantization.torch_graph.capture import capture

    monkeypatch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
    tiny.hurry()
    x = torch.randn(40, 5)
    for name, width in (("a", 8), ("b", 64)):
        model = perceptron((width,), features=5, classes=3).eval()
        onnx.export(capture(model, x[:2]), None, x[:2], tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "data.npz", inputs=x.numpy(), labels=model(x).argmax(1).numpy())
    code, out, _ = say(
        capsys,
        "profile",
        "b.onnx",
        "--preset",
        "quick",
        "--data",
        "data.npz",
        "--json",
        "b.json",
        "--trace",
        "t.json",
        "--quiet",
    )
    assert code == 0 and "latency_p50_ms" in out and "100" in out
    assert json.loads((tmp_path / "b.json").read_text())["schema"] == "edgekd.profile/1" and json.loads(
        (tmp_path / "t.json").read_text()
    )
    code, out, _ = say(capsys, "compare", "a.onnx", "b.onnx", "--preset", "quick", "--quiet")
    # by chance, once in twenty
    assert "B / A" in out and "A / A" in out and code == (3 if "inconclusive" in out else 0)


def test_losses_that_do_not_fit_the_task_are_told_before_training(tmp_path, capsys):
    text = TASK.format(change="", classes=3)
    text += "def shapeless(student, teacher, batch):\n    return student.output\n"
    text += "def detached(student, teacher, batch):\n    return student.output.detach().sum(1)\n"
    (tmp_path / "losstask.py").write_text(text)
    losses = '[{ use = "losstask:shapeless" }, { use = "losstask:detached" }, { use = "kl" }]'
    (tmp_path / "r.toml").write_text(f'task = "losstask:task"\n[[stage]]\nuse = "distill"\nlosses = {losses}\n')
    code, _, err = say(capsys, "compress", "r.toml")
    assert code == 2 and "losses[0]" in err and "[4, 3] for 4 samples" in err and "losses[1]" in err, err
    assert "losses[2]" not in err and not (tmp_path / "runs").exists()


def test_warnings_of_numpy_do_not_reach_the_terminal(monkeypatch):
    import warnings

    from edgekd import __main__, cli

    def warned():
        for place in ("edgekd.samples.values", "numpy._core.fromnumeric", "recipe"):
            warnings.warn_explicit("overflow", RuntimeWarning, "x.py", 1, module=place)
        return 0

    monkeypatch.setattr(cli, "run", warned)
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            __main__.main()
    assert len(told) == 1  # that of a recipe's own code
