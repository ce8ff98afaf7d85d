"""The planned activation bytes against onnxruntime's own: the block that it plans for a graph's values, as its arena
logs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_probes
from onnx import helper as h

from edgekd.probes import memory, static

STUDENT = Path(__file__).parent.parent / "benchmarks" / "cifar10" / "student.onnx"

# an arena that grows by what is asked for, and nothing else, tells each request; the second run asks once, for the
# block planned from the first
ARENA = """
import sys, numpy as np, onnxruntime as o
o.set_default_logger_severity(0)
arena = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": 256, "initial_growth_chunk_size_bytes": 256,
         "max_dead_bytes_per_chunk": -1}
memory = o.OrtMemoryInfo("Cpu", o.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, o.OrtMemType.DEFAULT)
o.create_and_register_allocator(memory, o.OrtArenaCfg(arena))
s = o.SessionOptions()
s.intra_op_num_threads = 1
s.add_session_config_entry("session.use_env_allocators", "1")
if sys.argv[2] == "as written":
    s.graph_optimization_level = o.GraphOptimizationLevel.ORT_DISABLE_ALL
session = o.InferenceSession(sys.argv[1], s, providers=["CPUExecutionProvider"])
for _ in range(2):
    print("RUN", file=sys.stderr, flush=True)
    session.run(None, {i.name: np.zeros([1, *i.shape[1:]], np.float32) for i in session.get_inputs()})
"""


def block(model, folder, how):
    """Bytes that onnxruntime asks for in the second run of a graph."""
    onnx.save(model, folder / "m.onnx")
    told = subprocess.run(
        [sys.executable, "-c", ARENA, str(folder / "m.onnx"), how], capture_output=True, text=True, check=True
    ).stderr
    second = told.split("RUN")[2]
    return [int(n) for n in re.findall(r"\(requested\) num_bytes: (\d+)", second)]


def residual(width=32, blocks=2):
    """Convolutions of 3x3 on 32x32 in residual blocks: three maps live at each addition."""
    nodes, constants, last = (
        [h.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4)],
        {"w": test_probes.f(width, 3, 3, 3)},
        "a",
    )
    for n in range(blocks):
        constants |= {f"u{n}": test_probes.f(width, width, 3, 3), f"v{n}": test_probes.f(width, width, 3, 3)}
        nodes += [
            h.make_node("Conv", [last, f"u{n}"], [f"b{n}"], pads=[1] * 4),
            h.make_node("Relu", [f"b{n}"], [f"c{n}"]),
            h.make_node("Conv", [f"c{n}", f"v{n}"], [f"d{n}"], pads=[1] * 4),
            h.make_node("Add", [last, f"d{n}"], [f"e{n}"]),
        ]
        last = f"e{n}"
    nodes.append(h.make_node("GlobalAveragePool", [last], ["y"]))
    return test_probes.model(nodes, {"in:x": ["n", 3, 32, 32], "out:y": ["n", width, 1, 1]}, constants)


@pytest.mark.parametrize(
    "model, how", [(test_probes.network(), "optimized"), (residual(), "as written")], ids=["chain", "residual"]
)
def test_a_float_network_takes_what_onnxruntime_plans(tmp_path, model, how):
    found = test_probes.laid_out(model)
    assert block(model, tmp_path, how) == [memory.arena(found, memory.plan(found))]


def test_onnxruntime_needs_less_where_it_adds_in_place(tmp_path):
    """It fuses a convolution with the addition behind it and writes over one operand: one of the three maps is gone."""
    found, one = test_probes.laid_out(residual()), 4 * 32 * 32 * 32
    assert (memory.arena(found, memory.plan(found)), block(residual(), tmp_path, "optimized")) == (3 * one, [2 * one])


@pytest.mark.skipif(not STUDENT.is_file(), reason="the benchmark's file is not here")
def test_an_int8_network_takes_what_its_integer_operators_read_and_write(tmp_path):
    """The same number from the sizes that onnxruntime's profile gives of each operator that it ran: at an addition
    three maps of 16 KiB."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix, options.intra_op_num_threads = True, str(tmp_path / "p"), 1
    session = onnxruntime.InferenceSession(str(STUDENT), options, providers=["CPUExecutionProvider"])
    session.run(None, {i.name: np.zeros([1, *i.shape[1:]], np.float32) for i in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"] for e in events if e.get("cat") == "Node" and "activation_size" in e["args"]]
    most = max(int(a["activation_size"]) + int(a["output_size"]) for a in ran)
    found = test_probes.laid_out(static.read(STUDENT))
    assert most == memory.arena(found, memory.plan(found)) == memory.live(found) == 3 * 16 * 32 * 32
