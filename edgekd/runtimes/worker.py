"""Runs a job on a device: `python worker.py job.json` does every entry of the schedule in a process of its own and
writes `out/`.

job.json    schema edgekd.job/1: runtime (file), threads, environment, subjects {id: {model, inputs {name: .npy, or a
            list with one for each sample}, axes {input: where the model takes samples: an axis, null: the same array
            for all, "whole": a sample is all of the input}, answers {output: axis of its samples}}}; axis 0 where it
            says nothing; with states {input: output} and begins (.npy) samples are steps of sequences, and such an
            input takes what the output gave at the step before, zeros where a sequence begins,
            schedule [{id, subject, pass, ...settings}], seconds (limit of one process), settings {launch {command,
            variables}: what a process is started with instead of this Python, an emulator; cores: the CPUs that a
            process is held to}
out/results.jsonl   a line per finished process
out/<id>.npy        its steady times in ns
out/<id>/<i>.npy    its outputs
out/<id>.json       a trace
out/done.json       written last: {finished, failed}

Run again, it skips what is finished: a killed process, or a line cut in half, is done again. Passes:

time       load, first inference, warm-up until stable, steady state       settings: warmup_runs, warmup_s,
           warmup_cap_s, runs, steady_s, cap_s
memory     load and `runs` inferences, then the process's peak
bare       the same process without a model: runtime and inputs alone
outputs    every row of the inputs through the file in batches of `batch` (or of the size that the file fixes), as many
           as fit into `cap_s`
operators  the runtime's own clock per operator (a separate run, for it perturbs)
together   several `subjects` in one process, in turn, forth and back, `rounds` times or for `cap_s`, each for `block_s`
           at a time; their p50, by the process's CPU time too, and the share of a core that they had
signature  what the file takes: {input: [type, shape]}, null for what is open
count      `warmup_runs` inferences, then `empty` regions without one and `runs` with one each, marked for an emulator's
           instruction counter

`facts.py` lies beside it: what the machine is (`python worker.py --facts` prints it), and in what condition.
Imports numpy and the one runtime, nothing of edgekd; Python 3.8.
"""

import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ATTEMPTS = 2
LATE = "took longer"
WHOLE = "whole"  # an axis: a sample is all of the input
MARK = 0x65646B64  # the prctl by which regions are marked (hosts/counter.c)
sys.dont_write_bytecode = True


# ---------------------------------------------------------------- the parent: one fresh process per entry


def run(job_file, say=print):
    """Does what is unfinished of a job. Returns {"finished": [ids], "failed": {id: reason}}, which is out/done.json
    too."""
    folder = Path(job_file).resolve().parent
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    out = folder / "out"
    out.mkdir(exist_ok=True)
    with _alone(out / ".lock"):
        results = out / "results.jsonl"
        finished = set(finished_lines(results, repair=True))
        failed, broken = {}, {}
        for number, entry in enumerate(job["schedule"]):
            if entry["id"] not in finished:
                reason = broken.get(entry.get("subject"))
                for _ in range(0 if reason else ATTEMPTS):  # what came to no end would come to none again
                    line, reason = _in_fresh_process(job_file, number, job)
                    if reason is None:
                        append(results, line)
                        finished.add(entry["id"])
                    if reason is None or reason.startswith(LATE):
                        break
                if reason is not None:
                    failed[entry["id"]] = reason
                    broken[entry.get("subject")] = reason  # a file that failed twice is not tried again in this run
            say(json.dumps({"done": number + 1, "total": len(job["schedule"]), "id": entry["id"]}))
        done = {"finished": [e["id"] for e in job["schedule"] if e["id"] in finished], "failed": failed}
        write(out / "done.json", json.dumps(done).encode())
    return done


def finished_lines(path, repair=False):
    """{id: line} of the whole lines of a results file. `repair` cuts off what a kill left behind the last whole
    line."""
    found, good = {}, 0
    data = path.read_bytes() if path.exists() else b""
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line.decode("utf-8"))
            found[record["id"]] = record
        except (ValueError, KeyError, TypeError):
            break
        good += len(line)
    if repair and good < len(data):
        os.truncate(path, good)
    return found


