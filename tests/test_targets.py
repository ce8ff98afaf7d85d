"""Target files and the facts of a machine."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd import environment, targets
from edgekd.errors import UsageError
from edgekd.records import Target

ZEN5 = {
    "cpu": "some cpu", "architecture": "x86-64", "features": ["avx2", "avx512_vnni", "avx512f", "fma"], "cores": 4, "max_mhz": None, "mhz": 2600.0,
    "caches": {"l2": 2**20}, "ram_bytes": 2**33, "versions": {"onnxruntime": "1.31.1"}, "virtual": True, "governor": None, "kernel": "6",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in targets.names() if n != "host"])
def test_shipped_targets_load_and_give_a_source_for_every_fact(name):
    target = targets.load(name)
    plain = Target(name=name, title=target.title, architecture=target.architecture)
    told = {f.name for f in dataclasses.fields(Target) if getattr(target, f.name) != getattr(plain, f.name)} - {"sources"}
    assert told <= set(target.sources)
    assert {"features", "runtime", "int8"} <= set(target.sources)


def test_the_x86_kinds_differ_where_their_kernels_do():
    found = {name: targets.load(name).int8 for name in targets.names() if name.startswith("x86")}
    assert {name for name, int8 in found.items() if int8.pairs16} == {"x86-64-avx2"} and {int8.weight_bits for int8 in found.values()} == {8}


@pytest.mark.parametrize(
    "features, wanted",
    [(["avx2"], True), (["avx2", "avx512f"], True), (["avx2", "avx_vnni"], False), (["avx2", "avx512f", "avx512_vnni"], False), ([], False)],
)
def test_host_adds_pairs_in_16_bits_with_avx2_but_no_vnni(features, wanted):
    assert targets.host({**ZEN5, "features": features}).int8.pairs16 == wanted


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
    assert (target.name, target.features, target.ram_bytes, target.caches, target.int8.weight_bits) == ("mine", ("avx2",), 1024, {"l1d": 32768}, 8)


def test_every_problem_of_a_file_is_reported_at_once(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(
        'titel = "x"\narchitecture = "x86_64"\nfeatures = ["avx2", "dotprdo"]\nram_bytes = 0\nclock_mhz = inf\nthreads = "one"\nflash_bytes = 1.5\n'
        "[int8]\nweight_bits = 9\nbits = 3\n[sources]\nrma = 'x'\n"
    )
    with pytest.raises(UsageError) as caught:
        targets.load(path)
    found = {p.place.removeprefix("bad.toml: "): p for p in caught.value.problems}
    facts = {"titel", "title", "architecture", "features.1", "ram_bytes", "clock_mhz", "threads", "flash_bytes"}
    assert set(found) == facts | {"int8.weight_bits", "int8.bits", "sources.rma"}
    assert found["titel"].hint == "did you mean `title`?"
    assert found["features.1"].hint == "did you mean `dotprod`?"
    assert found["architecture"].hint == "did you mean `x86-64`?"


WRONG = [(GOOD + 'name = "x"', "there is no fact `name`"), ("title = ", "is not TOML"), ("int8 = 3\n" + GOOD, "int8")]
WRONG += [('threads = "2"\n' + GOOD, "threads")]


@pytest.mark.parametrize("text, message", WRONG)
def test_other_wrong_files(tmp_path, text, message):
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        targets.load(path)


def test_host_is_no_name_for_a_file(tmp_path):
    (tmp_path / "host.toml").write_text(GOOD)
    with pytest.raises(UsageError, match="`host` is this machine"):
        targets.load(tmp_path / "host.toml")


def test_wrong_names_and_missing_files():
    with pytest.raises(UsageError, match="did you mean `host`"):
        targets.load("hots")
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
    for other in ({"cpu": "another"}, {"kernel": "7"}, {"versions": {"onnxruntime": "1.32"}}, {"ram_bytes": 2**34}, {"features": ["avx2"]}):
        assert id != environment.environment_id({**ZEN5, **other})


def test_environment_of_an_arm_board(tmp_path, monkeypatch):
    """The files of a Raspberry Pi 5 in place of this machine's."""
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B\x00")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n")
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
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    facts = environment.describe()
    assert facts["cpu"] == "Raspberry Pi 5 Model B" and facts["architecture"] == "aarch64"
    assert facts["features"] == ["dotprod", "fp16", "neon"]
    assert (facts["max_mhz"], facts["governor"], facts["caches"], facts["ram_bytes"]) == (2400.0, "ondemand", {"l1d": 65536}, 8245248 * 1024)
    assert not targets.host(facts).int8.pairs16


def test_describing_imports_no_heavy_library():
    heavy = "[m for m in ('torch', 'onnxruntime', 'onnx', 'numpy') if m in sys.modules]"
    code = f"import sys; from edgekd import environment; environment.describe(); print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
