"""Target files and the facts of a machine."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

import edgekd
from edgekd import environment, runtimes, targets
from edgekd.errors import UsageError
from edgekd.measure import machine
from edgekd.metrics import top1
from edgekd.probes import memory, static
from edgekd.records import Deployment, Measurement, Runtime, Target
from edgekd.run import evaluate
from edgekd.run.schemas import schema
from edgekd.verbs import compare, profile, quantize
from edgekd.verbs import list as listing
from edgekd.verbs.targets import calibrate

ROOT = Path(__file__).parent.parent
ZEN5 = {
    "cpu": "some cpu", "architecture": "x86-64", "features": ["avx2", "avx512_vnni", "avx512f", "fma"], "cores": 4,
    "max_mhz": None, "mhz": 2600.0, "caches": {"l2": 2**20}, "ram_bytes": 2**33, "versions": {"onnxruntime": "1.31.1"},
    "virtual": True, "governor": None, "kernel": "6",
}  # fmt: skip


SHIPPED = [n for n in targets.names() if n != "host"]
ARM = [n for n in SHIPPED if targets.load(n).architecture == "aarch64"]
PLAIN, DOT, MATRIX = {"neon"}, {"neon", "fp16", "dotprod"}, {"neon", "fp16", "dotprod", "i8mm", "bf16"}
CORES = {  # what Arm's cores have of what chooses kernels: Armv8.0, Armv8.2 with the dot product, Armv9.0
    "cortex-a53": PLAIN, "cortex-a72": PLAIN,
    "cortex-a55": DOT, "cortex-a76": DOT, "cortex-a77": DOT, "cortex-a78ae": DOT, "cortex-x1": DOT,
    "cortex-x2": MATRIX, "cortex-a510": MATRIX,
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_targets_load_and_give_a_source_for_every_fact(name):
    target = targets.load(name)
    plain = Target(name=name, title=target.title, architecture=target.architecture)
    told = {f.name for f in dataclasses.fields(Target) if getattr(target, f.name) != getattr(plain, f.name)} - {
        "sources"
    }
    written = set(tomllib.loads((ROOT / "targets" / f"{name}.toml").read_text()))
    assert told | written - {"title", "architecture", "sources"} <= set(target.sources)
    assert {"features", "runtime", "int8"} <= set(target.sources)
    assert all(len(source) >= 8 for source in target.sources.values())


def test_the_devices_that_people_ask_for_are_there():
    wanted = {
        "raspberry-pi-3b-plus",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "raspberry-pi-zero-2w",
        "rk3566",
        "jetson-orin-nano",
        "imx8m-plus",
    }
    wanted |= {
        f"{soc}-{kind}"
        for soc in ("rk3399", "rk3588", "snapdragon-865", "snapdragon-888", "snapdragon-8gen1")
        for kind in ("big", "little")
    }
    wanted |= {
        "cortex-a53",
        "cortex-a55",
        "cortex-a72",
        "cortex-a76",
        "x86-64-sse42",
        "x86-64-avx2",
        "x86-64-avx-vnni",
        "x86-64-avx512-vnni",
    }
    assert wanted <= set(SHIPPED)
    assert {targets.load(n).core for n in SHIPPED if not targets.runs(targets.load(n))} == {"cortex-m4", "cortex-m7"}


@pytest.mark.parametrize("name", ARM)
def test_features_are_those_of_the_core_and_stand_ins_have_the_same(name):
    target = targets.load(name)
    assert target.core in CORES, "add the core's features to CORES, from its reference manual"
    assert set(target.features) == CORES[target.core]
    assert not targets.saturates(target), "their kernels add at 32 bits"
    if target.emulated_as is None:
        assert "i8mm" in target.features, "an emulator has a core for every other"
    else:
        assert CORES[target.emulated_as] == CORES[target.core]
        stand_in = target.sources["emulated_as"].startswith("stand-in: ")
        assert stand_in == (target.emulated_as != target.core)


@pytest.mark.parametrize("program, architecture", [("qemu-aarch64", "aarch64"), ("qemu-x86_64", "x86-64")])
def test_emulators_know_the_cores(program, architecture):
    if not shutil.which(program):
        pytest.skip(f"no {program} on the PATH")
    # which ends with 1
    known = set(subprocess.run([program, "-cpu", "help"], capture_output=True, text=True).stdout.split())
    found = {t.emulated_as for t in map(targets.load, SHIPPED) if t.architecture == architecture and t.emulated_as}
    assert found and found <= known and "max" not in found


def test_boards_of_one_core_have_its_int8():
    """Such targets share a scheme, so that one training serves them."""
    found = [targets.load(n) for n in ARM]
    assert all((t.int8, t.channel_multiple) == (found[0].int8, found[0].channel_multiple) for t in found)


ZERO = {**ZEN5, "architecture": "aarch64", "features": ["neon"]}


@pytest.mark.parametrize(
    "name, facts, wanted",
    [
        ("host", ZEN5, "measured"),
        ("raspberry-pi-4", ZEN5, "emulated"),
        ("raspberry-pi-4", ZERO, "measured"),
        ("raspberry-pi-4", {**ZERO, "features": ["neon", "dotprod"]}, "emulated"),
        ("raspberry-pi-5", ZERO, "emulated"),
        ("snapdragon-8gen1-big", ZEN5, "counted"),
        ("cortex-m4-stm32l4r5", ZERO, "counted"),
        ("x86-64-avx512-vnni", ZEN5, "measured"),
        ("x86-64-avx512-vnni", {**ZEN5, "features": [*ZEN5["features"], "avx_vnni"]}, "answers"),
        ("x86-64-avx2", ZEN5, "emulated"),
    ],
)
def test_how_figures_are_had(name, facts, wanted):
    assert targets.figures(targets.load(name), facts) == wanted


def test_what_has_no_runtime_is_matched_by_no_machine():
    small = targets.load("cortex-m7-stm32f746")
    assert targets.matches(small, ZEN5) == ["armv7e-m"] and not targets.runs(small) and targets.kernels(small) == "DSP"
    assert targets.matches(dataclasses.replace(small, architecture="x86-64"), ZEN5) == ["a runtime for it"]


@pytest.mark.parametrize("name", ["raspberry-pi-zero-2w", "cortex-m4-stm32l4r5", "x86-64-avx2", "host"])
def test_a_target_is_told_with_its_sources(name):
    text = listing.target(name)
    assert text.startswith(f"{name}: ")
    assert targets.load(name).architecture in text and "runtime" in text and "None" not in text
    assert all(source.split()[0][:12] in text for source in targets.load(name).sources.values())


def test_the_list_of_targets_fits_100_columns():
    lines = listing.listing(["targets"]).splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in targets.names()}
    assert set(rows) == set(targets.names())
    assert all(len(row.split()) > 3 for row in rows.values())  # none is folded
    assert rows["cortex-m4-stm32l4r5"].split()[-2:] == ["-", "-"] and rows["host"].split()[-2:] == [
        "measured",
        "measured",
    ]
    assert rows["raspberry-pi-zero-2w"].split()[1:5] == ["cortex-a53", "1000", "512", "MiB"]


def test_the_x86_kinds_differ_where_their_kernels_do():
    found = {name: targets.load(name) for name in targets.names() if name.startswith("x86")}
    assert {name for name, target in found.items() if targets.saturates(target)} == {"x86-64-avx2"}


def test_one_scheme_suits_all_that_ship():
    assert {(t.int8.weight_bits, t.int8.pairs16) for t in map(targets.load, targets.names())} == {(8, True)}


def test_weights_of_the_full_range_are_a_fact_that_saturating_targets_cannot_have(tmp_path):
    path = tmp_path / "mine.toml"
    text = (
        'title = "x"\narchitecture = "x86-64"\nfeatures = ["avx2"{}]\nint8 = {{ pairs16 = false, weight_bits = {} }}\n'
    )
    for more, bits in ((', "avx_vnni"', 8), ("", 7)):
        path.write_text(text.format(more, bits))
        assert not targets.load(path).int8.pairs16
    path.write_text(text.format("", 8))
    with pytest.raises(UsageError, match="saturate") as error:
        targets.load(path)
    assert [p.place for p in error.value.problems] == ["mine.toml: int8.pairs16"]


@pytest.mark.parametrize(
    "features, wanted",
    [
        (["avx2"], True),
        (["avx2", "avx512f"], True),
        (["avx2", "avx_vnni"], False),
        (["avx2", "avx512f", "avx512_vnni"], False),
        ([], False),
    ],
)
def test_host_adds_pairs_in_16_bits_with_avx2_but_no_vnni(features, wanted):
    host = targets.host({**ZEN5, "features": features})
    assert targets.saturates(host) == wanted and host.int8.pairs16


def test_host_has_this_machines_facts():
    target = targets.host(ZEN5)
    assert (target.name, target.title, target.threads, target.channel_multiple) == ("host", "some cpu", 1, 8)
    assert (target.clock_mhz, target.ram_bytes, target.runtime.version) == (2600.0, 2**33, "1.31.1")
    assert set(target.sources) >= {"features", "cores", "ram_bytes"}
    assert targets.load("host") == targets.host(environment.describe())


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UsageError, match="`sparc` is not known"):
        targets.host({**ZEN5, "architecture": "sparc"})


def test_matches_names_what_is_missing():
    assert targets.matches(targets.load("x86-64-avx512-vnni"), ZEN5) == []
    assert targets.matches(targets.load("x86-64-avx-vnni"), ZEN5) == ["avx_vnni"]
    assert targets.matches(targets.load("x86-64-avx2"), {**ZEN5, "architecture": "aarch64"}) == ["x86-64"]
    assert targets.matches(targets.host(ZEN5), {**ZEN5, "features": []}) == []


GOOD = 'title = "mine"\narchitecture = "x86-64"\n'


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + 'features = ["avx2"]\nram_bytes = 1024\n[caches]\nl1d = 32768\n')
    target = targets.load(path)
    assert target == targets.load(str(path))
    assert (target.name, target.features, target.ram_bytes, target.caches, target.int8.weight_bits) == (
        "mine",
        ("avx2",),
        1024,
        {"l1d": 32768},
        8,
    )


def test_every_problem_of_a_file_is_reported_at_once(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(
        'titel = "x"\n'
        'architecture = "x86_64"\n'
        'features = ["avx2", "dotprdo"]\n'
        "ram_bytes = 0\n"
        "clock_mhz = inf\n"
        'threads = "one"\n'
        "flash_bytes = 1.5\n"
        "[int8]\n"
        "weight_bits = 9\n"
        "bits = 3\n"
        "[sources]\n"
        "rma = 'x'\n"
    )
    with pytest.raises(UsageError) as caught:
        targets.load(path)
    found = {p.place.removeprefix("bad.toml: "): p for p in caught.value.problems}
    facts = {"titel", "title", "architecture", "features.1", "ram_bytes", "clock_mhz", "threads", "flash_bytes"}
    assert set(found) == facts | {"int8.weight_bits", "int8.bits", "sources.rma"}
    assert found["titel"].hint == "did you mean `title`?"
    assert found["features.1"].hint == "did you mean `dotprod`?"
    assert found["architecture"].hint == "did you mean `x86-64`?"


WRONG = [
    (GOOD + 'name = "x"', "there is no fact `name`"),
    ("title = ", "is not valid TOML"),
    ("int8 = 3\n" + GOOD, "int8"),
]
WRONG += [('threads = "2"\n' + GOOD, "threads"), (GOOD + 'features = ["dotprod"]', "x86-64 has no `dotprod`")]
WRONG += [
    (GOOD + 'core = "Cortex A72"', "is not a core's name"),
    (GOOD + "[caches]\nl1 = 32768", "caches.l1: 'l1' is not known"),
]
WRONG += [
    (GOOD + "[caches]\nl2 = 0", "caches.l2"),
    (GOOD + '[sources]\nram_bytes = "guessed"', "the fact `ram_bytes` is not given"),
]
WRONG += [(GOOD.replace("x86-64", "armv7e-m"), "onnxruntime does not run on armv7e-m")]
WRONG += [('emulated_as = "max"\n' + GOOD + '[runtime]\nname = "none"', "there is no runtime to emulate")]
WRONG += [(GOOD + "caches = " + "[" * n + "]" * n, "is not valid TOML: nested too deep") for n in (100, 20_000)]
WRONG += [
    (GOOD + "a" + ".a" * 5000 + " = 1", "nested too deep"),
    (GOOD + "ram_bytes = " + "9" * 5000, "is not valid TOML"),
]
WRONG += [
    (GOOD + '[sources]\n"../x" = "a book"', "there is no fact `../x`"),
    (GOOD + 'emulated_as = "\\u001b[2J"', "control characters"),
]
WRONG += [(GOOD + '[runtime]\nname = "executorch"', "runtime.name: edgekd has no runtime `executorch`")]
WRONG += [
    (GOOD + '[runtime]\nname = "worker"', "edgekd has no runtime `worker`"),
    (GOOD + '[runtime]\nname = "onnxruntim"', "did you mean `onnxruntime`"),
]
WRONG += [
    (GOOD + "[int8]\nactivation_bits = 7", "int8.activation_bits: is 7"),
    ("cores = 2\nthreads = 3\n" + GOOD, "threads: is 3, but there are 2"),
]
WRONG += [(GOOD.replace("mine", "\\u001b[31m"), "title: has control characters")]


@pytest.mark.parametrize("text, message", WRONG)
def test_other_wrong_files(tmp_path, text, message):
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        targets.load(path)


def test_the_folder_of_runtimes_is_the_list(monkeypatch, tmp_path):
    assert runtimes.names() == ["onnxruntime"]
    for name, text in (("executorch", 'FORMAT = "pte"\n'), ("agent", 'x = "FORMAT = "\n')):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(runtimes, "__file__", str(tmp_path / "__init__.py"))
    assert runtimes.names() == ["executorch"]


def test_a_machine_with_fewer_cores_than_threads_has_not_the_targets_times():
    wide = Target("wide", "wide", "x86-64", threads=8)
    assert (
        targets.lacking(wide, ZEN5) == ["8 cores"] and targets.lacking(dataclasses.replace(wide, threads=4), ZEN5) == []
    )


def test_answers_take_one_core_however_many_threads_the_target_has(monkeypatch):
    """Of a machine that is the target's but for its cores, answers are measured and times are not."""
    wide = Target("wide", "wide", "x86-64", features=tuple(ZEN5["features"]), threads=8)
    alike = dataclasses.replace(wide, threads=4)
    assert targets.matches(wide, ZEN5) == [] and [targets.times(t, ZEN5) for t in (wide, alike)] == [False, True]
    assert [targets.figures(t, ZEN5) for t in (wide, alike)] == ["answers", "measured"]
    for probe in (static, memory):
        monkeypatch.setattr(probe, "measure", lambda *given: ())
    monkeypatch.setattr(evaluate.of_file, "predicted", lambda file, target, sample: ("predicted",))
    labels = np.arange(6) % 3
    resolved = SimpleNamespace(
        targets=(wide,),
        data=lambda split: SimpleNamespace(labels=labels, inputs={"x": np.zeros((6, 3))}),
        task=SimpleNamespace(metrics=(top1(),), inputs=(("x",),), output=None, declared=None),
    )
    artifact = SimpleNamespace(folder=Path("."), facts={})
    o = evaluate.Observed(
        SimpleNamespace(targets=("wide",), deployment=Deployment()),
        artifact,
        dict.fromkeys(evaluate.SPLITS, np.eye(3)[labels]),
    )
    *figures, latency = evaluate.described(o, None, {}, resolved, {"wide": SimpleNamespace(facts=ZEN5)})
    assert latency == "predicted" and {(m.split, m.origin, m.target) for m in figures if m.name == "top1"} == {
        (split, "measured", "wide") for split in evaluate.SPLITS
    }