def append(path, line):
    """Adds one line, whole and on the disk, before anybody counts it as finished."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path, data):
    """A file that is there whole or not at all."""
    temporary = path.parent / (".tmp." + path.name)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def _alone(path):
    """Two workers in one folder would spoil each other's times: the second waits, and then finds the work done."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: the caller sees to it
        yield
        return
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _in_fresh_process(job_file, number, job):
    """(result line, None) or (None, why it failed)."""
    threads, launch = str(job["threads"]), job.get("settings", {}).get("launch", {})
    environment = dict(
        os.environ, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1"
    )
    environment.update(launch.get("variables", {}))
    command = [
        *launch.get("command", [sys.executable]),
        os.path.abspath(__file__),
        str(job_file),
        "--entry",
        str(number),
    ]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=job.get("seconds", 600)
        )
    except subprocess.TimeoutExpired as late:
        return None, f"{LATE} than {late.timeout:g} s"
    if done.returncode < 0:
        return None, f"the process was killed by signal {-done.returncode} ({signal.Signals(-done.returncode).name})"
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        record = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return None, (last[-1] if last else f"the process ended with exit code {done.returncode}")[:2000]
    return (None, record["error"]) if "error" in record else (json.dumps(record), None)


# ---------------------------------------------------------------- the child: one entry


def entry(job_file, number):
    """The result of one entry of the schedule, as a dict."""

    folder = Path(job_file).resolve().parent
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    what = job["schedule"][number]
    if job.get("settings", {}).get("cores") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["settings"]["cores"])
    begun = time.perf_counter_ns()
    runtime = _module(folder / job["runtime"])
    record = {
        "id": what["id"],
        "subject": what.get("subject"),
        "pass": what["pass"],
        "import_ms": (time.perf_counter_ns() - begun) / 1e6,
    }
    subject = job["subjects"][what["subject"]]
    axes = subject.get("axes", {})
    arrays = {name: _Rows(folder, files, axes.get(name, 0)) for name, files in subject["inputs"].items()}
    if subject.get("states"):
        arrays = _Steps(arrays, subject["states"], folder / subject["begins"])
    model, out = folder / subject["model"], folder / "out"
    record["before"] = condition()
    passes = {
        "time": _time,
        "memory": _memory,
        "bare": _bare,
        "outputs": _outputs,
        "operators": _operators,
        "count": _count,
        "together": _together,
        "signature": _signature,
    }
    record.update(passes[what["pass"]](runtime, model, arrays, job, what, out))
    record["after"] = condition()
    record["runtime"] = {
        "name": Path(job["runtime"]).stem,
        "version": getattr(runtime, "VERSION", ""),
        "python": platform.python_version(),
    }
    record["affinity"] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return record


def _time(runtime, model, arrays, job, what, out):
    import numpy as np

    rows = _rows(arrays)
    clock = time.perf_counter_ns
    begun = clock()
    infer = runtime.load(model, job["threads"])
    loaded = clock()
    # samples in turn: a constant input flatters caches and branches
    feeds = [_feed(infer, arrays, i, i + 1) for i in range(min(rows, 64))]
    ready = clock()
    infer(feeds[0])
    first = clock() - ready
    feeds = _rolled(infer, arrays, feeds)
    warm, stable = _warm_up(infer, feeds, what)
    times, turn, count = [], 0, len(feeds)
    before, cpu = _switches(), time.process_time_ns()
    begun_steady = now = clock()
    least, most = begun_steady + int(what["steady_s"] * 1e9), begun_steady + int(what["cap_s"] * 1e9)
    while (len(times) < what["runs"] or now < least) and (now < most or not times):
        feed = feeds[turn]
        turn = turn + 1 if turn + 1 < count else 0
        start = clock()
        infer(feed)
        now = clock()
        times.append(now - start)
    wall = now - begun_steady
    after, cpu = _switches(), time.process_time_ns() - cpu
    name = what["id"] + ".npy"
    with open(out / (".tmp." + name), "wb") as file:
        np.save(file, np.asarray(times, np.uint32 if max(times) < 2**32 else np.uint64))
        file.flush()
        os.fsync(file.fileno())
    os.replace(out / (".tmp." + name), out / name)
    return {
        "load_ms": (loaded - begun) / 1e6,
        "first_ms": first / 1e6,
        "warmup": {"runs": warm, "stable": stable},
        "times": name,
        "n": len(times),
        "p50_ms": float(np.quantile(times, 0.5)) / 1e6,
        "p90_ms": float(np.quantile(times, 0.9)) / 1e6,
        "wall_ms": wall / 1e6,
        "cpu_share": cpu / wall if wall else None,  # below the thread count: the process had to wait for a core
        "involuntary_switches": None if before is None else after - before,
    }


