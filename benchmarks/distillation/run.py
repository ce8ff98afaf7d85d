"""Every way of distillation against its control: equal budget of epochs, equal starts, several seeds, the exported file
scored in onnxruntime.

    export EDGEKD_CIFAR10=/path/to/cifar-10-binary.tar.gz
    python benchmarks/distillation/run.py --seeds 0 1 2 [--only NAME ...] [--digits]
    DISTILLATION_ROWS=2000 python benchmarks/distillation/run.py --times              on an idle machine
    python benchmarks/distillation/run.py --tables

What is finished is found in the store; a killed run goes on. RESULTS.md is made from result.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULT, TABLES = HERE / "result.json", HERE / "RESULTS.md"
TEACHER = HERE.parent / "cifar10" / "teacher.safetensors"
COMMAND = "EDGEKD_CIFAR10=... python benchmarks/distillation/run.py --seeds 0 1 2 (with --digits: --seeds 0 1 2 3 4)"
CE = {"use": "cross_entropy", "weight": 1.0}
KD = [{"use": "cross_entropy", "weight": 0.1}, {"use": "kl", "weight": 0.9, "temperature": 4.0}]


def distil(losses, **more):
    return {"use": "distill", "losses": losses, **more}


# ---------------------------------------------------------------- the worlds: what all recipes of one share

WORLDS = {
    "digits": {
        "task": "worlds:digits",
        "model": {"teacher": {"train": {"epochs": 60}}},
        "epochs": {"epochs": 30, "lr": 0.004},
    },
    "built-in": {
        "task": "digits",
        "model": {"teacher": {"train": {"epochs": 60}}},
        "epochs": {"epochs": 60, "lr": 0.004},
    },
    "omitted": {"task": "worlds:omitted", "from": "digits", "epochs": {"epochs": 120, "lr": 0.004}},
    "experts": {"task": "worlds:digits", "from": "digits", "epochs": {"epochs": 30, "lr": 0.004}},
    "few": {"task": "worlds:few", "from": "digits", "epochs": {"epochs": 120, "lr": 0.004}},
    "cifar": {
        "task": "worlds:cifar",
        "model": {"teacher": {"weights": str(TEACHER)}},
        "epochs": {
            "epochs": 40,
            "views": 10,
            "batch": 64,
            "optimizer": "sgd",
            "lr": 0.05,
            "precision": "bfloat16",
            "teacher_precision": "bfloat16",
        },
    },
}
PLAIN = [distil([CE])]
BLOCKS = ["3", "4", "5"]  # the three parts of the built-in example's student, and of its teacher
LAYERS = ["3 -> 5", "4 -> 12", "5 -> 19"]  # the ends of the student's three parts, and the teacher's of the same size
ALONE = {"train": {"model": "student"}}
SOFT, SOFTER = ([distil([{"use": "kl", "weight": 1.0, "temperature": t}])] for t in (4.0, 20.0))
ROUTES = {"use": "routed", "classes": {"low": [0, 1, 2, 3, 4], "high": [5, 6, 7, 8, 9]}}
FALLING = {"by": "agreement", "temperature": [[0.3, 8.0], [0.9, 2.0]]}
PAST = {"use": "kl", "weight": 1.0, "teacher": "ema", "schedule": {"weight": [[0, 0], [0.3, 1]]}}


def taught_by(*names, **combine):
    """Models that were brought, and a stage that learns from them alone, from one or from all."""
    stage = distil([{"use": "kl", "weight": 1.0, "temperature": 2.0}], teacher=list(names))
    return {name: {"weights": name} for name in names if name != "teacher"}, [
        stage | ({"combine": combine} if combine else {})
    ]


# (world, what is shown, name, stages or a table of them and models, control of that name, expected)
METHODS = [
    ("omitted", "labels, a number added", PLAIN, None, "shifted"),
    ("omitted", "soft targets (T = 4), a number added", SOFT, "labels, a number added", "shifted"),
    ("omitted", "soft targets (T = 20), a number added", SOFTER, "labels, a number added", "shifted"),
    ("omitted", "labels", PLAIN, None, "recall"),
    ("omitted", "soft targets (T = 20)", SOFTER, "labels", "recall"),
    ("few", "60 labels", PLAIN, None, "top1"),
    ("digits", "614 more without labels, from the teacher", [distil([{"use": "kl", "weight": 1.0}], epochs=11)],
     ("few", "60 labels"), "top1"),
    ("experts", "one that knows 0 to 4", taught_by("low"), None, "top1"),
    ("experts", "one that knows 5 to 9", taught_by("high"), "one that knows 0 to 4", "top1"),
    ("experts", "both, mean of probabilities", taught_by("low", "high"), "one that knows 0 to 4", "top1"),
    ("experts", "both, mean of logits", taught_by("low", "high", use="mean_logits"), "both, mean of probabilities",
     "top1"),
    ("experts", "both, by confidence", taught_by("low", "high", use="confidence"), "both, mean of probabilities",
     "top1"),
    ("experts", "both, learned weights", taught_by("low", "high", use="learned"), "both, mean of probabilities",
     "top1"),
    ("experts", "both, routed by class", taught_by("low", "high", **ROUTES), "both, mean of probabilities", "top1"),
    ("experts", "two and a loud one, probabilities", taught_by("teacher", "high", "loud"), None, "top1"),
    ("experts", "two and a loud one, logits", taught_by("teacher", "high", "loud", use="mean_logits"),
     "two and a loud one, probabilities", "top1"),
    ("built-in", "alone", PLAIN, None, "top1"),
    ("built-in", "KD", [distil(KD)], "alone", "top1"),
    ("built-in", "KD, T = 2", [distil([KD[0], {**KD[1], "temperature": 2.0}])], "KD", "top1"),
    ("built-in", "KD, half of each", [distil([{**KD[0], "weight": 0.5}, {**KD[1], "weight": 0.5}])], "KD", "top1"),
    ("built-in", "DKD", [distil([CE, {"use": "dkd", "weight": 1.0, "beta": 2.0}])], "KD", "top1"),
    ("built-in", "learned temperature", [distil([KD[0], {"use": "curriculum_kl", "weight": 0.9}])], "KD", "top1"),
    ("built-in", "KD + attention", [distil([*KD, {"use": "attention", "weight": 1000.0, "on": BLOCKS}])], "KD", "top1"),
    ("cifar", "alone", PLAIN, None, "top1"),
    ("cifar", "KD", [distil(KD)], "alone", "top1"),
    ("cifar", "KD, teacher live", [distil(KD, cache=False)], "KD", "top1"),
    ("cifar", "KD, standardized",
     [distil([KD[0], {"use": "kl", "weight": 9.0, "temperature": 2.0, "standardize": True}])], "KD", "top1"),
    ("cifar", "DKD", [distil([CE, {"use": "dkd", "weight": 1.0, "beta": 2.0}])], "KD", "top1"),
    ("cifar", "DIST", [distil([CE, {"use": "dist", "weight": 1.0, "beta": 2.0, "gamma": 2.0, "tau": 4.0}])], "KD",
     "top1"),
    ("cifar", "reverse KL", [distil([KD[0], {"use": "reverse_kl", "weight": 0.9}])], "KD", "top1"),
    ("cifar", "logits' squares", [distil([KD[0], {"use": "logit_mse", "weight": 0.1}])], "KD", "top1"),
    ("cifar", "learned temperature", [distil([KD[0], {"use": "curriculum_kl", "weight": 0.9}])], "KD", "top1"),
    ("cifar", "temperature by agreement", [distil([KD[0], {**KD[1], "schedule": FALLING}])], "KD", "top1"),
    ("cifar", "hard labels (black box)", [distil([{"use": "hard"}])], "alone", "top1"),
    ("cifar", "KD + attention", [distil([*KD, {"use": "attention", "weight": 1000.0, "on": LAYERS}])], "KD", "top1"),
    ("cifar", "KD + hint", [distil([*KD, {"use": "hint", "weight": 1.0, "on": LAYERS[-1:]}])], "KD", "top1"),
    ("cifar", "KD + similarity", [distil([*KD, {"use": "similarity", "weight": 300.0, "on": LAYERS[-1:]}])], "KD",
     "top1"),
    ("cifar", "KD + contrastive", [distil([*KD, {"use": "contrastive", "weight": 0.2, "on": LAYERS[-1:]}])], "KD",
     "top1"),
    ("cifar", "mutual, two peers", [distil([CE, {"use": "kl", "weight": 1.0, "temperature": 1.0}], peers=2)], "alone",
     "top1"),
    ("cifar", "own average (EMA)", [distil([CE, PAST], ema=0.99)], "alone", "top1"),
    ("cifar", "auxiliary heads", [distil([CE, {"use": "heads", "weight": 0.5, "on": ["3", "4"]}])], "alone", "top1"),
    ("cifar", "born again", ({"first": ALONE}, [distil([CE, {"use": "kl", "weight": 1.0}], teacher="first")]), "alone",
     "top1"),
    ("cifar", "teacher's assistant", ({"assistant": {"distill": {"losses": KD}}}, [distil(KD, teacher="assistant")]),
     "KD", "top1"),
    ("cifar", "QAT 8 bits, labels", [distil(KD), {"use": "quantize", "losses": [CE]}], None, "top1"),
    ("cifar", "QAT 8 bits, teacher", [distil(KD), {"use": "quantize", "losses": KD}], "QAT 8 bits, labels", "top1"),
    ("cifar", "QAT 4 bits, labels", [distil(KD), {"use": "quantize", "weight_bits": 4, "losses": [CE]}], None, "top1"),
    ("cifar", "QAT 4 bits, teacher", [distil(KD), {"use": "quantize", "weight_bits": 4, "losses": KD}],
     "QAT 4 bits, labels", "top1"),
    ("cifar", "pruned to half, labels", [distil(KD), {"use": "prune", "losses": [CE]}], None, "top1"),
    ("cifar", "pruned to half, teacher", [distil(KD), {"use": "prune", "losses": KD}], "pruned to half, labels",
     "top1"),
]  # fmt: skip


def recipe(world: str, made, seed: int, brought: dict) -> dict:
    """The recipe of a method: its stages with the world's epochs; stages after the first have a quarter of them."""
    base = WORLDS[world]
    models, stages = made if isinstance(made, tuple) else ({}, made)
    short = {**base["epochs"], "epochs": max(1, base["epochs"]["epochs"] // 4), "lr": base["epochs"]["lr"] / 5}
    filled = []
    for number, stage in enumerate(stages):
        own = base["epochs"] if number == 0 else short
        # folded norms want the stage's own pace
        left_out = ("precision", "optimizer", "lr") if stage["use"] == "quantize" else ()
        filled.append({**{k: v for k, v in own.items() if k not in left_out}, **stage})
    tables = dict(base.get("model", {})) | ({"teacher": {"weights": brought[base["from"]]}} if "from" in base else {})
    for name, table in models.items():
        weights = brought.get(table.get("weights"))
        tables[name] = (
            {"weights": weights}
            if weights
            else {way: {**base["epochs"], **s} for way, s in table.items()} | {"seed": seed}
        )
    return {
        "task": base["task"],
        "threads": 1,
        "control": False,
        "stage": filled,
        "model": tables,
        "sweep": {"seed": [seed]},
    }


def made_by(given: dict, number: int = -1):
    """(a candidate's file, its artifact, seconds of all training but the teacher's, the task) of a recipe: made, or
    found in the store."""
    from edgekd.progress import reporter
    from edgekd.run import plan, resolve
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store

    resolved, store = resolve.resolved(given), Store()
    planned = plan.make(resolved)
    made, steps = run_steps(planned, resolved, store, reporter(True), lambda **event: None)
    point = planned.points[number]
    trained = [
        s.key
        for s in planned.steps.values()
        if s.stage not in ("export", "load", "answer") and s.key != planned.points[0].step
    ]
    cost = sum(made[key].facts.get("seconds", 0.0) for key in trained)
    return made[point.export].folder / "model.onnx", made[point.step], cost, resolved.task


def figure(path: Path, task, kind: str) -> float:
    """Percent right in onnxruntime on the test images: of all ("top1"); of the class that was left out ("recall"), as
    it is, or ("shifted") once one number, chosen for the accuracy on the validation images, was added to its logit: no
    label told the student how often to expect it."""
    import worlds

    test = task.data("test")
    logits = answers(path, test.inputs)
    if kind == "shifted":
        held = task.data("validation")
        seen = answers(path, held.inputs)
        shifts = np.linspace(0, 2 * np.ptp(seen), 400)
        best = max(
            shifts,
            key=lambda shift: ((seen + shift * (np.arange(10) == worlds.OMITTED)).argmax(1) == held.labels).mean(),
        )
        logits = logits + best * (np.arange(10) == worlds.OMITTED)
    right = logits.argmax(1) == test.labels
    return 100 * float((right[test.labels == worlds.OMITTED] if kind != "top1" else right).mean())


def answers(path: Path, inputs: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: inputs[i : i + 100]})[0] for i in range(0, len(inputs), 100)])


