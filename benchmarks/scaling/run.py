"""What more data costs: the peak memory of whole runs over few and many images, and the speed of training from a folder
against training from memory.

    python benchmarks/scaling/run.py [--counts 1000 10000 100000] [--rounds 5] [--out benchmarks/scaling/result.json]

Memory: `edgekd compress` (an epoch of a teacher and of a student, int8 by calibration) over images of 96 x 96 x 3
bytes in a mapped file. `resident` is the peak resident memory of its own process, `proportional` the largest sum with
those that it started at one time, shared pages counted once.

Speed: steps over images in a folder, read by one process ahead or by none, and over the same images in memory, in turn;
a step is made longer by repeating it. Only ratios are meant to be compared between machines.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECIPE = """
task    = "scaling:task"
targets = ["host"]
threads = 1

[[stage]]
use    = "distill"
epochs = 1

[[stage]]
use  = "quantize"
mode = "ptq"

[model.teacher]
train = { epochs = 1 }
"""
BATCH, BATCHES, TIMES = 64, 12, (1, 4, 16, 64)  # of a step, until it costs 20 times its batch's decoding


def proportional(pid: int) -> int:
    """Bytes of a process and those that it started, shared pages counted once."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += sum(proportional(int(child)) for child in (thread / "children").read_text().split())
    except OSError:  # it has ended
        pass
    return total


def memory(count: int, folder: Path) -> dict[str, float]:
    """The peaks of one run, in a process of this script's own."""
    import scaling

    folder = folder.resolve()
    scaling.images(folder / f"{count}.npy", count)
    (folder / "recipe.toml").write_text(RECIPE)
    env = {**os.environ, "SCALING_COUNT": str(count), "SCALING_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    env |= {"EDGEKD_STORE": str(folder / f"store-{count}"), "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT)))}
    command = [sys.executable, "-m", "edgekd", "compress", str(folder / "recipe.toml"), "--out", str(folder / "run")]
    dry, run = peaks([*command, "--dry-run"], env), peaks(command, env)
    (folder / f"{count}.npy").unlink()
    return {"count": count, "dry_run_resident": dry[0], "resident": run[0], "proportional": run[1]}


def peaks(command: list[str], env: dict[str, str]) -> tuple[int, int]:
    """(peak resident bytes of the command's own process, largest proportional sum with those that it started). Not
    `ru_maxrss`: a child's can carry over what this process had, which has just written the images. A process that is
    just started has its parent's memory for a moment, all of it counted again: a sum counts that was seen twice."""
    run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    resident, most, last = 0, 0, 0
    while run.poll() is None:
        try:
            lines = Path(f"/proc/{run.pid}/status").read_text().splitlines()
            resident = max(resident, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
        except OSError:  # it has ended
            pass
        now = proportional(run.pid)
        most, last = max(most, min(last, now)), now
        time.sleep(0.25)
    assert run.returncode in (0, 1), run.returncode  # 1: the gate failed
    return resident, most


def speed(rounds: int, folder: Path) -> dict[str, object]:
    """Time from memory over time from the folder, for steps of several lengths."""
    import torch
    from PIL import Image

    from edgekd.data import column, columns
    from edgekd.models.networks import residual
    from edgekd.tasks.image_folder import image_folder

    rng = np.random.default_rng(0)
    for i in range(BATCH * BATCHES * 3 // 2):
        place = folder / "images" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (120, 120, 3), dtype=np.uint8)).save(place / f"{i}.jpg")
    make = lambda: columns.load(image_folder(path=folder / "images", size=96), "train")
    column.HELD = 2**40
    near, column.HELD = make(), 0
    far = make()
    assert isinstance(near.inputs, np.ndarray) and far.inputs.decoded
    torch.set_num_threads(1)
    model = residual((8, 16, 32), channels=3, classes=2, stem_stride=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    order = [rng.permutation(len(near))[:BATCH] for _ in range(BATCHES)]

    def seconds(data, times: int, workers: int) -> float:
        os.environ["EDGEKD_WORKERS"] = str(workers)
        start = time.perf_counter()
        for batch in columns.taken(data, order):
            for _ in range(times):
                loss = torch.nn.functional.cross_entropy(model(batch.inputs), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return (time.perf_counter() - start) / len(order)

    decoding = statistics.median(seconds(far, 0, 0) for _ in range(3))
    found = []
    for times in TIMES:
        taken = [[seconds(near, times, 0), seconds(far, times, 0), seconds(far, times, 1)] for _ in range(rounds)]
        step = statistics.median(t[0] for t in taken)
        ratio = {f"speed_{w}": statistics.median(t[0] / t[1 + w] for t in taken) for w in (0, 1)}
        found.append({"step_over_decoding": step / decoding, **ratio})
        if step > 20 * decoding:
            break
    return {
        "batch": BATCH,
        "steps": found,
        "break_even": break_even([(f["step_over_decoding"], f["speed_1"]) for f in found]),
    }


def break_even(found: list[tuple[float, float]], speed: float = 0.95) -> float | None:
    """How many times its batch's decoding a step costs where training from the folder has this share of the speed from
    memory: between the two lengths that were measured, on the line of the share lost over decoding / step."""
    for (short, low), (long, high) in itertools.pairwise(found):
        if low < speed <= high:
            share = (speed - low) / (high - low)
            return 1 / (1 / short + share * (1 / long - 1 / short))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("memory", "speed"))
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    asked = parser.parse_args()
    sys.path[:0] = [str(HERE), str(ROOT)]
    from edgekd import environment

    result = json.loads(asked.out.read_text()) if asked.part and asked.out.is_file() else {}
    told = {"schema": "edgekd.benchmark/1", "command": "python benchmarks/scaling/run.py", "seed": 0}
    result |= {**told, "environment": environment.describe()}
    with tempfile.TemporaryDirectory(prefix="scaling-") as made:
        if asked.part != "speed":
            code = "import pathlib, json, run, sys; print(json.dumps(run.memory(int(sys.argv[1]), pathlib.Path('.'))))"
            env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT)))}
            rows = []
            for count in asked.counts:
                own = [sys.executable, "-c", code, str(count)]
                answer = subprocess.run(own, cwd=made, env=env, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(answer.stdout))
                print(rows[-1], flush=True)
            keys = ("dry_run_resident", "resident", "proportional")
            growth = {key: rows[-1][key] / rows[0][key] for key in keys}
            result["memory"] = {"runs": rows, "growth": growth}
        if asked.part != "memory":
            result["speed"] = speed(asked.rounds, Path(made))
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k in ("memory", "speed")}, indent=1))


if __name__ == "__main__":
    main()