def _warm_up(infer, feeds, what):
    """Until two consecutive medians of 10 runs agree within 1 %, after the least runs and time; (runs, whether it
    became stable)."""
    clock, begun, times, last = time.perf_counter_ns, time.perf_counter(), [], None
    while True:
        for _ in range(10):
            feed = feeds[len(times) % len(feeds)]
            start = clock()
            infer(feed)
            times.append(clock() - start)
        spent, middle = time.perf_counter() - begun, sorted(times[-10:])[5]
        enough = len(times) >= what["warmup_runs"] and spent >= what["warmup_s"]
        if enough and last is not None and abs(middle - last) <= 0.01 * last:
            return len(times), True
        if spent >= what["warmup_cap_s"]:
            return len(times), False
        last = middle


def _memory(runtime, model, arrays, job, what, out):
    begun = time.perf_counter_ns()
    infer = runtime.load(model, job["threads"])
    loaded = time.perf_counter_ns()
    for i in range(what["runs"]):
        infer(_feed(infer, arrays, i % _rows(arrays), i % _rows(arrays) + 1))
    spent = time.perf_counter_ns() - loaded
    return {"peak_rss_bytes": peak_rss(), "load_ms": (loaded - begun) / 1e6, "run_ms": spent / 1e6 / what["runs"]}


def _bare(runtime, model, arrays, job, what, out):
    for i in range(what["runs"]):
        [array.take(i % _rows(arrays), i % _rows(arrays) + 1).copy() for array in arrays.values()]
    return {"peak_rss_bytes": peak_rss()}


def _outputs(runtime, model, arrays, job, what, out):
    import numpy as np

    infer = runtime.load(model, job["threads"])
    if isinstance(arrays, _Steps):
        parts, stop = _over_sequences(infer, arrays, what)
        return _saved(infer, parts, stop, what, out)
    rows, alone = _rows(arrays), any(array.axis == WHOLE for array in arrays.values())
    given = {name: arrays.get(name, arrays.get("")) for name in infer.inputs}
    fixed = {
        shape[given[name].axis]
        for name, (_, shape) in infer.inputs.items()
        if given[name] is not None and isinstance(given[name].axis, int) and len(shape) > given[name].axis
    } - {None}
    size = 1 if alone else min(fixed) if fixed else what["batch"]
    where = job["subjects"][what["subject"]].get("answers", {})
    parts, stop, begun = {name: [] for name in infer.outputs}, 0, time.monotonic()
    for start in range(0, rows, size):
        if start and what.get("cap_s") and time.monotonic() - begun > what["cap_s"]:
            break
        stop = min(start + size, rows)
        for name, value in _asked(infer, arrays, start, stop).items():
            value, axis = np.asarray(value), where.get(name, 0)
            value = np.moveaxis(value, axis, 0) if value.ndim > axis else value
            if alone:
                parts[name].append(value if value.ndim else value.reshape(1))
                continue
            if value.ndim == 0 or len(value) < stop - start:
                raise ValueError(
                    f"output {name} has shape {list(value.shape)} for {stop - start} samples: no row per sample"
                )
            parts[name].append(value[: stop - start])
        for array in arrays.values():
            array.unload()
    return _saved(infer, parts, stop, what, out)


class AtSample(Exception):
    """A model did not run with one of the samples."""


def _asked(infer, arrays, start, stop):
    """What a model answers to these samples. Where it fails, the first that it fails for is named."""
    try:
        return infer(_feed(infer, arrays, start, stop))
    except Exception as error:
        for i in range(start, stop) if stop - start > 1 else ():
            try:
                infer(_feed(infer, arrays, i, i + 1))
            except Exception as alone:
                if type(alone) is not type(error):
                    break  # it takes a fixed number of samples
                raise AtSample(f"sample {i}: {type(alone).__name__}: {alone}") from None
        raise


