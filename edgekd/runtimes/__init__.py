"""What is copied to a device: `worker.py` and one file per runtime. They import nothing of edgekd, and read as Python
3.8.

A runtime file offers `FORMAT`, `load(path, threads) -> infer`, and optionally `operators(...)`; see `onnxruntime.py`.
"""

import re
from pathlib import Path


def names():
    """The runtimes: the files of this folder that offer a `FORMAT`. None is imported."""
    return sorted(
        p.stem
        for p in Path(__file__).parent.glob("*.py")
        if re.search(r"^FORMAT = ", p.read_text(encoding="utf-8"), re.MULTILINE)
    )
