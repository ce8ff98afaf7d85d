"""The store: what is found is whole, work is done once, a kill or a full disk costs no finished work."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import RunFailed, UsageError
from edgekd.files import full, sha256, size
from edgekd.records import Made
from edgekd.store.locks import lease
from edgekd.store.store import Store, write_atomic

KEY = "a" * 64


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.events = []
    store.log = lambda **event: store.events.append(event)
    yield store
    store.close()


def make(store, key=KEY, text="weights", form="torch", parents=None, build=None, on_wait=None, count=1):
    def write(folder, scratch):
        for i in range(count):
            (folder / f"file{i}").write_text(f"{text} {i}")
        return Made(form, {"seconds": 1.5})

    settings = {"epochs": 3, "losses": ({"use": "kl"},)}
    parents = parents or {}
    return store.make(
        key,
        stage="train",
        settings=settings,
        seed=0,
        inputs={"source": tuple(parents)},
        parents=parents,
        build=build or write,
        on_wait=on_wait,
    )


def alive(root):
    """Files of the store that are not the artifacts' nor the observations'."""
    return sorted(str(p.relative_to(root)) for name in ("work", "trash") for p in (root / name).rglob("*"))


# ---------------------------------------------------------------- finding


def test_made_is_found_and_nothing_else_is_left(store):
    assert store.find(KEY, {}) is None
    assert not store.root.exists()  # looking makes no folders
    made = make(store, parents={"b" * 64: "d"}, count=2)
    assert made == store.find(KEY, {"b" * 64: "d"})
    assert made.inputs == {"source": ("b" * 64,)} and made.facts == {"seconds": 1.5} and made.form == "torch"
    assert made.settings == {"epochs": 3, "losses": [{"use": "kl"}]}
    assert {name: sha256(made.folder / name) for name in made.files} == dict(made.files) and len(made.files) == 2
    assert alive(store.root) == []


def test_the_second_make_does_not_build(store):
    make(store)
    assert make(store, build=lambda folder, scratch: pytest.fail("built twice")).folder.is_dir()


def test_parents_that_changed_make_it_anew(store):
    make(store, text="old", parents={"p": "1"})
    assert store.find(KEY, {"p": "2"}) is None and store.find(KEY, {}) is None
    assert store.find(KEY, {"p": "1"}) is not None
    made = make(store, text="new", parents={"p": "2"})
    assert (made.folder / "file0").read_text() == "new 0"
    assert store.find(KEY, {"p": "1"}) is None


def test_digest_is_of_the_files(store):
    one, two = make(store, "aaa", "x"), make(store, "bbb", "x")
    assert store.digest(one) == store.digest(two) != store.digest(make(store, "ccc", "y"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {  # what is done to an artifact's folder, and what the log says of it
    "flipped byte": (lambda folder: flip(folder / "file0"), "file0 differs from its digest"),
    "truncated": (
        lambda folder: (folder / "file0").write_bytes((folder / "file0").read_bytes()[:-1]),
        "file0 differs from its digest",
    ),
    "empty": (lambda folder: (folder / "file0").write_bytes(b""), "file0 differs from its digest"),
    "missing": (lambda folder: (folder / "file0").unlink(), "file0 is missing"),
    "manifest cut": (
        lambda folder: (folder / "artifact.json").write_bytes((folder / "artifact.json").read_bytes()[:-20]),
        "Expecting",
    ),
    "manifest edited": (
        lambda folder: (folder / "artifact.json").write_text(
            (folder / "artifact.json").read_text().replace("1.5", "2.5")
        ),
        "artifact.json differs from its digest",
    ),
    "manifest missing": (lambda folder: (folder / "artifact.json").unlink(), "artifact.json is missing"),
    "manifest not text": (lambda folder: (folder / "artifact.json").write_bytes(b"\xff\xfe\x00"), "decode"),
    "manifest a list": (lambda folder: (folder / "artifact.json").write_text("[]"), "not of schema"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_artifact_is_noticed_and_made_again(store, damage):
    folder = make(store).folder
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    harm, reason = DAMAGE[damage]
    harm(folder)
    assert store.find(KEY, {}) is None
    assert not folder.exists() and [(e["event"], e["key"]) for e in store.events] == [("corrupt", KEY)]
    assert reason in store.events[0]["reason"]
    assert {p.name: p.read_bytes() for p in make(store).folder.iterdir()} == before
    assert alive(store.root) == []


def test_a_broken_artifact_stays_while_another_works_on_it(store):
    """Who works on it replaces it himself; looking neither waits for him nor takes away what he is about to put
    there."""
    folder = make(store).folder
    flip(folder / "file0")
    found = []
    with lease(store.root / "work" / f"{KEY}.lease"):
        looks = threading.Thread(target=lambda: found.append(store.find(KEY, {})))
        looks.start()
        looks.join(10)
        assert found == [None] and folder.is_dir()
    looks.join(10)
    assert (make(store).folder / "file0").read_text() == "weights 0"
    store._discard(KEY, "seen before it was replaced")
    assert store.find(KEY, {}) is not None


def test_a_broken_artifact_of_a_store_that_cannot_be_written_is_a_miss(store):
    flip(make(store).folder / "file0")
    (store.root / "work").rmdir()
    assert store.find(KEY, {}) is None and [e["event"] for e in store.events] == ["corrupt"]


def test_every_flipped_byte_of_a_manifest_is_noticed(store):
    folder = make(store).folder
    whole = (folder / "artifact.json").read_bytes()
    found = store.find(KEY, {})
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 1
        folder.mkdir(exist_ok=True)
        (folder / "file0").write_text("weights 0")
        (folder / "artifact.json").write_bytes(data)
        again = store.find(KEY, {})
        assert again is None or again == found, bytes(data)  # white space may differ
    folder.mkdir(exist_ok=True)
    (folder / "file0").write_text("weights 0")
    (folder / "artifact.json").write_bytes(whole)
    assert store.find(KEY, {}) == found and sum(e["event"] == "corrupt" for e in store.events) > len(whole) / 10


def test_keys_that_are_no_names_are_refused(store):
    for key in ("../../etc", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="is not a valid key"):
            store.find(key, {})


def test_links_and_nothing_at_all_are_no_artifacts(store):
    def link(folder, scratch):
        (folder / "x").symlink_to("/etc/hostname")
        return Made("torch")

    for build, text in ((link, "plain file"), (lambda folder, scratch: Made("torch"), "no files")):
        with pytest.raises(RunFailed, match=text):
            make(store, build=build)
    assert alive(store.root) == []


# ---------------------------------------------------------------- failing and going on


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failed_build_leaves_its_checkpoints_alone(store, error):
    def fail(folder, scratch):
        assert [p.name for p in scratch.iterdir()] == []
        (folder / "half").write_text("x")
        (scratch / "checkpoint").write_text("epoch 3")
        raise error

    def resume(folder, scratch):
        assert not (folder / "half").exists()
        (folder / "weights").write_text((scratch / "checkpoint").read_text())
        return Made("torch")

    with pytest.raises(type(error)):
        make(store, build=fail)
    assert store.find(KEY, {}) is None and not list(store.root.glob("work/*/out"))
    assert (make(store, build=resume).folder / "weights").read_text() == "epoch 3"
    assert alive(store.root) == []


def test_checkpoints_from_other_parents_are_not_taken_up(store):
    def fail(folder, scratch):
        (scratch / "checkpoint").write_text("from the old teacher")
        raise RuntimeError

    def look(folder, scratch):
        (folder / "seen").write_text(",".join(p.name for p in scratch.iterdir()))
        return Made("torch")

    with pytest.raises(RuntimeError):
        make(store, parents={"p": "1"}, build=fail)
    shutil.copytree(store.root / "work" / KEY, store.root / "work" / "nobody")
    (store.root / "work" / "nobody" / "parents.json").write_text("{")
    assert (make(store, parents={"p": "2"}, build=look).folder / "seen").read_text() == ""
    assert (make(store, "nobody", parents={"p": "1"}, build=look).folder / "seen").read_text() == ""


def test_a_build_without_checkpoints_leaves_nothing(store):
    def fail(folder, scratch):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make(store, build=fail)
    assert alive(store.root) == []


LOOP = """
import sys, time, random
from pathlib import Path
from edgekd.records import Made
from edgekd.store.store import Store