def _over_sequences(infer, arrays, what):
    """({output: [array of a row per step]}, rows that were done): several sequences at a time, each with its own
    states."""
    import numpy as np

    starts = [*np.flatnonzero(arrays.begins).tolist(), _rows(arrays)]
    sequences = [(a, b - a) for a, b in zip(starts, starts[1:])]  # noqa: B905
    fixed = any(shape and shape[0] is not None for _, shape in infer.inputs.values())
    size, parts, begun = 1 if fixed else what["batch"], {name: [] for name in infer.outputs}, time.monotonic()
    stop = 0
    for at in range(0, len(sequences), size):
        if at and what.get("cap_s") and time.monotonic() - begun > what["cap_s"]:
            break
        group = sorted(sequences[at : at + size], key=lambda one: -one[1])  # those that go on come first
        first, stop = min(a for a, _ in group), max(a + n for a, n in group)
        made, state = {}, {}
        for step in range(group[0][1]):
            rows = [a + step for a, n in group if step < n]
            feed = _checked(infer, {n: _Given(array.array[rows]) for n, array in arrays.items()}, arrays.states)
            feed.update({n: s[: len(rows)] for n, s in state.items()} or _zeros(infer, arrays, len(rows)))
            answered = {name: np.asarray(value) for name, value in infer(feed).items()}
            for name, value in answered.items():
                if value.ndim == 0 or len(value) != len(rows):
                    shape = list(value.shape)
                    raise ValueError(f"output {name} has shape {shape} for {len(rows)} sequences: no row per sequence")
                if name not in made:
                    made[name] = np.empty((stop - first,) + value.shape[1:], value.dtype)
                made[name][[row - first for row in rows]] = value
            state = {name: answered[output] for name, output in arrays.states.items()}
        for name, value in made.items():
            parts[name].append(value)
        for array in arrays.values():
            array.unload()
    return parts, stop


