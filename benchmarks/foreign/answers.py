"""What files answer, and how long they take: `python answers.py JOB.json`, in a process of its own, perhaps on an
emulated CPU.

JOB.json: {"model": the float file, whose samples are asked, "files": {way: path}, "out": folder, "samples": at most,
"seconds": that one file may take, "rounds": of timing (0: none)}. Writes OUT/WAY.npz with {output: [n, ...]} and
OUT/done.json: {way: {"samples": n, "error": ...} or with timing {"ms": [one per round]}}."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import samples

BURST = 0.02  # seconds that one file runs in a round, once at least

Infer = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


def opened(path: str) -> tuple[Infer, list[str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, dict(feed)), [o.name for o in session.get_outputs()]


def answered(infer: Infer, feeds: Sequence[Mapping[str, np.ndarray]], seconds: float) -> list[list[np.ndarray]]:
    found, end = [], time.monotonic() + seconds
    for feed in feeds:
        found.append(list(infer(feed)))
        if time.monotonic() > end:
            break
    return found


def stacked(names: Sequence[str], found: Sequence[Sequence[np.ndarray]], batch: int) -> dict[str, np.ndarray]:
    """{output: [n, ...]}; an output whose shape depends on the values is cut to the least."""
    made = {}
    for name, parts in zip(names, zip(*found, strict=True), strict=True):
        arrays = [np.atleast_1d(p) for p in parts]
        least = tuple(map(min, zip(*(a.shape for a in arrays), strict=True)))
        arrays = [a[tuple(map(slice, least))] for a in arrays]
        made[name] = np.concatenate(arrays) if least[0] == batch else np.stack(arrays)
    return made


def timed(files: Mapping[str, Infer], feed: Mapping[str, np.ndarray], rounds: int) -> dict[str, list[float]]:
    """{way: milliseconds of one run in each round}: all in turn, each second round backwards."""
    found: dict[str, list[float]] = {way: [] for way in files}
    for infer in files.values():
        infer(feed)
    for number in range(rounds):
        for way in list(files)[:: 1 if number % 2 == 0 else -1]:
            infer, runs, begin = files[way], 0, time.perf_counter()
            while runs == 0 or time.perf_counter() - begin < BURST:
                infer(feed)
                runs += 1
            found[way].append(1000 * (time.perf_counter() - begin) / runs)
    return found


def main(job: Mapping[str, Any]) -> None:
    data, out = samples.of(Path(job["model"])), Path(job["out"])
    last = min(data.count, data.calibration + job["samples"])
    feeds, told, open_ = data.batches(data.calibration, last), {}, {}
    for way, path in job["files"].items():
        try:
            infer, names = opened(path)
            found = answered(infer, feeds, job["seconds"])
        except Exception as error:  # whatever a runtime says of a file is its result
            told[way] = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
            continue
        np.savez(out / f"{way}.npz", **stacked(names, found, data.batch))
        told[way], open_[way] = {"samples": len(found) * data.batch}, infer
    if job["rounds"]:
        for way, times in timed(open_, feeds[0], job["rounds"]).items():
            told[way]["ms"] = times
    (out / "done.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