store = Store(Path(sys.argv[1]))
def build(folder, scratch):
    (scratch / "checkpoint").write_bytes(b"c" * 3000)
    for i in range(3):
        (folder / f"file{i}").write_bytes(bytes([i]) * 50_000)
    return Made("torch", {"n": 3})

print("ready", flush=True)
for turn in range(10_000):
    store.make(f"key{turn:05d}", stage="train", settings={}, seed=0, inputs={}, parents={}, build=build)
    store.observe(f"key{turn:05d}", "host", {"turn": turn, "text": "x" * 2000})
"""


def test_kills_at_random_moments_leave_a_whole_store(tmp_path):
    root, chance = tmp_path / "store", random.Random(0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(root)], stdout=subprocess.PIPE, env=environment)
        process.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        events = []
        store = Store(root, log=lambda **event: events.append(event))  # noqa: B023
        keys = sorted(p.name for p in root.glob("artifacts/*/*"))
        assert len(keys) >= finished  # what was finished stays
        finished = len(keys)
        for turn, key in enumerate(keys):
            artifact = store.find(key, {})
            assert artifact is not None and len(artifact.files) == 3, events
            seen = store.observed(key, "host")
            assert seen is None or seen["turn"] == turn
        assert not events and store.observed(keys[0], "host") if keys else True
        store.close()
    assert finished > 3
    store = Store(root)
    make(store)  # sweeps what the killed left behind
    store.trim(keep=set())
    assert not [name for name in alive(root) if name.endswith("out") or name.startswith("trash/")]
    assert not list(root.glob("work/*.lease"))
    store.close()


def _race(root, started, report):
    store = Store(root)

    def build(folder, scratch):
        report.put("built")
        time.sleep(0.3)
        (folder / "file").write_text("x")
        return Made("torch")

    started.wait()
    artifact = make(store, build=build, on_wait=lambda: report.put("waits"))
    report.put(("found", sorted(artifact.files.items())))


def test_two_processes_build_one_key_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, report = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path / "store", started, report)) for _ in range(2)]
    for process in processes:
        process.start()
    reports = [report.get(timeout=60) for _ in range(4)]
    for process in processes:
        process.join()
    assert reports.count("built") == 1 and reports.count("waits") == 1
    found = [r for r in reports if r[0] == "found"]
    assert len(found) == 2 and found[0] == found[1]


def test_who_waited_builds_when_the_first_is_killed(tmp_path):
    root = tmp_path / "store"
    hang = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from edgekd.store.store import Store
        def build(folder, scratch):
            (scratch / "checkpoint").write_text("epoch 7")
            (folder / "half").write_text("x")
            print("building", flush=True)
            time.sleep(600)
        Store(Path(sys.argv[1])).make("a" * 64, stage="train", settings={}, seed=0, inputs={}, parents={}, build=build)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", hang, str(root)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"building\n"

    def build(folder, scratch):
        assert [p.name for p in folder.iterdir()] == []
        (folder / "weights").write_text((scratch / "checkpoint").read_text())
        return Made("torch")

    store, waited = Store(root), []

    def kill():
        waited.append(True)
        process.kill()
        process.wait()
        process.stdout.close()

    artifact = make(store, build=build, on_wait=kill)
    assert waited and (artifact.folder / "weights").read_text() == "epoch 7"
    assert alive(root) == []
    store.close()


def test_what_the_killed_left_is_swept_apart_from_checkpoints(store):
    done = make(store, "done")
    for key in ("done", "unfinished", "begun"):
        (store.root / "work" / key / "out").mkdir(parents=True)
        (store.root / "work" / key / "out" / "half").write_text("x")
        (store.root / "work" / key / "scratch").mkdir()
        (store.root / "work" / f"{key}.lease").write_text("")
    for key in ("done", "unfinished"):
        (store.root / "work" / key / "scratch" / "checkpoint").write_text("x")
    (store.root / "trash" / "1234").mkdir(parents=True)
    for foreign in ("work/.DS_Store", "artifacts/do/.DS_Store"):
        (store.root / foreign).write_text("x")
    other = Store(store.root)
    make(other, "next")
    other.trim(keep=set())
    (store.root / "work" / ".DS_Store").unlink()
    assert alive(store.root) == ["work/unfinished", "work/unfinished/scratch", "work/unfinished/scratch/checkpoint"]
    assert other.find("done", {}) == done
    other.close()


def test_who_waited_for_a_lease_that_is_gone_waits_for_the_new_one(tmp_path):
    """The first unlinks its lease; a third makes the file anew before the second, who waited on the old one, wakes
    up."""
    path, waits, order = tmp_path / "key.lease", threading.Event(), []

    def second():
        with lease(path, waits.set):
            order.append("second")

    first = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_EX)
    thread = threading.Thread(target=second)
    thread.start()
    assert waits.wait(10)
    path.unlink()
    with lease(path) as mine:
        assert mine
        os.close(first)
        thread.join(0.3)
        order.append("third")
    thread.join(10)
    assert order == ["third", "second"] and not path.exists()


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small(tmp_path):
    """A store on a disk of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    done = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
        if shutil.which("mount")
        else None
    )
    if done is None or done.returncode:
        pytest.skip("mounting a small disk needs root")
    store = Store(place / "store")
    yield store
    store.close()
    subprocess.run(["umount", "-l", str(place)], check=True)


