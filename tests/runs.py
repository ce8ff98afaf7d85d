"""A folder of a run with files of the right sizes and predictions, as `compress` leaves it, made in an instant."""

import hashlib
import json

import numpy as np

from edgekd import intervals, results
from edgekd.delivery import bundle
from edgekd.files import sha256
from edgekd.metrics import top1
from edgekd.records import Candidate, Measurement, Result, TargetResult

N, DIGEST = 900, "d" * 64
WRONG = {
    "teacher": range(18),
    "alone": range(60),
    "distill": range(5, 30),
    "prune-0.5": range(5, 32),
    "prune-0.5.int8": range(5, 33),
}
BYTES = {"teacher": 800_000, "alone": 90_000, "distill": 90_000, "prune-0.5": 50_000, "prune-0.5.int8": 15_000}
RECIPE = """task = "digits"
targets = ["host"]
[[stage]]
use = "distill"
[gate.any]
top1 = "drop max 3.0 pt vs teacher"
file_bytes = "max 20 kB"
"""


def right(wrong):
    rows = np.ones(N)
    rows[list(wrong)] = 0
    return rows


def rewrite(folder, **changes):
    """Changes keys of result.json; a change of None takes the key away."""
    table = json.loads((folder / "result.json").read_text()) | changes
    (folder / "result.json").write_text(json.dumps({k: v for k, v in table.items() if v is not None}))


def make(
    folder,
    *,
    wrong=None,
    sizes=None,
    digest=DIGEST,
    p50=0.05,
    targets=("host",),
    chosen="prune-0.5.int8",
    recipe=RECIPE,
    environment="abc",
    old=False,
):
    """A folder of a run with five candidates, as `compress` leaves it, or as it did before edgekd.result/2."""
    wrong, sizes = {**WRONG, **(wrong or {})}, {**BYTES, **(sizes or {})}
    for name in ("models", "predictions"):
        (folder / name).mkdir(parents=True)
    found = []
    for id, missed in wrong.items():
        (folder / "models" / f"{id}.onnx").write_bytes(id.encode() + b"\0" * (sizes[id] - len(id)))
        rows, outputs = right(missed), np.zeros((N, 10), np.float32)
        results.save_predictions(
            folder / "predictions" / f"{id}.npz", range(N), digest, outputs, {"top1": rows}, [top1()]
        )
        figures = [Measurement("file_bytes", "B", sizes[id], sizes[id], sizes[id], 1, None, None, "counted")]
        for target in targets:
            low, high = intervals.wilson(int(rows.sum()), N)
            share = (100 * rows.mean(), 100 * low, 100 * high)
            figures += [
                Measurement("top1", "%", *share, N, split, target, "measured", 1, environment)
                for split in ("validation", "test")
            ]
            figures.append(
                Measurement(
                    "latency_p50_ms", "ms", p50, p50 * 0.98, p50 * 1.02, 6, None, target, "measured", 1, environment
                )
            )
        file = f"models/{id}.onnx"
        found.append(Candidate(id, id, 0, (), (), "onnx", file, sha256(folder / file), tuple(figures)))
    made = {
        t: TargetResult(
            tuple(WRONG)[2:], chosen, "pass", (), "" if chosen else "none of 3 candidates is within the budgets"
        )
        for t in targets
    }
    facts = {environment: {"cpu": "Example CPU", "versions": {"onnxruntime": "1.31.1"}}}
    digest_of_recipe = hashlib.sha256(recipe.encode()).hexdigest()
    kept = {} if old else {"predictions": results.digests(folder / "predictions"), "means": {"top1": 100.0}}
    result = Result(
        "digits", digest_of_recipe, facts, {"teacher": "teacher", "alone": "alone"}, tuple(found), made, **kept
    )
    results.write(result, folder / "result.json")
    if old:
        rewrite(folder, schema="edgekd.result/1")
    (folder / "recipe.toml").write_text(recipe)
    return folder


def bundled(folder, target="host"):
    golden = {"input": np.zeros((2, 1, 8, 8), np.float32)}
    result = results.read(folder)
    return bundle.write(
        folder,
        result,
        result.targets[target].chosen,
        target,
        golden_inputs=golden,
        golden_outputs={"output": np.zeros((2, 10))},
    )
