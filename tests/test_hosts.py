"""Ways to a device without one: addresses, what is believed of a device, and what a machine says of itself."""

import dataclasses
import json
import math
import os
import pickle
import shlex

import numpy as np
import pytest
from test_measure import X, network

from edgekd import environment, targets
from edgekd.errors import EnvironmentUnfit, UsageError
from edgekd.hosts import address, fetched, local, ssh
from edgekd.measure import jobs, machine, noise
from edgekd.records import Host
from edgekd.runtimes import facts as reading
from edgekd.runtimes import worker

# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("ssh://pi@board.local", ("pi", "board.local", None, "python3")),
        ("ssh://board:2222", (None, "board", 2222, "python3")),
        ("ssh://root@[fe80::1%eth0]:22", ("root", "fe80::1%eth0", 22, "python3")),
        ("ssh://[::1]", (None, "::1", None, "python3")),
        ("ssh://my_board?python=~/my%20venv/bin/python3.11", (None, "my_board", None, "~/my venv/bin/python3.11")),
    ],
)
def test_addresses(text, wanted):
    assert address.parse(text) == address.Address(*wanted)


HOSTILE = [
    "ssh://-oProxyCommand=touch%20x", "ssh://-oProxyCommand=touch x", "ssh://-l", "ssh://a@-oProxyCommand=x",
    "ssh://-x@host", "ssh://a b@host", "ssh://host;reboot", "ssh://host`reboot`", "ssh://$(reboot)",
    "ssh://u$(reboot)@host", "ssh://host|sh", "ssh://host&", "ssh://ho st", "ssh://host\n", "ssh://host\x00",
    "ssh://'host'", 'ssh://"host"', "ssh://host/path", "ssh://host:22;x", "ssh://host:-1", "ssh://host:0",
    "ssh://host:65536", "ssh://host:", "ssh://", "ssh://@host:1:2", "ssh://::1", "ssh://[::1", "ssh://[::g]",
    "ssh://[::1]x", "ssh://[::1%$(x)]", "ssh://user:word@host", "ssh://host?python=/bin/sh -c 'x'",
    "ssh://host?python=$(x)", "ssh://host?python=-c", "ssh://host?python=a%0Ab", "ssh://host?python=a;b",
    "ssh://host?python=", "ssh://host?shell=sh", "ssh://host?python=a'b", "ssh://host?python=a\\b",
    "ssh://host?python=a!b", "ssh://h\u00f6st", "ssh://host?python=/a&python=/b", "ssh://" + "a" * 300, "host",
    "scp://host", "-oProxyCommand=x",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_addresses_are_refused(text):
    with pytest.raises(UsageError, match="--on"):
        address.parse(text)


def test_all_that_is_wrong_with_an_address_is_told_at_once():
    with pytest.raises(UsageError) as caught:
        address.parse("ssh://-a@-b:c?shell=d")
    assert len(caught.value.problems) == 4


def test_another_interpreter_by_the_environment(monkeypatch):
    monkeypatch.setenv("EDGEKD_REMOTE_PYTHON", "/opt/venv/bin/python")
    assert address.parse("ssh://board").python == "/opt/venv/bin/python"
    monkeypatch.setenv("EDGEKD_REMOTE_PYTHON", "python; reboot")
    with pytest.raises(UsageError, match="EDGEKD_REMOTE_PYTHON"):
        address.parse("ssh://board")


def test_the_command(monkeypatch):
    monkeypatch.delenv("EDGEKD_SSH_CONFIG", raising=False)
    made = address.command(address.parse("ssh://pi@board:2222?python=~/my%20venv/python"), "print(1)")
    assert (
        made[0] == "ssh" and made[-3:] == ["--", "board", "exec ~/'my venv/python' -c 'print(1)'"] and "-F" not in made
    )
    assert made[made.index("-p") + 1] == "2222" and made[made.index("-l") + 1] == "pi" and "-oBatchMode=yes" in made
    assert not any("StrictHostKeyChecking" in part or "UserKnownHosts" in part for part in made)
    assert shlex.split(made[-1].replace("~/", "/home/pi/")) == ["exec", "/home/pi/my venv/python", "-c", "print(1)"]
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", "/tmp/x")
    assert address.command(address.parse("ssh://board"), "")[1:3] == ["-F", "/tmp/x"]


def test_a_jobs_folder_is_the_same_for_the_same_work():
    """Rounds that are added change nothing; another model, another kind of run does."""
    one = {"files": {"m": "1"}, "schedule": [{"id": "a", "pass": "time", "runs": 3}]}
    assert ssh._name(one) == ssh._name({**one, "schedule": [*one["schedule"], {"id": "b", "pass": "time", "runs": 3}]})
    assert ssh._name(one) != ssh._name({**one, "files": {"m": "2"}})
    assert ssh._name(one) != ssh._name({**one, "schedule": [{"id": "a", "pass": "time", "runs": 4}]})


# ---------------------------------------------------------------- what is believed

CONDITION = {"mhz": [1.0, 2.0], "celsius": None, "governor": None, "throttled": None, "load": 0.0, "stolen_ticks": 0}
TIME = {
    "id": "a", "subject": "s0", "pass": "time", "load_ms": 1.0, "first_ms": 1.0, "p50_ms": 1.0, "p90_ms": 2,
    "wall_ms": 9.0, "n": 3, "times": "a.npy", "cpu_share": 1.0, "warmup": {"runs": 10, "stable": True},
    "before": CONDITION, "after": CONDITION,
}  # fmt: skip
SCHEDULE = {"a": {"id": "a", "subject": "s0", "pass": "time"}, "o": {"id": "o", "subject": "s0", "pass": "outputs"}}


def sent(*lines):
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_a_good_line_is_taken_and_others_are_not_asked_for():
    assert fetched.lines(sent(TIME, {"id": "other"}) + b'{"id": "a", "tor', SCHEDULE) == {"a": TIME}
    assert fetched.files(TIME) == ["a.npy"]
    assert fetched.files({"id": "o", "pass": "outputs", "outputs": ["../../x", "/etc/passwd"]}) == [
        "o/0.npy",
        "o/1.npy",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"times": "../../.bashrc"}, {"times": "/etc/passwd"}, {"p50_ms": math.nan}, {"p50_ms": math.inf},
        {"p50_ms": -1}, {"p50_ms": 0}, {"p50_ms": True}, {"p50_ms": "1"}, {"n": -1}, {"n": 1.5}, {"subject": "s1"},
        {"pass": "memory"}, {"warmup": None}, {"warmup": {"runs": 1, "stable": 1}},
        {"before": {**CONDITION, "mhz": [1]}}, {"after": None}, {"after": {**CONDITION, "throttled": "0x5"}},
        {"cpu_share": "x"},
    ],
)  # fmt: skip
def test_a_line_that_no_worker_writes_is_refused(change):
    with pytest.raises(fetched.Damaged):
        fetched.lines(sent({**TIME, **change}), SCHEDULE)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000 + b"\n",
        b"\xff\n",
        b"1\n",
        b'{"id": "o", "subject": "s0", "pass": "outputs", "n": 3, "outputs": 7}\n',
    ],
)
def test_bytes_that_no_worker_writes_are_refused(data):
    with pytest.raises(fetched.Damaged):
        fetched.lines(data, SCHEDULE)


