"""Other people's ONNX files as int8, by edgekd and by others: whether it works, how near float, how fast, how dear.

    python benchmarks/foreign/fetch.py FOLDER           # real files, from the packages that ship them
    python benchmarks/foreign/architectures.py FOLDER   # generated ones
    python benchmarks/foreign/run.py FOLDER [--only NAME ...] [--way WAY ...] [--nncf PYTHON] [--avx2]
    python benchmarks/foreign/run.py --tables

FOLDER holds NAME.onnx with NAME.npz or NAME.json beside (see samples.py). What is known of a file is kept in
result.json, so a run that was cut off goes on, and other code of edgekd makes edgekd's files only; --again makes all.
Making is in a process of its own: CPU seconds are those of that process and its children, the peak memory that of the
largest of them. Held-out samples are scored by each file one at a time; times are of one thread, all files in turn in
one process. --avx2 also asks the first held-out samples of an emulated CPU without VNNI. RESULTS.md is made from
result.json alone."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import samples  # noqa: E402
import tables  # noqa: E402
import ways  # noqa: E402

RESULT = HERE / "result.json"
SCHEMA = "edgekd.benchmark.foreign/1"
LIMIT = 300  # seconds that making one file may take
ROUNDS = 21
MEASURING = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": code, "cpu_s": round(used.ru_utime + used.ru_stime, 2), "peak_mb": used.ru_maxrss // 1024}))
"""
AVX2 = {"samples": 8, "seconds": 4}


def made(way: str, python: str, model: Path, data: Path, out: Path, form: Mapping[str, Any]) -> dict[str, Any]:
    """What making a file took, or why there is none."""
    log, ask = out.with_suffix(".log"), ways.command(way, model, data, out, form)
    with log.open("w") as text:
        # a small process between: a large parent's memory would count as its child's
        ask = [sys.executable, "-c", MEASURING, "timeout", str(LIMIT), python, *ask]
        # where quant_pre_process may leave its files
        done = subprocess.run(ask, stdout=subprocess.PIPE, stderr=text, text=True, cwd=out.parent)
    told = json.loads(done.stdout)
    late = told.pop("code") == 124
    if out.is_file():
        return told | {"bytes": out.stat().st_size, "sha256": sha256(out)}
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    said = (" ".join(lines if way == "edgekd" else lines[-1:]) or "no file").replace(str(out.parent), "")
    return told | {"error": f"not ended after {LIMIT} s" if late else said[:300]}


