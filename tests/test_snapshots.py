"""What the command line says, kept in tests/snapshots/: a change of wording is a change of these files.

`pytest tests/test_snapshots.py --update-snapshots` writes them again. Times are made up, and numbers, digests, versions
and paths are masked in what a run prints, so that the files are the same on every machine.
"""

import contextlib
import difflib
import io
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from edgekd import cli, environment
from edgekd.hosts import arm
from edgekd.measure import jobs, machine
from edgekd.runtimes import worker
from edgekd.verbs.targets import calibrate

KEPT = Path(__file__).parent / "snapshots"
MACHINE = {"cpu": "A CPU", "features": ["avx2", "avx512_vnni", "avx512f", "fma"], "governor": None, "throttled": None,
           "architecture": "x86-64", "system": "Linux", "kernel": "6", "python": "3", "cores": 2, "mhz": None,
           "max_mhz": None, "celsius": None, "virtual": False, "caches": {}, "ram_bytes": 2**34}  # fmt: skip
RECIPE = "control = false\n" + tiny.SHORT + '[select]\nmaximize = ["top1"]\nminimize = ["file_bytes"]\n'
NUMBER = re.compile(r"(?<![\w.-])[-+]?\d+(,\d{3})*(\.\d+)*(\+\w+)?(e[-+]?\d+)?([kMx]\b)?")
OPERATORS = re.compile(r"(?<=\n)(\w+ +\S+ ms +\S+ %  .*\n)+")  # which there are depends on the CPU
MASKS = (
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "<digest>"),
    (OPERATORS, "<operators>\n"),
    (NUMBER, "#"),
    (re.compile(r"(?<=\S) {2,}"), "  "),
    (re.compile(r"(?m)^ {20,}"), 20 * " "),
)


class Shell:
    """Runs commands in a folder and writes down what they print. `masked`: without their numbers."""

    def __init__(self, folder: Path):
        self.folder, self.text = folder, ""

    def run(self, line: str, masked: bool = True) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(shlex.split(line))
        told, said = (self.clean(stream.getvalue(), masked) for stream in (out, err))
        assert "Traceback" not in said
        self.text += "".join([f"$ edgekd {line}\n", told, said and f"stderr:\n{said}", f"exit code {code}\n\n"])

    def clean(self, text: str, masked: bool) -> str:
        text = text.replace(str(self.folder), "<folder>")
        for pattern, mask in MASKS if masked else ():
            text = pattern.sub(mask, text)
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def compare(self, name: str, update: bool) -> None:
        """Raises AssertionError with what differs from the file that is kept."""
        path, found = KEPT / f"{name}.txt", self.text.rstrip() + "\n"
        if update:
            path.write_text(found, encoding="utf-8")
        kept = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = difflib.unified_diff(kept.splitlines(), found.splitlines(), "kept", "now", lineterm="", n=1)
        assert found == kept, "\n".join([*lines, "is it meant so? pytest tests/test_snapshots.py --update-snapshots"])


def undisturbed(lines: dict) -> dict:
    """What the processes of a timing wrote down, as if nothing disturbed them: each file is faster than the one
    before, so that int8 is."""
    for line in lines.values():
        line |= {"peak_rss_bytes": 10_000_000} if "peak_rss_bytes" in line else {}
        if "p50_ms" in line:
            ms = 2.0 - 0.1 * int(line["subject"].strip("s") if line["subject"] != jobs.CONTROL else 0)
            line |= {"p50_ms": ms, "p90_ms": ms, "load_ms": ms, "first_ms": ms, "cpu_share": 1.0, "n": 11}
            line |= {"warmup": {**line["warmup"], "stable": True}, "after": {**line["after"], "mhz": []}}
    return lines


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """A folder with a recipe and data, on a made-up machine without emulators, where no time is lost on timing."""
    folder, patch, genuine = tmp_path_factory.mktemp("snapshots"), pytest.MonkeyPatch(), worker.finished_lines
    tiny.settle(folder, patch)
    facts = {**environment.describe(), **MACHINE}
    patch.setattr(environment, "describe", lambda: dict(facts))
    patch.setattr(worker, "finished_lines", lambda *given, **more: undisturbed(genuine(*given, **more)))
    patch.setattr(arm, "emulator", lambda *_: None)
    patch.setenv("COLUMNS", "100")
    patch.setenv("PATH", str(Path(sys.executable).parent))
    patch.setenv("EDGEKD_CALIBRATIONS", str(folder / "calibrations"))
    patch.setitem(jobs.EFFORTS, "standard", jobs.EFFORTS["quick"])
    (folder / "recipe.toml").write_text(RECIPE)
    np.savez(folder / "data.npz", inputs=tiny.x[240:], labels=tiny.y[240:])
    yield folder
    patch.undo()