@pytest.mark.parametrize(
    "version, told", [("1.22.0", "with onnxruntime 1.31.1, the target has 1.22.0"), ("1.31.1", ""), ("", "")]
)
def test_figures_of_another_version_of_the_runtime_say_so(version, told):
    target = Target("mine", "mine", "x86-64", runtime=Runtime("onnxruntime", version))
    assert targets.differing(target, ZEN5) == told and targets.differing(target, {}) == ""
    one = Measurement("latency_p50_ms", "ms", 1, 1, 1, 1, None, "mine", "measured", note="noisy")
    assert [m.note for m in machine.noted([one], target, ZEN5)] == ["noisy" + f"; {told}" * bool(told)]


@pytest.mark.parametrize("verb", ["profile", "compare", "quantize", "calibrate", "compress"])
def test_every_verb_refuses_what_edgekd_cant_do_for_a_target(tmp_path, verb):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + '[runtime]\nname = "executorch"\n[int8]\nactivation_bits = 7\n')
    given, model = {"target": str(path)}, tmp_path / "m.onnx"
    call = {
        "profile": lambda: profile.profile(model, **given),
        "compare": lambda: compare.compare(model, model, **given),
        "quantize": lambda: quantize.quantize(model, data=model, out=tmp_path / "o.onnx", **given),
        "calibrate": lambda: calibrate.calibrate(str(path)),
        "compress": lambda: edgekd.compress(targets=[str(path)], dry_run=True),
    }[verb]
    with pytest.raises(UsageError) as error:
        call()
    text = str(error.value)
    assert "no runtime `executorch`" in text and "activation_bits" in text


