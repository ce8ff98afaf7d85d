"""Weights and temperatures of `cross_entropy` and `kl` for outputs with several answers per sample: distilled minus
alone, of the exported float file on the test split, over seeds.

    python benchmarks/kinds/losses.py [--seeds 0 1 2 3 4] [--only NAME ...] [--times 4]

The recipes are those of `benchmarks/examples` with `--times` as many epochs, up to the distilled student. What is
finished is found in losses.json, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE / "losses.json"
METRICS = {"segmentation": "mean_iou", "multi_label": "average_precision", "binary": "auc", "recurrent": "top1"}
WAYS = {  # (weight of cross_entropy, weight of kl, temperature)
    "0.1 and 0.9 at 4": (0.1, 0.9, 4.0),
    "0.1 and 0.9 at 2": (0.1, 0.9, 2.0),
    "0.1 and 0.9 at 1": (0.1, 0.9, 1.0),
    "half each at 4": (0.5, 0.5, 4.0),
    "half each at 2": (0.5, 0.5, 2.0),
    "half each at 1": (0.5, 0.5, 1.0),
}


def one(name: str, seed: int, times: int) -> dict[str, float]:
    """{way: its metric}, with `alone` and `teacher`."""
    sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
    import run

    run.hurry()
    sys.path.insert(0, str(run.EXAMPLES / name))
    found = {}
    for way, (labels, teacher, temperature) in WAYS.items():
        given = run.recipe(name, seed, times, False)
        given["stage"] = [s for s in given["stage"] if s["use"] == "distill"]
        given["stage"][0]["losses"] = [
            {"use": "cross_entropy", "weight": labels},
            {"use": "kl", "weight": teacher, "temperature": temperature},
        ]
        with tempfile.TemporaryDirectory(prefix="edgekd-") as place:
            told = run.figures(given | {"control": not found}, Path(place) / "run")
        if not found:
            found = {which: told[which][METRICS[name]] for which in ("teacher", "alone")}
        found[way] = told["distill"][METRICS[name]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(METRICS), choices=METRICS)
    parser.add_argument("--times", type=int, default=4, help="the epochs of the examples are multiplied by this")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked.seeds[0], asked.times)))
        return
    sys.path.insert(0, str(HERE.parent.parent))
    from edgekd import environment, intervals

    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"schema": "edgekd.benchmark/1", "figures": {}}
    for seed in asked.seeds:
        for name in asked.only:
            known = result["figures"].setdefault(name, {})
            if str(seed) in known:
                continue
            words = [sys.executable, __file__, "--one", name, "--seeds", str(seed), "--times", str(asked.times)]
            path = os.pathsep.join(filter(None, (str(HERE.parent.parent), os.environ.get("PYTHONPATH"))))
            place, env = HERE.parent / "examples" / name, {**os.environ, "PYTHONPATH": path}
            told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=place, env=env)
            known[str(seed)] = json.loads(told.stdout.splitlines()[-1])
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    gaps = {
        name: {way: [round(x, 3) for x in intervals.mean([s[way] - s["alone"] for s in each.values()])] for way in WAYS}
        for name, each in result["figures"].items()
    }
    command = f"python benchmarks/kinds/losses.py --seeds {' '.join(map(str, asked.seeds))} --times {asked.times}"
    result |= {"distilled - alone": gaps, "command": command, "environment": environment.describe()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(gaps, indent=1))


if __name__ == "__main__":
    main()