@pytest.fixture
def shell(surroundings, request):
    """Compares what was run with the test's file when the test ends."""
    shell = Shell(surroundings)
    yield shell
    shell.compare(request.node.name.removeprefix("test_"), request.config.getoption("--update-snapshots"))


@pytest.fixture(scope="module")
def compressed(surroundings):
    """What the first `compress` of a recipe said; its folder is `run`."""
    shell = Shell(surroundings)
    shell.run("compress recipe.toml --out run")
    return shell.text


def test_help(shell):
    verbs = cli.cli.list_commands(None)
    for line in ("--help", *(f"{verb} --help" for verb in verbs), "targets calibrate --help"):
        shell.run(line, masked=False)


def test_errors(shell):
    (shell.folder / "wrong.toml").write_text(
        'task = "tiny:task"\ntargets = ["host", "rasperry-pi-4"]\n[[stage]]\nuse = "distil"\n[[stage]]\nuse = "prune"\n'
        'macs = 2.0\ncriterion = "magnitud"\n[gate.any]\ntop1 = "min 97"\nfile_byts = "max 1 kB"\n'
    )
    (shell.folder / "not.onnx").write_text("not a model")
    for line in (
        "compres",
        "compress nowhere.toml",
        "compress wrong.toml",
        "compress --set distil.epochs=3",
        "compress --set distill.epochs=many",
        "compress --time-budget soon",
        "compress --target hosst",
        "compress --on host",
        "gate nowhere",
        "report nowhere",
        "explain nowhere",
        "profile not.onnx",
        "profile not.onnx --on telnet://board",
        "compare a.onnx b.onnx",
        "quantize not.onnx --data nowhere.npz --out out.onnx",
        "list targets nothing",
        "list losses kl",
        "targets calibrate nothing",
    ):
        shell.run(line, masked=False)


def test_list(shell):
    for kind in (
        "stages",
        "criteria",
        "ranges",
        "metrics",
        "targets",
        "targets raspberry-pi-4",
        "targets cortex-m7-stm32f746",
    ):
        shell.run(f"list {kind}".rstrip())


def test_doctor(shell):
    shell.run("doctor")


def test_schema(shell):
    shell.run("schema budget", masked=False)


def test_calibrate(shell, monkeypatch):
    from edgekd.predicting import probes

    times = {key: 1.0 + number for number, key in enumerate(probes.models())}
    monkeypatch.setenv("EDGEKD_CALIBRATIONS", str(shell.folder / "new"))
    monkeypatch.setattr(calibrate, "_times", lambda *_: (times, ("tokens int8",)))
    monkeypatch.setattr(machine, "stands_for", lambda host, wanted: (wanted, host))
    shell.run("targets calibrate raspberry-pi-4")


def test_compress_built_in_as_a_plan(shell):
    shell.run("compress --dry-run")


def test_compress(shell, compressed):
    shell.text += compressed
    shell.run("compress recipe.toml --out run")
    shell.run("compress recipe.toml --out run --set distill.epochs=2")


def test_gate(shell, compressed):
    (shell.folder / "budget.toml").write_text('[any]\ntop1 = ["min 99.9 %", "drop max 90 pt vs teacher"]\n')
    for options in ("", "--why", "--only deterministic", "--budget budget.toml"):
        shell.run(f"gate run {options}".rstrip())
    shell.run("gate run/bundles/host")


def test_report(shell, compressed):
    shell.run("report run")


def test_explain(shell, compressed):
    shell.run("explain run")
    shell.run("explain run --data data.npz")
    shell.run("quantize run/models/teacher.onnx --data data.npz --out teacher-int8.onnx --quiet")
    shell.run("explain teacher-int8.onnx --float run/models/teacher.onnx --data data.npz")


def test_profile(shell, compressed):
    shell.run("profile run/bundles/host/model.onnx --data data.npz")
    shell.run("profile run/bundles/host/model.onnx --target raspberry-pi-4")
    shell.run("profile run/bundles/host/model.onnx --target cortex-m7-stm32f746")


def test_compare(shell, compressed):
    shell.run("compare run/models/teacher.onnx run/bundles/host/model.onnx")


def test_quantize(shell, compressed):
    shell.run("quantize run/models/teacher.onnx --data data.npz --out int8.onnx")