def bring(seed: int) -> dict[str, str]:
    """{name: weights file} of the digits' teachers: one that knows all, two that know half of the digits each, and one
    of these whose logits are ten times what they were: as often right, far too sure."""
    from edgekd.models.saved import read_tensors, write_tensors

    found = {}
    for name, world, of in (("digits", "digits", 0), ("low", "low", seed), ("high", "high", seed)):
        given = recipe("digits", [distil([CE], epochs=1)], 0, {}) | {"task": f"worlds:{world}"}
        given["model"] = {"teacher": {"train": {"epochs": 60}, "seed": of}}
        found[name] = str(made_by(given, 0)[1].folder / "weights.safetensors")  # the first point is the teacher
    tensors = read_tensors(Path(found["low"]))
    last = max({name.partition(".")[0] for name in tensors}, key=int)
    found["loud"] = str(Path(tempfile.mkdtemp()) / "loud.safetensors")
    write_tensors(Path(found["loud"]), {n: 10 * t if n.partition(".")[0] == last else t for n, t in tensors.items()})
    return found


def run(seeds: list[int], only: list[str] | None, digits: bool) -> None:
    from edgekd import environment

    for seed in seeds:
        chosen = [m for m in METHODS if (not only or {m[0], m[1]} & {*only}) and not (digits and m[0] == "cifar")]
        brought = bring(seed) if any("from" in WORLDS[world] for world, *_ in chosen) else {}
        for world, name, made, control, kind in chosen:
            path, _, seconds, task = made_by(recipe(world, made, seed, brought))
            value = figure(path, task, kind)
            result = (
                json.loads(RESULT.read_text())
                if RESULT.is_file()
                else {"schema": "edgekd.benchmark.distillation/1", "methods": {}}
            )
            entry = result["methods"].setdefault(
                f"{world}: {name}", {"kind": kind, "control": control_of(world, control), "seeds": {}}
            )
            entry["seeds"][str(seed)] = {"value": value, "seconds": seconds}
            result |= {"environment": environment.describe(), "command": COMMAND}
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
            print(f"seed {seed}  {world}: {name:45} {value:6.2f} %  {seconds:6.1f} s", flush=True)