def test_arrays_are_plain_and_of_their_length(tmp_path):
    path, line = tmp_path / "a.npy", {"n": 3}
    np.save(path, np.zeros((3, 2)))
    fetched.check(path, line)
    for array in (
        np.zeros(4),
        np.float32(1),
        np.array([{}] * 3, object),
        np.array(["a"] * 3),
        np.zeros(3, complex),
        np.zeros(3, "M8[s]"),
    ):
        np.save(path, array)
        with pytest.raises(fetched.Damaged):
            fetched.check(path, line)
    path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((")
    with pytest.raises(fetched.Damaged):
        fetched.check(path, line)


class Harm:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_an_array_that_is_a_pickle_is_never_unpickled(tmp_path):
    """numpy takes any file that begins like neither an array nor an archive for a pickle."""
    pickle.loads(pickle.dumps(Harm(tmp_path / "possible")))
    assert (tmp_path / "possible").exists()
    path = tmp_path / "a.npy"
    path.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(fetched.Damaged):
        fetched.check(path, {"n": 3})
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e999", "-1e999", "9" * 5000, "1e300"])
def test_numbers_beyond_counting_are_refused(number):
    with pytest.raises(fetched.Damaged):
        fetched.parsed(f'{{"n": {number}}}')
    with pytest.raises(fetched.Damaged):
        fetched.lines(
            sent(TIME).replace(f'"p50_ms": {json.dumps(TIME["p50_ms"])}'.encode(), f'"p50_ms": {number}'.encode()),
            SCHEDULE,
        )


def test_a_trace_is_a_list_of_events_with_times(tmp_path):
    path, event = (
        tmp_path / "a.json",
        {"cat": "Node", "name": "c_kernel_time", "ts": 1, "dur": 2, "args": {"op_name": "Conv"}},
    )
    path.write_text(json.dumps([event, {"ts": 0, "dur": 0.5}]))
    fetched.check(path, {})
    wrong = (
        {**event, "ts": "1"},
        {**event, "dur": None},
        {**event, "args": []},
        {**event, "name": 1},
        {"name": "model_run"},
        1,
    )
    for trace in (*([event, bad] for bad in wrong), {"traceEvents": [event]}, 3):
        path.write_text(json.dumps(trace))
        with pytest.raises(fetched.Damaged):
            fetched.check(path, {})


def test_texts_of_a_device_have_no_control_characters():
    assert fetched.text("a\033[31mb\nc\u202ed") == "a [31mb c d"
    assert fetched.failures(sent({"failed": {"a": "x\033y", "z": "other"}}), {"a"}) == {"a": "x y"}
    assert fetched.failures(b'{"failed": [1]}', {"a"}) == {} == fetched.failures(None, {"a"})


def test_facts_are_each_of_their_kind():
    good = json.loads(json.dumps(environment.describe()))
    assert fetched.facts(good) == good
    for change in (
        {"cpu": 1},
        {"features": [1]},
        {"cores": 0},
        {"cores": True},
        {"caches": {"l1": "x"}},
        {"versions": {"numpy": None}},
        {"more": 1},
        {"ram_bytes": 2**60},
        {"ram_bytes": -1},
        {"max_mhz": 1e9},
        {"mhz": -1.0},
        {"throttled": -1},
    ):
        with pytest.raises(fetched.Damaged):
            fetched.facts({**good, **change})
    assert fetched.facts({**good, "cpu": "x\033[2J"})["cpu"] == "x [2J"


def test_what_tells_of_a_full_disk():
    assert (
        fetched.full("OSError: [Errno 28] No space left on device")
        and fetched.full("8 requested and 0 written")
        and not fetched.full("no such file")
    )


# ---------------------------------------------------------------- what a machine says


def arm(folder, parts, features="fp asimd", board="", governors=("ondemand",), firmware=None, maker="0x41"):
    """The files of a board below a folder. `parts`: of its cores."""
    blocks = [
        f"processor\t: {i}\nFeatures\t: {features}\nCPU implementer\t: {maker}\nCPU part\t: {part}\n"
        for i, part in enumerate(parts)
    ]
    files = {
        "proc/cpuinfo": "\n".join(blocks),
        "proc/device-tree/model": board + "\0",
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
    }
    for i, name in enumerate(governors):
        files[f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_governor"] = name + "\n"
        files[f"sys/devices/system/cpu/cpu{i}/cpufreq/cpuinfo_max_freq"] = f"{1800000 + 600000 * i}\n"
    if firmware is not None:
        files["sys/devices/platform/soc/soc:firmware/get_throttled"] = firmware + "\n"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_facts_of_a_raspberry_pi_4(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.platform, "machine", lambda: "aarch64")
    found = reading.describe(
        arm(tmp_path, ["0xd08"] * 4, "fp asimd evtstrm crc32 cpuid", "Raspberry Pi 4 Model B Rev 1.2", firmware="50005")
    )
    assert (
        found["cpu"] == "Raspberry Pi 4 Model B Rev 1.2 (4 x Cortex-A72)"
        and found["features"] == ["neon"]
        and found["architecture"] == "aarch64"
    )
    assert (found["throttled"], found["celsius"], found["governor"], found["max_mhz"]) == (
        0x50005,
        48.312,
        "ondemand",
        1800.0,
    )


def test_facts_of_a_board_with_two_kinds_of_cores(tmp_path):
    features = "fp asimd evtstrm aes fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp i8mm bf16 sve"
    found = reading.describe(
        arm(tmp_path, ["0xd05"] * 4 + ["0xd0b"] * 4, features, "Radxa ROCK 5B", governors=("ondemand", "performance"))
    )
    assert found["cpu"] == "Radxa ROCK 5B (4 x Cortex-A55 + 4 x Cortex-A76)" and found["throttled"] is None
    assert found["features"] == ["bf16", "dotprod", "fp16", "i8mm", "neon", "sve"]
    assert found["governor"] == "ondemand, performance" and found["max_mhz"] == 2400.0


def test_a_core_that_is_not_known_keeps_its_numbers(tmp_path):
    assert reading.describe(arm(tmp_path, ["0xabc"], maker="0x99"))["cpu"] == "1 x ARM 0x99 0xabc"


def test_a_32_bit_python_is_a_32_bit_machine():
    machines = (("aarch64", 8), ("aarch64", 4), ("x86_64", 8), ("AMD64", 4), ("riscv64", 8))
    found = [reading.architecture(m, p) for m, p in machines]
    assert found == ["aarch64", "armv7l", "x86-64", "i686", "riscv64"]


def test_powersave_is_the_lowest_clock_but_with_drivers_of_x86(tmp_path):
    arm(tmp_path, ["0xd08"], governors=("powersave",))
    assert reading.governor(tmp_path) == "powersave"
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver").write_text("intel_pstate\n")
    assert reading.governor(tmp_path) == "powersave (intel_pstate)"


@pytest.mark.parametrize(
    "first, conditions, wanted",
    [
        (None, [{}], []),
        (None, [{"governor": "powersave"}], ["governor powersave"]),
        (None, [{"governor": "powersave (intel_pstate)"}], []),
        (0, [{"throttled": 0x50005}], ["under-voltage", "throttled"]),  # bits 0 and 2, now
        (0x50000, [{"throttled": 0x50000}], []),  # since the start, but before this
        # 0xd = 0x5 and bit 3: came up meanwhile
        (0x50000, [{"throttled": 0xD0000}, {"throttled": 0xD0000}], ["at the soft limit of temperature"]),
        (0, [{"throttled": 0x20000}], ["clock capped"]),
    ],
)
def test_what_keeps_a_board_from_its_clock(first, conditions, wanted):
    assert noise.held_back(conditions, {"throttled": first}) == wanted


def test_a_board_with_another_core_stands_for_no_target(tmp_path, monkeypatch):
    """A Raspberry Pi 3 has all features of a Raspberry Pi 4, and not its time; a Raspberry Pi 5 has dot products, and
    other kernels by it."""
    monkeypatch.setattr(reading.platform, "machine", lambda: "aarch64")

    def board(part, features="fp asimd"):
        return Host("board", local.run, reading.describe(arm(tmp_path, [part] * 4, features)))

    wanted = targets.load("raspberry-pi-4")
    assert machine.stands_for(board("0xd08"), wanted)[0] is wanted
    assert machine.stands_for(board("0xd03"), None)[0].name == "host"
    with pytest.raises(EnvironmentUnfit, match=r"board lacks a cortex-a72 \(it has Cortex-A53\)"):
        machine.stands_for(board("0xd03"), wanted)
    with pytest.raises(EnvironmentUnfit, match="board also has dotprod, by which other kernels are chosen"):
        machine.stands_for(board("0xd08", "fp asimd asimddp"), wanted)
    with pytest.raises(EnvironmentUnfit, match="board lacks fp16, dotprod"):
        machine.stands_for(board("0xd0b"), targets.load("raspberry-pi-5"))


def test_a_board_with_two_kinds_of_cores_stands_for_both(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.platform, "machine", lambda: "aarch64")
    facts = reading.describe(arm(tmp_path, ["0xd05"] * 4 + ["0xd0b"] * 2 + ["0xd0b"] * 2, "fp asimd asimdhp asimddp"))
    assert (
        facts["clusters"] == {"Cortex-A55": [0, 1, 2, 3], "Cortex-A76": [4, 5, 6, 7]} and fetched.facts(facts) == facts
    )
    host = Host("board", local.run, facts)
    assert machine.stands_for(host, targets.load("rk3588-big"))[1].cores == (4, 5, 6, 7)
    assert machine.stands_for(host, targets.load("rk3588-little"))[1].cores == (0, 1, 2, 3)
    assert machine.stands_for(host, None)[1].cores == ()
    odd = Host("board", local.run, {**facts, "clusters": {"Kryo Silver (A55)": [0, 1], "Cortex-A77": [2, 3]}})
    assert machine.stands_for(odd, targets.load("rk3588-little"))[1].cores == ()
    for kinds in ([], {"a": []}, {"a": [-1]}, {"a": ["0"]}):
        with pytest.raises(fetched.Damaged):
            fetched.facts({**facts, "clusters": kinds})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a system that holds processes to cores")
def test_processes_are_held_to_the_cores_of_the_host(tmp_path):
    core = max(os.sched_getaffinity(0))
    jobs.score(
        network(tmp_path / "m.onnx"), X, folder=tmp_path / "s", host=dataclasses.replace(local.host(), cores=(core,))
    )
    (line,) = worker.finished_lines(tmp_path / "s" / "job" / "out" / "results.jsonl").values()
    assert line["affinity"] == [core] or len(os.sched_getaffinity(0)) == 1


def test_an_emulator_takes_no_times(tmp_path):
    host = Host("an emulator", local.run, environment.describe(), {"command": ["qemu"]})
    with pytest.raises(EnvironmentUnfit, match="an emulator: is an emulator, whose times are no device's"):
        jobs.profile({"m": network(tmp_path / "m.onnx")}, X, jobs.Session(folder=tmp_path / "p", host=host))
