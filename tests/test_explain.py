"""Which layer of an int8 file loses accuracy, and why: planted faults, files in between, causes by hand, and the verb."""

import numpy as np
import onnx
import pytest
import torch
from faults import HELD_OUT, kit, run, table, weighted
from torch import nn

from edgekd.errors import UsageError
from edgekd.quantization import causes, diagnose, hybrid
from edgekd.quantization.causes import Seen
from edgekd.quantization.operands import Lattice


def test_planted_faults(tmp_path):
    """The bars of the causes were chosen on `faults.TUNED`; these are others."""
    rows = [run(case, tmp_path) for case in HELD_OUT]
    text = table(rows)
    print(text)
    assert len(rows) >= 20 and {r.case.network for r in rows} == {"residual", "ds_cnn"}
    assert sum(r.layer_right for r in rows) >= 0.9 * len(rows), text
    assert sum(r.cause_right for r in rows) >= 0.8 * len(rows), text