def times() -> None:
    """What a step of each method costs against one of `alone`: two short epochs each, in one run, `alone` first and
    last (a control)."""
    import worlds

    if worlds.ROWS > 2000:
        raise SystemExit("set DISTILLATION_ROWS=2000: these are times, nothing is learned")
    base = WORLDS["cifar"]["epochs"]
    base |= {"epochs": 2, "views": 2}
    methods = [(name, made) for world, name, made, *_ in METHODS if world == "cifar" and len(stages_of(made)) == 1]
    found = {}
    for name, made in [*methods, ("alone, again", PLAIN)]:
        if name == "alone, again":
            base["weight_decay"] = 2e-4  # another key: the store would give the first one back
        _, artifact, *_ = made_by(recipe("cifar", made, 0, {}))
        found[name] = artifact.facts["seconds"]
        print(f"{name:40} {found[name]:6.2f} s", flush=True)
    result = json.loads(RESULT.read_text())
    result["times"] = {name: seconds / found["alone"] for name, seconds in found.items()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def stages_of(made) -> list:
    return made[1] if isinstance(made, tuple) else made


def control_of(world: str, control) -> str | None:
    return None if control is None else ": ".join(control) if isinstance(control, tuple) else f"{world}: {control}"


def tables() -> None:
    from edgekd import intervals

    result = json.loads(RESULT.read_text())
    again = result.get("times", {}).get("alone, again", 1)
    lines = [
        "# Distillation: results",
        "",
        "Written by `run.py --tables` from `result.json`; don't edit. Differences are paired by seed, with their 95 % "
        "interval by Student's t where there are several seeds; one seed tells little. Per cent right (or recall) is "
        "of the exported file in onnxruntime. A step's time is that of the last training against one of `alone`, in "
        f"one run on an idle machine; `alone` against itself: {again:.2f}. Born again trains twice. Agreement was "
        "taken of 5,000 validation images before epochs of 2,000.",
        "",
        "The worlds. *omitted*: digits without threes, recall of threes, as the file is or with one number, chosen on "
        "validation, added to their logit. *few*: digits with 60 labels; *digits*: all 674 images, no labels, the "
        "teacher's answers. *experts*: teachers that saw half of the digits each; *loud*: one whose logits are ten "
        "times what they were. *cifar*: 5,000 images of CIFAR-10, 40 epochs, a ResNet-8 of 32 k parameters, a "
        "teacher of 93 %. *built-in*: the first stage of `edgekd compress` without a recipe, all seeds with one "
        "teacher; of the trained models in torch 2.11 on a machine with 16 cores (files exported elsewhere scored "
        "the same, 10 of 10 that were compared). No change of its losses is shown to help there: the default stays.",
        "",
        "| method | control | seeds | % | difference in points | a step's time |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in result["methods"].items():
        values = entry["seeds"]
        mean = sum(v["value"] for v in values.values()) / len(values)
        control = result["methods"].get(entry["control"] or "", {}).get("seeds", {})
        both = [s for s in values if s in control]
        gap, ratio = "", result.get("times", {}).get(name.removeprefix("cifar: "))
        if both:
            each = [values[s]["value"] - control[s]["value"] for s in both]
            gap = f"{each[0]:+.2f}" if len(each) == 1 else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*intervals.mean(each))
        lines.append(
            f"| {name} | {entry['control'] or ''} | {len(values)} | {mean:.2f} | {gap} | "
            f"{f'{ratio:.2f}' if ratio else ''} |"
        )
    facts = result["environment"]
    lines += [
        "",
        f"Again: `{result['command']}`. {facts['cpu']}, "
        f"{', '.join(f'{k} {v}' for k, v in sorted(facts['versions'].items()))}.",
    ]
    TABLES.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="methods, or worlds")
    parser.add_argument("--digits", action="store_true", help="only what needs no CIFAR-10")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--times", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if given.times:
        times()
    elif not given.tables:
        run(given.seeds, given.only, given.digits)
    tables()


if __name__ == "__main__":
    main()