def _saved(infer, parts, stop, what, out):
    """Writes the outputs of all rows."""
    import numpy as np

    folder = out / what["id"]
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(infer.outputs):
        with open(folder / ".tmp", "wb") as file:
            np.save(file, _joined(parts[name]), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(folder / ".tmp", folder / f"{i}.npy")
    return {"outputs": list(infer.outputs), "n": stop}


def _operators(runtime, model, arrays, job, what, out):
    if not hasattr(runtime, "operators"):
        return {"trace": None}
    infer = runtime.load(model, job["threads"])
    feed, prefix = _feed(infer, arrays, 0, 1), out / (".tmp." + what["id"])
    trace = runtime.operators(model, job["threads"], feed, what["warmup_runs"], what["runs"], what["seconds"], prefix)
    os.replace(trace, out / (what["id"] + ".json"))
    return {"trace": what["id"] + ".json", "warmup": what["warmup_runs"]}


def _count(runtime, model, arrays, job, what, out):
    import ctypes
    import gc

    infer = runtime.load(model, job["threads"])
    feeds = _rolled(infer, arrays, [_feed(infer, arrays, i, i + 1) for i in range(min(_rows(arrays), 64))])
    for i in range(what["warmup_runs"]):
        infer(feeds[i % len(feeds)])
    mark, nothing = ctypes.CDLL(None).prctl, lambda feed: None
    gc.collect()
    gc.disable()
    for i in range(what["empty"] + what["runs"]):
        work, feed = (nothing if i < what["empty"] else infer), feeds[i % len(feeds)]
        mark(MARK, 1, i)  # no kernel knows this call: without a counter it is an error that nobody reads
        work(feed)
        mark(MARK, 0, i)
    return {"empty": what["empty"], "n": what["runs"]}


def _together(runtime, model, arrays, job, what, out):
    import numpy as np

    files = [out.parent / job["subjects"][subject]["model"] for subject in what["subjects"]]
    every = [runtime.load(file, job["threads"]) for file in files]
    feeds = _rolled(every[0], arrays, [_feed(every[0], arrays, i, i + 1) for i in range(min(_rows(arrays), 64))])
    clock, cpu, times, turn = time.perf_counter_ns, time.process_time_ns, [[] for _ in every], 0
    end, number = time.monotonic() + what["cap_s"], 0
    while number < what["rounds"] and (number < 3 or time.monotonic() < end):
        for i in range(len(every)) if number % 2 == 0 else reversed(range(len(every))):
            every[i](feeds[turn])  # the others' weights are in the caches
            begun, taken = clock(), []
            while len(taken) < 3 or clock() - begun < what["block_s"] * 1e9:
                turn = (turn + 1) % len(feeds)
                start, used = clock(), cpu()
                every[i](feeds[turn])
                used = cpu() - used
                taken.append((clock() - start, used))
            if number:  # the first round warms up
                times[i] += taken
        number += 1
    taken = [np.array(t, np.float64) for t in times]
    found = {
        "p50_ms": [float(np.quantile(t[:, 0], 0.5)) / 1e6 for t in taken],
        "cpu_p50_ms": [float(np.quantile(t[:, 1], 0.5)) / 1e6 for t in taken],
        "cpu_share": [float(t[:, 1].sum() / max(1.0, t[:, 0].sum())) for t in taken],
    }
    return {"rounds": number, **{k: dict(zip(what["subjects"], v)) for k, v in found.items()}}  # noqa: B905


def _signature(runtime, model, arrays, job, what, out):
    infer = runtime.load(model, job["threads"])
    return {"signature": {name: [dtype, list(shape)] for name, (dtype, shape) in infer.inputs.items()}}


class _Rows:
    """The samples of one input, looked at through a memory map: the data's size is no part of a model's peak. `axis`:
    where the model takes them."""

    def __init__(self, folder, files, axis):
        import numpy as np

        self.axis = axis
        several = isinstance(files, list)
        found = [np.load(folder / f, mmap_mode="r", allow_pickle=False) for f in (files if several else [files])]
        self.array = found if several else found[0]

    def __len__(self):
        return len(self.array)

    def take(self, start, stop):
        """Samples start to stop as the model takes them."""
        import numpy as np

        if self.axis is None:
            return np.ascontiguousarray(self.array) if self.array.ndim else np.array(self.array)
        if self.axis == WHOLE:
            return np.array(self.array[start])
        value = self.array[start:stop]
        return np.ascontiguousarray(np.moveaxis(value, 0, self.axis) if self.axis else value)

    def unload(self):
        """Takes what was read of the file out of memory, where Python (3.8) and the system can."""
        import mmap

        mapped = getattr(self.array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


class _Steps(dict):
    """{input: its rows} that are steps of sequences; `states` {input: output}, `begins` [rows] bool."""

    def __init__(self, arrays, states, begins):
        import numpy as np

        super().__init__(arrays)
        self.states, self.begins = states, np.load(begins, allow_pickle=False)


class _Given:
    """Rows that are taken already."""

    axis = 0

    def __init__(self, array):
        self.array = array

    def take(self, start, stop):
        import numpy as np

        return np.ascontiguousarray(self.array)


def _zeros(infer, arrays, rows):
    """{state: zeros of so many sequences}, by what the file takes."""
    import numpy as np

    found = {}
    for name in arrays.states:
        if name not in infer.inputs:
            raise ValueError(f"the model takes the inputs {', '.join(infer.inputs)}: none is the state {name}")
        dtype, shape = infer.inputs[name]
        if None in shape[1:]:
            raise ValueError(f"the state {name} has a shape that the model leaves open: it can't start at 0")
        found[name] = np.zeros((rows, *shape[1:]), dtype or "float32")
    return found


def _rolled(infer, arrays, feeds):
    """Feeds of steps with the states that the model gives: as in use, no step begins at zeros but the first."""
    for i, feed in enumerate(feeds if isinstance(arrays, _Steps) else ()):
        answered = infer(feed)
        if i + 1 < len(feeds) and not arrays.begins[i + 1]:
            feeds[i + 1].update({name: answered[output] for name, output in arrays.states.items()})
    return feeds


def _joined(parts):
    """The rows of all feeds; see edgekd's samples/rows.py."""
    import numpy as np

    if len({p.shape[1:] for p in parts}) == 1:
        return np.concatenate(parts)
    for last in (-1, 1):
        if all(p.ndim > 1 for p in parts) and len({p.shape[last] for p in parts}) == 1:
            return np.concatenate([np.moveaxis(p, last, -1).reshape(-1, p.shape[last]) for p in parts])
    return np.concatenate([p.reshape(-1, 1) for p in parts])


def _feed(infer, arrays, start, stop):
    """Rows start to stop of every input by the file's names and types; padded with the last row where the file fixes
    its batch."""
    feed = _checked(infer, arrays, getattr(arrays, "states", ()), start, stop)
    return {**feed, **_zeros(infer, arrays, 1)} if isinstance(arrays, _Steps) else feed


def _checked(infer, arrays, states=(), start=0, stop=1):
    """{input: rows start to stop} of all inputs that are no states. Raises ValueError where the file takes others."""
    import numpy as np

    wanted, given = {name: form for name, form in infer.inputs.items() if name not in states}, arrays
    if list(arrays) == [""]:
        if len(wanted) != 1:
            raise ValueError(f"the model takes the inputs {', '.join(wanted)}: give an array for each by name")
        given = {next(iter(wanted)): arrays[""]}
    if set(given) != set(wanted):
        raise ValueError(f"the model takes the inputs {', '.join(wanted)}, the data has {', '.join(given)}")
    feed = {}
    for name, (dtype, shape) in wanted.items():
        axis, value = given[name].axis, given[name].take(start, stop)
        if dtype is not None and value.dtype != np.dtype(dtype):
            raise ValueError(f"input {name} takes {dtype}, the data is {value.dtype}")
        along = axis if isinstance(axis, int) and len(shape) > axis < value.ndim else None
        if along is not None and shape[along] is not None and value.shape[along] < shape[along]:
            last = np.take(value, [-1], axis=along)
            value = np.concatenate([value, np.repeat(last, shape[along] - value.shape[along], axis=along)], axis=along)
        if len(shape) != value.ndim or any(
            want is not None and want != have and i != along
            for i, (want, have) in enumerate(zip(shape, value.shape))  # noqa: B905
        ):
            takes = ", ".join("any" if d is None else str(d) for i, d in enumerate(shape) if i != along)
            has = [d for i, d in enumerate(value.shape) if i != along]
            raise ValueError(f"input {name} takes samples of shape [{takes}], the data has {has}")
        feed[name] = value
    return feed


def _rows(arrays):
    counts = {len(array) for array in arrays.values() if array.axis is not None} or {1}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"the inputs have {' and '.join(str(c) for c in sorted(counts))} rows")
    return counts.pop()


# ---------------------------------------------------------------- what the machine says


def peak_rss():
    """Peak resident bytes of this process. VmHWM first: on Linux `ru_maxrss` can carry over what the parent had before
    exec."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def condition():
    """Clocks (MHz), temperature (degrees C), governor, throttling, load and stolen time as far as they can be read;
    None where they can't."""
    facts = _module(Path(__file__).resolve().parent / "facts.py")
    clocks = [
        float(line.split(":")[1]) for line in facts.read("/proc/cpuinfo").splitlines() if line.startswith("cpu MHz")
    ]
    clocks = clocks or facts.clocks("/", "scaling_cur_freq")
    first = facts.read("/proc/stat").split("\n", 1)[0].split()
    return {
        "mhz": [min(clocks), max(clocks)] if clocks else None,
        "celsius": facts.celsius(),
        "governor": facts.governor(),
        "throttled": facts.throttled(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "stolen_ticks": int(first[8]) if len(first) > 8 else None,
    }


def _switches():
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    except ImportError:
        return None


def _module(path):
    """Loads a runtime file by its path: `onnxruntime.py` beside a script would hide the library of that name."""
    spec = importlib.util.spec_from_file_location("edgekd_" + Path(path).stem, str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _die_with_parent():
    """A killed parent must not leave a process behind that takes the time of the next run (Linux; elsewhere
    nothing)."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass


def main(arguments):
    if "--facts" in arguments:
        print(json.dumps(_module(Path(__file__).resolve().parent / "facts.py").describe()))
        return 0
    if "--entry" in arguments:
        _die_with_parent()
        try:
            print(json.dumps(entry(arguments[0], int(arguments[arguments.index("--entry") + 1]))), flush=True)
        except SystemExit as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{os.path.basename(last.filename)}:{last.lineno} calls sys.exit({error.code!r})"
            print(json.dumps({"error": told[:2000]}), flush=True)
        except Exception as error:  # whatever a runtime raises is this entry's result
            kind = "" if isinstance(error, AtSample) else f"{type(error).__name__}: "
            print(json.dumps({"error": kind + str(error)[:2000]}), flush=True)
        return 0
    if "--with-parent" in arguments:
        _die_with_parent()
    return 1 if run(arguments[0], lambda text: print(text, flush=True))["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