def asked(
    model: Path, files: Mapping[str, Path], out: Path, launch: Mapping[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """{way: what answers.py tells}; its arrays lie in `out`."""
    out.mkdir()
    job = {"model": str(model), "files": {w: str(p) for w, p in files.items()}, "out": str(out)} | settings
    (out / "job.json").write_text(json.dumps(job))
    launch = launch or {"command": [sys.executable], "variables": {}}
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **launch["variables"]}
    done = subprocess.run(
        [*launch["command"], str(HERE / "answers.py"), str(out / "job.json")],
        env=variables,
        capture_output=True,
        text=True,
    )
    if not (out / "done.json").is_file():
        return {way: {"error": (done.stderr.strip().splitlines() or ["crashed"])[-1][:200]} for way in files}
    return json.loads((out / "done.json").read_text())


def beside(plain: Path, int8: Path) -> dict[str, Any]:
    """How an int8 file's answers compare with the float file's: the worst of its outputs and groups of channels."""
    from edgekd.quantization.diagnosis.signal_to_noise import compare

    with np.load(plain) as a, np.load(int8) as b:
        n = min(len(b[name]) for name in b.files)
        pairs = {name: (a[name][:n], b[name][:n]) for name in a.files}
    rows = []
    for name, (x, y) in pairs.items():
        if x.shape == y.shape:
            rows += compare(name, x, y)
    found = {
        "db": [r.snr_db for r in rows if r.snr_db is not None],
        "equal": [100 * r.answers for r in rows if r.answers is not None]
        + [100 * r.equal for r in rows if r.equal is not None],
    }
    return {key: round(min(values), 2) for key, values in found.items() if values}


def measured(model: Path, pythons: Mapping[str, str], launch: Mapping[str, Any] | None) -> dict[str, Any]:
    """All of one file's figures: {way: {figure: value}}."""
    from edgekd import intervals

    with tempfile.TemporaryDirectory() as place:
        folder, data = Path(place), Path(place) / "calibration.npz"
        found = samples.of(model)
        np.savez(data, **found.rows(0, found.calibration))
        form = {"axes": found.axes, "batch": found.batch}
        files, told = {"float": model}, {"float": {"bytes": model.stat().st_size}}
        for way, python in pythons.items():
            out = folder / f"{way}.onnx"
            told[way] = made(way, python, model, data, out, form)
            files |= {way: out} if out.is_file() else {}
        here = asked(model, files, folder / "here", samples=32, seconds=60, rounds=ROUNDS)
        for way in files:
            answer = here[way]
            told[way] |= {k: answer[k] for k in ("error",) if k in answer}
            if way == "float" or "error" in answer or "error" in here["float"]:
                continue
            told[way] |= beside(folder / "here/float.npz", folder / f"here/{way}.npz")
            ratio = intervals.ratio(answer["ms"], here["float"]["ms"])
            told[way]["time_to_float"] = [round(r, 3) for r in ratio]
        told["float"]["ms"] = round(float(np.median(here["float"].get("ms", [0]))), 3)
        if launch and "error" not in here["float"]:
            asking = {way: path for way, path in files.items() if "error" not in told[way]}
            there = asked(model, asking, folder / "there", launch, rounds=0, **AVX2)
            for way in (w for w in asking if w != "float" and "samples" in there[w]):
                told[way]["avx2"] = beside(folder / "here/float.npz", folder / f"there/{way}.npz")
        return told


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def code() -> str:
    """A digest of all that makes edgekd's file here."""
    digest = hashlib.sha256()
    for path in sorted((HERE.parent.parent / "edgekd").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run(folder: Path, only: Sequence[str], chosen: Sequence[str], nncf: str | None, avx2: bool, again: bool) -> None:
    from edgekd import environment, targets
    from edgekd.hosts import emulator

    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    result = result if result.get("schema") == SCHEMA else {"schema": SCHEMA, "files": {}}
    launch = emulator.launch(targets.load("x86-64-avx2")) if avx2 else None
    pythons = {w: nncf if w == "nncf" else sys.executable for w in chosen if w != "nncf" or nncf}
    for model in sorted(folder.glob("*.onnx"), key=lambda p: p.stat().st_size):
        entry = result["files"].get(model.stem, {})
        entry = entry if entry.get("sha256") == sha256(model) else {}
        # only edgekd's code changes
        kept = entry.get("ways", {}) if not again else {}
        known = {w: f for w, f in kept.items() if w != "edgekd" or f.get("code") == code()}
        missing = {w: p for w, p in pythons.items() if w not in known}
        if only and model.stem not in only or not missing:
            continue
        told = json.loads(model.with_suffix(".json").read_text()) if model.with_suffix(".json").is_file() else {}
        found = measured(model, missing, launch)
        if "edgekd" in found:
            found["edgekd"]["code"] = code()
        facts = {key: told.get(key) for key in ("package", "about", "opset")}
        entry = {"sha256": sha256(model), **facts, "ways": entry.get("ways", {}) | found}
        result["files"][model.stem] = entry
        result |= {
            "environment": environment.describe(),
            "command": "python benchmarks/foreign/run.py FOLDER",
            "seed": 0,
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(model.stem, json.dumps(found), flush=True)
    tables.write(result, HERE / "RESULTS.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--way", nargs="*", default=list(ways.WAYS), choices=list(ways.WAYS))
    parser.add_argument("--nncf", help="a Python that has nncf, onnx and onnxruntime")
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if given.tables:
        tables.write(json.loads(RESULT.read_text()), HERE / "RESULTS.md")
    elif given.folder is None:
        parser.error("name the folder of the ONNX files")
    else:
        run(given.folder.resolve(), given.only, given.way, given.nncf, given.avx2, given.again)


if __name__ == "__main__":
    main()