def big(folder, scratch):
    (folder / "big").write_bytes(bytes(4_000_000))
    return Made("torch")


def numbers(folder, scratch):
    np.save(folder / "big.npy", np.zeros(1_000_000))
    return Made("logits")


def tensors(folder, scratch):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1_000_000)}, folder / "big.safetensors")
    return Made("torch")


@pytest.mark.parametrize("build", [big, numbers, tensors])
def test_a_full_disk_is_told_and_leaves_a_whole_store(small, build):
    kept = make(small, "kept")
    with pytest.raises(RunFailed, match="the disk is full") as caught:
        make(small, "more", build=build)
    assert str(small.root) in str(caught.value) and "EDGEKD_STORE" in str(caught.value)
    assert small.find("kept", {}) == kept and small.find("more", {}) is None
    assert alive(small.root) == []
    assert make(small, "more").folder.is_dir()  # once there is room, it works


def test_a_disk_filled_to_the_last_byte(small):
    kept = make(small, "kept")
    small.observe("kept", "host", {"old": 1})
    fill = small.root.parent / "fill"
    with pytest.raises(OSError, match="No space"), open(fill, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(RunFailed, match="the disk is full"):
        make(small, "more", text="x" * 8192)
    with pytest.raises(RunFailed, match="the disk is full"):
        small.observe("kept", "host", {"new": "x" * 8192})
    assert small.find("kept", {}) == kept and small.observed("kept", "host") == {"old": 1}
    fill.unlink()
    assert make(small, "more", text="x" * 8192).folder.is_dir()


@pytest.mark.parametrize("name", ["fsync", "replace", "rename", "open"])
def test_a_disk_that_fills_in_the_middle_of_keeping(store, monkeypatch, name):
    """Whatever call of the store it hits, and whenever."""
    kept, genuine = make(store, "kept"), getattr(os, name)
    for good in range(12):
        left = [good]

        def fails(*args, _left=left, **kwargs):
            _left[0] -= 1
            if _left[0] < 0 and not (name == "rename" and "trash" in str(args[1])):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            return genuine(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            try:
                make(store, f"key{good}")
            except RunFailed as error:
                assert "the disk is full" in str(error)
        other = Store(store.root)
        assert other.find("kept", {}) == kept
        found = other.find(f"key{good}", {})
        assert found is None or (found.folder / "file0").read_text() == "weights 0"
        assert make(other, f"key{good}").folder.is_dir()
        assert other._artifacts() and alive(store.root) == []
        other.close()


def test_how_much_of_a_full_disk_is_free_is_told(store, monkeypatch):
    def build(folder, scratch):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 2_500_000, 2_500_000)
    )
    with pytest.raises(RunFailed, match=r"the disk is full: 2\.5 MB are free"):
        make(store, build=build)