def test_host_is_no_name_for_a_file(tmp_path):
    (tmp_path / "host.toml").write_text(GOOD)
    with pytest.raises(UsageError, match="`host` is this machine"):
        targets.load(tmp_path / "host.toml")


def test_wrong_names_and_missing_files():
    with pytest.raises(UsageError, match="did you mean `host`"):
        targets.load("hots")
    with pytest.raises(UsageError, match="did you mean `rk3588-big` or `rk3588-little`"):
        targets.load("rk3588")
    with pytest.raises(UsageError, match="edgekd list targets"):
        targets.load("toaster")
    with pytest.raises(UsageError, match="No such file"):
        targets.load("nowhere/board.toml")
    with pytest.raises(UsageError, match="no target is named `\\.\\.`"):
        targets.load("..")


def test_environment_is_plain_and_nameless():
    facts = environment.describe()
    text = json.dumps(facts)
    assert facts["cores"] >= 1 and facts["ram_bytes"] > 2**20 and facts["architecture"] in ("x86-64", "aarch64")
    assert str(Path.home()) not in text and os.uname().nodename not in [v for v in facts.values() if isinstance(v, str)]


def test_environment_id_leaves_out_what_changes_by_itself():
    id = environment.environment_id(ZEN5)
    assert len(id) == 12 and id == environment.environment_id({**ZEN5, "mhz": 800.0, "ram_bytes": 2**33 - 2**20})
    for other in (
        {"cpu": "another"},
        {"kernel": "7"},
        {"versions": {"onnxruntime": "1.32"}},
        {"ram_bytes": 2**34},
        {"features": ["avx2"]},
    ):
        assert id != environment.environment_id({**ZEN5, **other})


