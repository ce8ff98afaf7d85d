"""ARM cores under emulation: the set-up from packages (fakes of apt, dpkg, pip and qemu in a folder), and real ones
where they were made."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import fake_packages
import numpy as np
import pytest

from edgekd import cli, environment, targets
from edgekd.errors import BaselineError, EnvironmentUnfit, UsageError
from edgekd.hosts import arm, arm_setup, emulator, packages
from edgekd.measure import emulation, jobs
from edgekd.progress import Silent
from edgekd.run import cross_cpu
from edgekd.verbs import _emulated, profile

A72 = targets.load("cortex-a72")
A53, A76 = targets.load("cortex-a53"), targets.load("cortex-a76")
needs_setup = pytest.mark.skipif(
    arm.find() is None or arm.emulator(arm.place()) is None, reason=f"there is no set-up: {arm.HINT}"
)
STUDENT = Path(__file__).parent.parent / "benchmarks/cifar10/student.onnx"


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    root = fake_packages.make(tmp_path / "fakes", arm.runtime())
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(root / "modules"))
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    return root


# ---------------------------------------------------------------- what a guest is told


def test_capability_words_by_hand():
    """Bits from the kernel's header: asimd 1, fphp 9, asimdhp 10, asimddp 20 of the first word; i8mm 13, bf16 14 of the
    second."""
    assert arm.flags_of(1 << 1 | 1 << 9 | 1 << 10 | 1 << 20, 1 << 13 | 1 << 14) == [
        "asimd",
        "fphp",
        "asimdhp",
        "asimddp",
        "i8mm",
        "bf16",
    ]
    assert arm.flags_of(1 << 22, 1 << 1) == ["sve", "sve2"] and arm.flags_of(0x8FB, 0)[-1] == "cpuid"
    assert arm.kernels(("neon", "dotprod")) == "dot product: yes, i8mm: no"


def test_cpuinfo_of_a_cortex_a72():
    """Main ID register 0x410fd083: implementer 0x41 (Arm), variant 0, part 0xd08 (Cortex-A72), revision 3."""
    lines = dict(line.split("\t: ") for line in arm.cpuinfo(["fp", "asimd"], 0x410FD083).splitlines() if line)
    assert (
        lines["CPU implementer"] == "0x41"
        and lines["CPU part"] == "0xd08"
        and lines["CPU variant"] == "0x0"
        and lines["CPU revision"] == "3"
    )
    assert lines["Features"] == "fp asimd" and lines["processor"] == "0"


# ---------------------------------------------------------------- the set-up, of local packages


def test_a_set_up_is_announced_made_verified_and_used(fakes):
    said = Said()
    text = arm_setup.setup(said)
    assert (
        f"onnxruntime {arm.runtime()} for arm64" in text
        and "cortex-a53, cortex-a72, cortex-a76" in text
        and "max" not in text
    )
    announced = said.lines[0]
    assert (
        all(f"{name} " in announced for name in (*fake_packages.DEBS, "numpy", "onnxruntime"))
        and str(arm.place()) in announced
    )
    assert "MB" in announced and "unknown" not in announced.replace("0 files of unknown size", "")
    place = arm.place()
    assert {p.name for p in place.iterdir()} == {"setup.json", "sysroot", "site", "cores"} and not place.with_name(
        f"{place.name}.work"
    ).exists()
    assert (place / "sysroot/usr/bin/python3.11").is_file() and not (place / "sysroot/usr/share").exists()
    assert (place / "site/onnxruntime/__init__.py").is_file() and not (place / "site/onnxruntime/tests").exists()
    launch = emulator.launch(A72)
    root = Path(launch["command"][launch["command"].index("-L") + 1])
    assert "0xd08" in (root / "proc/cpuinfo").read_text() and (root / "lib/libc.so.6").read_text() == "libc6"
    assert launch["variables"]["PYTHONPATH"] == str(place / "site") and launch["kernels"] == "dot product: no, i8mm: no"
    asked = len(fake_packages.log(fakes))
    assert "verified" in arm_setup.setup(Said()) and len(fake_packages.log(fakes)) == asked  # nothing is fetched again


def test_a_changed_file_is_found_and_the_set_up_made_anew(fakes):
    arm_setup.setup(Said())
    file = arm.place() / "site/numpy/__init__.py"
    file.write_text("import nothing")
    assert arm_setup.verify(arm.place(), Said()) == "site/numpy/__init__.py has changed"
    said = Said()
    arm_setup.setup(said)
    assert "has changed: the set-up is made again" in said.lines[0] and file.read_text() == ""
    file.unlink()
    assert arm_setup.verify(arm.place(), Said()) == "site/numpy/__init__.py is missing"
    (arm.place() / "setup.json").write_text("{}")
    assert arm.find() is None


@pytest.mark.parametrize("name", ["zlib1g", "onnxruntime"])
def test_interrupted_it_goes_on_from_what_was_fetched(fakes, name):
    (fakes / "fail").write_text(name)
    with pytest.raises(EnvironmentUnfit, match="can't be fetched"):
        arm_setup.setup(Said())
    assert not arm.place().exists() and arm.find() is None
    (fakes / "fail").unlink()
    arm_setup.setup(Said())
    fetched = [line for line in fake_packages.log(fakes) if line.startswith(("apt-get download", "pip download"))]
    debs = len(fake_packages.DEBS)
    assert arm.find() is not None and len(fetched) == debs + 2 + 1  # the one that failed was asked for twice


def test_half_a_file_is_fetched_again(fakes):
    (fakes / "fail").write_text("onnxruntime")
    with pytest.raises(EnvironmentUnfit):
        arm_setup.setup(Said())
    (fakes / "fail").unlink()
    files = arm.place().with_name(f"{arm.place().name}.work") / "files"
    (files / "libc6_1.0-1_arm64.deb").write_bytes(b"half")
    arm_setup.setup(Said())
    assert (arm.place() / "sysroot/lib/libc.so.6").read_text() == "libc6"


def test_a_file_with_another_digest_is_refused(fakes, capsys):
    (fakes / "wrong").write_text("libc6")
    assert cli.run(["doctor", "--setup", "arm-emulator", "--quiet"]) == BaselineError.exit_code == 5
    assert "its sha256 differs" in capsys.readouterr().err and not arm.place().exists()


def test_what_does_not_start_is_no_set_up(fakes):
    arm_setup.setup(Said())
    (fakes / "broken").write_text("")
    assert "does not start" in arm_setup.verify(arm.place(), Said())
    shutil.rmtree(arm.place())
    with pytest.raises(EnvironmentUnfit, match="does not run the arm64 Python"):
        arm_setup.setup(Said())
    assert arm.find() is None


def test_without_apt_or_pip_all_that_lacks_is_said(fakes, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    (fakes / "modules/pip/__main__.py").write_text("raise SystemExit(1)")
    assert cli.run(["doctor", "--setup", "arm-emulator", "--quiet"]) == 4
    said = capsys.readouterr().err
    assert "no apt-get, no apt-cache, no dpkg" in said and "has no pip" in said and "2 problems" in said


def test_without_an_emulator_on_the_path_one_is_fetched_with_its_libraries(fakes, monkeypatch):
    which = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name.startswith("qemu") else which(name))
    said = Said()
    arm_setup.setup(said)
    assert "qemu-user 1:7.2-1" in said.lines[0] and "libcapstone4 4.0-5" in said.lines[0]
    own = arm.place() / "qemu"
    assert {str(p.relative_to(own)) for p in own.rglob("*") if p.is_file()} == {
        "qemu-aarch64",
        "bin/qemu-aarch64",
        "lib/libcapstone.so.4",
    }
    launch = emulator.launch(A72)
    assert launch["command"][0] == str(own / "qemu-aarch64")
    (own / "bin/qemu-aarch64").write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH" "$@"\n')
    assert (
        subprocess.run([own / "qemu-aarch64", "-x", "a b"], capture_output=True, text=True).stdout
        == f"{own / 'lib'} -x a b\n"
    )
    assert launch["command"][3:5] == ["-U", "LD_LIBRARY_PATH"]  # the guest's libraries are others


def test_without_a_network_it_says_so(fakes):
    (fakes / "offline").write_text("")
    with pytest.raises(EnvironmentUnfit, match="package lists can't be read: Failed to fetch"):
        arm_setup.setup(Said())


def test_ubuntu_keeps_arm_elsewhere(tmp_path, fakes):
    apt = packages.Apt(tmp_path / "apt", "arm64")
    packages.update(apt, {"ID": "ubuntu", "VERSION_CODENAME": "noble"})
    lines = (apt.folder / "sources.list").read_text().splitlines()
    assert len(lines) == 3 and all("ubuntu-ports noble" in line and "signed-by=" in line for line in lines)
    assert any(option.startswith("-oDir::Etc::SourceList=") for option in apt.options())
    host = packages.Apt(tmp_path / "host", "amd64", installed=True)
    packages.update(host, {"ID": "ubuntu", "VERSION_CODENAME": "noble"})
    assert not any("status" in option or "SourceList" in option for option in host.options())


# ---------------------------------------------------------------- targets


def test_without_the_set_up_it_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentUnfit, match=r"(?s)target cortex-a72.*doctor --setup arm-emulator"):
        emulator.launch(A72)
    assert arm.facts() == {"arm-emulator": f"not set up ({arm.HINT})"}
    assert (
        cli.run(["profile", str(STUDENT), "--target", "raspberry-pi-4", "--quiet", "--json", str(tmp_path / "p.json")])
        == 4
    )
    out, err = capsys.readouterr()
    # what needs no emulator is told
    assert "doctor --setup arm-emulator" in err and "not run: there is no arm64 runtime" in out
    figures = json.loads((tmp_path / "p.json").read_text())["measurements"]
    assert {m["name"] for m in figures} == {"file_bytes", "parameters", "macs", "activation_bytes", "latency_p50_ms"}
    assert {m["origin"] for m in figures} == {"counted", "predicted"}


def test_a_core_that_nothing_can_be_is_counted_and_predicted(capsys):
    assert cli.run(["profile", str(STUDENT), "--target", "snapdragon-8gen1-big", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "latency_at_least_ms" in out and "a bound" in out and "file_bytes" in out and "can't be emulated" in out


def test_what_this_machine_has_more_than_is_emulated_where_it_can_be(monkeypatch):
    facts = {**environment.describe(), "architecture": "x86-64", "features": ["avx2", "fma", "avx512f", "avx512_vnni"]}
    monkeypatch.setattr("edgekd.environment.describe", lambda: facts)
    asked = []
    monkeypatch.setattr(emulation, "launches", lambda wanted: ({}, []))
    monkeypatch.setattr(_emulated, "emulate", lambda model, source, *, targets, **_: asked.append(targets))
    profile.profile(STUDENT, target="x86-64-avx2")
    assert asked == [["x86-64-avx2"]]


def test_max_is_no_device(fakes):
    for name in ("max", None):
        with pytest.raises(EnvironmentUnfit, match="not a device's core|can't be emulated"):
            emulator.launch(dataclasses.replace(A72, emulated_as=name))
    arm_setup.setup(Said())
    with pytest.raises(EnvironmentUnfit, match="qemu 7.2.22 has no such ARM core"):
        emulator.launch(dataclasses.replace(A72, emulated_as="cortex-a55"))


def test_arm_targets_are_emulated_on_x86_and_one_cpu_runs_once(monkeypatch):
    facts = {"architecture": "x86-64", "features": ["avx2", "fma"]}
    monkeypatch.setattr("edgekd.environment.describe", lambda: facts)
    pi = targets.load("raspberry-pi-4")
    assert cross_cpu.devices([A72, pi, targets.load("x86-64-avx2")]) == [A72, pi]
    ran, order, here = [], np.array([2, 0, 1]), np.eye(3, dtype=np.float32)

    def answer(target, launch):
        ran.append(target.name)
        return here[:2]

    a55 = targets.load("cortex-a55")
    wanted = {t.name: (t, {"kernels": "dot product: no"}) for t in (A72, pi, A76, a55)}
    run = emulation.Emulation(STUDENT, "onnxruntime", {}, order, wanted)
    found = run.answers(here, answer, lambda *_: None)
    assert ran == ["cortex-a72", "cortex-a76"] and [a.target for a in found] == [
        "cortex-a72",
        "raspberry-pi-4",
        "cortex-a76",
        "cortex-a55",
    ]
    assert "same kernels as cortex-a55" in found[3].kernels and "same kernels" not in found[1].kernels
    assert all(a.rows.tolist() == [2, 0] for a in found) and found[1].cpu == "cortex-a72"
    made = cross_cpu.figures(found, None, [])  # no labels: the share of numbers
    (share,) = made["raspberry-pi-4"]
    assert (share.name, share.value, share.n, share.origin) == (
        "equal_outputs",
        100,
        2,
        "emulated",
    ) and "dot product: no" in share.note


def test_a_trace_of_an_emulated_target_is_refused():
    with pytest.raises(UsageError, match="record of times"):
        profile.profile(STUDENT, target="raspberry-pi-4", trace="t.json")


# ---------------------------------------------------------------- real cores


def small(path):
    """A small int8 CNN without sums: two convolutions and a fully connected layer, quantized from random inputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng, path = np.random.default_rng(0), Path(path)
    weights = {
        "w1": rng.normal(size=(8, 3, 3, 3)) * 0.3,
        "w2": rng.normal(size=(16, 8, 3, 3)) * 0.2,
        "w3": rng.normal(size=(1024, 10)) * 0.1,
    }
    constants = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    constants.append(numpy_helper.from_array(np.array([0, -1], np.int64), "shape"))
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], pads=[1] * 4, strides=[1, 1]),
        node("Relu", ["c"], ["d"]),
        node("Reshape", ["d", "shape"], ["e"]),
        node("MatMul", ["e", "w3"], ["y"]),
    ]
    given, got = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", ["batch", 3, 16, 16]), ("y", ["batch", 10]))
    )
    model = helper.make_model(
        helper.make_graph(nodes, "g", [given], [got], constants), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    onnx.save(model, path.with_suffix(".float.onnx"))
    np.savez(path.with_suffix(".npz"), inputs=rng.normal(size=(32, 3, 16, 16)).astype(np.float32))
    from edgekd.verbs.quantize import quantize

    quantize(path.with_suffix(".float.onnx"), data=path.with_suffix(".npz"), out=path)
    return path


@needs_setup
def test_a_cores_own_words_are_the_targets_features():
    setup, qemu = arm.find(), arm.emulator(arm.place())
    found = {name: arm.core(setup, qemu, name) for name in ("cortex-a53", "cortex-a72", "cortex-a76")}
    # implementer and part by the cores' technical reference manuals
    assert {name: (c.midr >> 24, c.midr >> 4 & 0xFFF) for name, c in found.items()} == {
        "cortex-a53": (0x41, 0xD03),
        "cortex-a72": (0x41, 0xD08),
        "cortex-a76": (0x41, 0xD0B),
    }
    assert found["cortex-a72"].features == ("neon",) and set(found["cortex-a76"].features) == {
        "neon",
        "fp16",
        "dotprod",
    }


@needs_setup
def test_a_small_int8_network_answers_the_same_on_three_cores(tmp_path):
    path = small(tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(16, 3, 16, 16)).astype(np.float32)
    (here,) = jobs.score(path, x, folder=tmp_path / "here").values()
    assert len(np.unique(here)) > 20
    for core in (A53, A72, A76):
        (there,) = jobs.score(path, x, folder=tmp_path / core.name, launch=emulator.launch(core)).values()
        assert (here == there).all()


@needs_setup
def test_profile_of_a_board_counts_and_emulates_and_times_nothing(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz", inputs=rng.normal(size=(32, 3, 32, 32)).astype(np.float32), labels=rng.integers(0, 10, 32)
    )
    arguments = [
        "profile",
        str(STUDENT),
        "--target",
        "raspberry-pi-4",
        "--data",
        str(tmp_path / "d.npz"),
        "--json",
        str(tmp_path / "p.json"),
    ]
    assert cli.run(arguments) == 0
    out, err = capsys.readouterr()
    assert (
        "emulated, not measured: raspberry-pi-4" in err
        and "sample: all of 32 samples" in out
        and "dot product: no" in out
    )
    figures = json.loads((tmp_path / "p.json").read_text())["measurements"]
    wanted = {"file_bytes", "parameters", "macs", "activation_bytes", "top1", "host_agreement", "target_spread"}
    # instructions need a compiler, and a plugin
    assert wanted <= {m["name"] for m in figures} <= {*wanted, "instructions", "latency_p50_ms"}
    assert {m["origin"] for m in figures} == {"counted", "emulated", "predicted"}
    assert [(m["name"], m["origin"]) for m in figures if m["unit"] == "ms"] == [("latency_p50_ms", "predicted")], (
        "no time is taken here"
    )