def test_what_is_a_full_disk():
    try:
        try:
            raise OSError(errno.ENOSPC, "no room")
        except OSError as error:
            raise RuntimeError("can't save") from error
    except RuntimeError as error:
        assert full(error)
    assert full(ValueError("I/O error: No space left on device (os error 28)"))
    assert not full(OSError(errno.EACCES, "denied")) and not full(ValueError("boom")) and not full(None)


def test_a_store_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(UsageError, match="EDGEKD_STORE"):
        make(store)
    assert store.find(KEY, {}) is None


# ---------------------------------------------------------------- observations


def test_observations_are_kept_whole_or_not_at_all(store):
    payload = {"latency": [1.25, 2.5], "target": "raspberry-pi-4", "nested": {"a": None}}
    name = "host quick/4 threads"
    assert store.observed(KEY, name) is None
    store.observe(KEY, name, {"old": True})
    store.observe(KEY, name, payload)
    store.observe(KEY, "../up", {"up": 1})
    assert store.observed(KEY, name) == payload and store.observed(KEY, "../up") == {"up": 1}
    (path,) = [p for p in store.root.rglob("*.json") if "host" in p.name]
    assert path.parent == store.root / "observations" / "aa" / KEY and len(list(path.parent.iterdir())) == 2
    path.write_text(path.read_text().replace("1.25", "1.26"))
    assert store.observed(KEY, name) is None
    path.write_text("{")
    assert store.observed(KEY, name) is None
    told = [(e["event"], e["key"], e["reason"].partition(": ")[0]) for e in store.events]
    assert (
        told == [("corrupt", KEY, "observation host quick/4 threads")] * 2
        and "differs from its digest" in store.events[0]["reason"]
    )