def test_environment_of_an_arm_board(tmp_path, monkeypatch):
    """The files of a Raspberry Pi 5 in place of this machine's."""
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B\x00")
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
    )
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8245248 kB\n")
    cache = tmp_path / "sys/devices/system/cpu/cpu0/cache/index0"
    cache.mkdir(parents=True)
    for name, text in (("level", "1\n"), ("type", "Data\n"), ("size", "64K\n")):
        (cache / name).write_text(text)
    frequency = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    frequency.mkdir()
    (frequency / "cpuinfo_max_freq").write_text("2400000\n")
    (frequency / "scaling_governor").write_text("ondemand\n")
    monkeypatch.setattr(environment, "_SYSTEM", tmp_path)
    monkeypatch.setattr(environment.reading.platform, "machine", lambda: "aarch64")
    facts = environment.describe()
    assert facts["cpu"] == "Raspberry Pi 5 Model B (1 x Cortex-A76)" and facts["architecture"] == "aarch64"
    assert facts["features"] == ["dotprod", "fp16", "neon"]
    assert (facts["max_mhz"], facts["governor"], facts["caches"], facts["ram_bytes"]) == (
        2400.0,
        "ondemand",
        {"l1d": 65536},
        8245248 * 1024,
    )
    assert not targets.saturates(targets.host(facts))


