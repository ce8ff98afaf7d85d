"""edgekd's training on a GPU, from a source tree: step time beside a loop written by hand, a whole run, what resumes to
the bit, and every loss and ensemble beside the CPU.

    PYTHONPATH=. python benchmarks/gpu/run.py [--quick] [--device cuda] [--only steps,run,resume,parts] [--out FILE]

It needs torch, numpy, onnx, onnxruntime, onnxscript, safetensors, scikit-learn, threadpoolctl, pydantic,
annotated-types, click, rich and tomli-w; edgekd itself need not be installed. A part that fails is reported with its
traceback, and the others run. Only ratios are meant to be compared between machines.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
SEED = 0
LIBRARIES = ("torch", "triton", "numpy", "onnx", "onnxruntime", "onnxscript", "pydantic", "safetensors", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps: whether everything works")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="parts,steps,run,resume", help="parts of the benchmark, in this order")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    given = parser.parse_args()
    begun, wanted = time.monotonic(), given.only.split(",")
    record = {
        "command": " ".join(["python", "benchmarks/gpu/run.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": SEED,
        "quick": given.quick,
        "versions": _versions(),
        "machine": _machine(given.device),
    }
    print(json.dumps(record["machine"]), flush=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with tempfile.TemporaryDirectory(prefix="edgekd-gpu-") as folder:
        os.environ["EDGEKD_STORE"] = str(Path(folder) / "store")
        for name in wanted:
            at = time.monotonic()
            record[name] = _tried(name, given.device, given.quick, Path(folder))
            record[name]["seconds"] = round(time.monotonic() - at, 1)
            record["seconds"] = round(time.monotonic() - begun, 1)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(record, indent=1) + "\n")  # after each: what is done is kept
            _show(name, record[name])
    failed = [name for name in wanted if not record[name]["ok"]]
    print(f"{record['seconds']} s; failed: {', '.join(failed) or 'nothing'}; {given.out}")
    sys.exit(bool(failed))


def _tried(name: str, device: str, quick: bool, folder: Path) -> dict:
    import measured

    with contextlib.ExitStack() as stack:
        if device.startswith("cuda"):
            stack.enter_context(_synchronized())
        try:
            found = getattr(measured, name)(device, quick, folder)
            return {"ok": not any(isinstance(v, dict) and "error" in v for v in found.values()), **found}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return {"ok": False, "error": str(error), "traceback": traceback.format_exc()}


@contextlib.contextmanager
def _synchronized():
    """Leaves nothing of a part in flight for the next."""
    import torch

    yield
    with contextlib.suppress(Exception):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _machine(device: str) -> dict:
    import torch

    found = {"cores": len(os.sched_getaffinity(0)), "processor": platform.machine(), "cuda": torch.version.cuda}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device) if torch.cuda.is_available() else None
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
            found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    return found


def _show(name: str, found: dict) -> None:
    print(f"\n== {name}: {'ok' if found['ok'] else 'FAILED'}, {found['seconds']} s")
    if "traceback" in found:
        print(found["traceback"])
    for key, value in found.items():
        if isinstance(value, dict):
            told = {k: v for k, v in value.items() if k not in ("traceback", "each")}
            print(f"  {key:<24}", "  ".join(f"{k} {v}" for k, v in told.items()))
            if "traceback" in value:
                print(value["traceback"])
    sys.stdout.flush()


if __name__ == "__main__":
    main()