def test_an_observation_of_another_artifact_or_name_is_none(store):
    """A file that was copied from its place is whole, but says nothing here."""
    store.observe(KEY, "host", {"ms": 1})
    (path,) = store.root.rglob("host.json")
    shutil.copy(path, path.with_name("board.json"))
    (store.root / "observations" / "bb" / ("b" * 64)).mkdir(parents=True)
    shutil.copy(path, store.root / "observations" / "bb" / ("b" * 64) / "host.json")
    assert store.observed(KEY, "board") is None and store.observed("b" * 64, "host") is None
    assert store.observed(KEY, "host") == {"ms": 1}


def test_long_names_of_observations(store):
    store.observe(KEY, "x" * 400 + "1", {"n": 1})
    store.observe(KEY, "x" * 400 + "2", {"n": 2})
    assert store.observed(KEY, "x" * 400 + "1") == {"n": 1}


# ---------------------------------------------------------------- the limit


def aged(store, key, age, **settings):
    folder = make(store, key, **settings).folder
    os.utime(folder / "artifact.json", (time.time() - age,) * 2)


def test_trim_evicts_checkpoints_then_logits_then_the_oldest(store):
    def fail(folder, scratch):
        (scratch / "checkpoint").write_bytes(bytes(1000))
        raise RuntimeError

    for key, age, form in (
        ("new", 10, "torch"),
        ("old", 50, "torch"),
        ("mid", 40, "torch"),
        ("logits", 5, "logits"),
        ("front", 90, "torch"),
    ):
        aged(Store(store.root), key, age, form=form)  # held by none
        store.observe(key, "host", {"ms": 1})
    with pytest.raises(RuntimeError):
        make(store, "unfinished", build=fail)
    assert store.trim(keep={"front"}) == []  # far below the limit
    sizes = {p.name: sum(f.stat().st_size for f in p.iterdir()) for p in store._artifacts()}
    left = sum(f.stat().st_size for f in (store.root / "work").rglob("*") if f.is_file())
    total = sum(sizes.values()) + left
    store.limit = total
    assert store.trim(keep={"front"}) == []
    order = []
    for _ in range(5):
        store.limit = total - 1
        gone = store.trim(keep={"front"})
        assert len(gone) == 1
        order += gone
        total = sum(sizes[p.name] for p in store._artifacts())
    assert order == ["unfinished", "logits", "old", "mid", "new"]
    told = [(e["event"], e["key"], e["reason"], e["bytes"]) for e in store.events]
    assert told == [("evicted", "unfinished", "checkpoints", left)] + [
        ("evicted", key, "artifact", sizes[key]) for key in order[1:]
    ]
    store.limit = 0
    assert store.trim(keep={"front"}) == [] and store.find("front", {}) is not None
    assert store.observed("old", "host") == {"ms": 1}
    assert alive(store.root) == []