def test_describing_imports_no_heavy_library():
    heavy = "[m for m in ('torch', 'onnxruntime', 'onnx', 'numpy') if m in sys.modules]"
    code = f"import sys; from edgekd import environment; environment.describe(); print({heavy})"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_it_is_told_how_a_latency_is_had(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_CALIBRATIONS", str(tmp_path))
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path))
    machine = {**ZEN5, "cpu": "", "cores": 1, "max_mhz": 1, "mhz": 1, "caches": {}, "ram_bytes": 1, "versions": {}}
    monkeypatch.setattr(targets.environment, "describe", lambda: machine)
    text = listing.target("raspberry-pi-4")
    assert "latency: predicted, transferred from" in text and "targets calibrate raspberry-pi-4 --on" in text
    assert "once this machine is set up: edgekd doctor --setup arm-emulator" in text
    assert "a bound and no prediction" in listing.target("snapdragon-8gen1-big") and "latency" not in listing.target(
        "cortex-m7-stm32f746"
    )
    table = listing.listing(["targets"])
    assert "emulates after `edgekd doctor --setup arm-emulator`" in table
    rows = {
        line.split()[0]: line.split()[-2:]
        for line in table.splitlines()
        if line.split() and line.split()[0] in targets.names()
    }
    assert rows["raspberry-pi-4"] == ["emulated", "predicted"] and rows["snapdragon-8gen1-big"] == ["-", "bound"]
    (tmp_path / "raspberry-pi-4.json").write_text("{}")
    assert "damaged" in listing.listing(["targets"])  # and all others are still told


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_targets_are_as_their_schema_says(name):
    jsonschema.validate(tomllib.loads((ROOT / "targets" / f"{name}.toml").read_text()), schema("target"))


def test_several_runtimes_are_as_the_schema_says():
    runtimes = [{"name": "onnxruntime"}, {"name": "own.fast", "format": "own.small"}]
    plain = {"title": "x", "architecture": "x86-64"}
    jsonschema.validate({**plain, "runtime": runtimes}, schema("target"))
    for wrong in ([], [{"name": 3}], "onnxruntime"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**plain, "runtime": wrong}, schema("target"))