def test_trim_evicts_as_many_as_are_too_many(store):
    for age in (40, 30, 20, 10):
        aged(Store(store.root), f"age{age}", age)
    one = sum(f.stat().st_size for f in store._artifacts()[0].iterdir())
    store.limit = 2 * one
    assert store.trim(keep=set()) == ["age40", "age30"]
    assert store.trim(keep=set()) == []


def test_of_checkpoints_the_oldest_go_first(store):
    for key, age in (("a-young", 10), ("b-old", 50)):
        checkpoint = store.root / "work" / key / "scratch" / "checkpoint"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(bytes(1000))
        # written again in its place
        for path, since in ((checkpoint, age), (checkpoint.parent, 100), (checkpoint.parent.parent, 100)):
            os.utime(path, (time.time() - since,) * 2)
    for key in ("begun", "beside"):  # others have made their folders this moment
        (store.root / "work" / key).mkdir()
    store.limit = 1000
    with lease(store.root / "work" / "begun.lease"), lease(store.root / "work" / "beside.lease"):
        assert store.trim(keep=set()) == ["b-old"]


def test_trim_sweeps_again_what_was_left_since(store):
    """A run is long: others are killed while it lasts."""
    make(store)
    (store.root / "trash" / "1234").mkdir(parents=True)
    (store.root / "work" / "killed" / "out").mkdir(parents=True)
    (store.root / "work" / "killed" / "out" / "half").write_text("x")
    assert store.trim(keep=set()) == [] and alive(store.root) == []


@pytest.mark.parametrize("manifest", [None, "{", "{}", "[]", "7"])
def test_trim_goes_past_an_artifact_that_tells_nothing(store, manifest):
    aged(store, "free", 40)
    path = make(store, "torn").folder / "artifact.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    store.limit = 0
    assert store.trim(keep=set()) == ["free"]


def test_a_find_counts_as_use(store):
    aged(store, "one", 50)
    aged(store, "two", 40)
    store.find("one", {})
    store.limit = sum(f.stat().st_size for p in store._artifacts() for f in p.iterdir()) - 1
    assert store.trim(keep=set()) == ["two"]


def test_trim_leaves_what_another_holds_or_makes(store):
    other = Store(store.root)
    aged(store, "held", 50)
    aged(store, "free", 40)
    assert other.find("held", {}) is not None
    store.limit = 0

    def build(folder, scratch):
        (scratch / "checkpoint").write_text("x")
        assert store.trim(keep=set()) == ["free"]
        assert (scratch / "checkpoint").exists()
        (folder / "file").write_text("x")
        return Made("torch")

    make(other, "work", build=build)
    other.close()
    assert sorted(store.trim(keep=set())) == ["held", "work"]


def test_sizes():
    assert size("500 MB") == 500_000_000 and size("1.5 KiB") == 1536 and size("20GB") == 20 * 10**9 and size("7") == 7
    for wrong in ("", "much", "5 bananas", "-1 MB", "1e3 MB"):
        with pytest.raises(UsageError, match="not a size"):
            size(wrong, "EDGEKD_STORE_LIMIT")


def test_where_the_store_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGEKD_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().root == tmp_path / "edgekd" and not (tmp_path / "edgekd").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().root == tmp_path / ".cache" / "edgekd"
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "own"))
    assert Store().root == tmp_path / "own" and Store(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.setenv("EDGEKD_STORE_LIMIT", "much")
    with pytest.raises(UsageError, match="EDGEKD_STORE_LIMIT"):
        Store()


# ---------------------------------------------------------------- files


def test_write_atomic_replaces_or_leaves(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and os.stat(path).st_mode & 0o777 == 0o666 & ~_umask()
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(path, b"three")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_manifest_can_be_read_by_anyone(store):
    record = json.loads((make(store).folder / "artifact.json").read_text())
    assert record["schema"] == "edgekd.artifact/1" and record["key"] == KEY and record["parents"] == {}
    assert str(Path.cwd()) not in json.dumps(record)
