"""Temporary folders, and those of processes that were killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgekd.store.scratch import _sweep, scratch

HOLD = """
import sys
from edgekd.store.scratch import scratch
with scratch() as folder:
    open(folder + "/model.onnx", "w").close()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _sweep.cache_clear()
    return tmp_path


def test_a_folder_is_gone_at_the_end_and_after_an_error(place):
    with scratch() as folder:
        assert Path(folder).is_dir() and not os.listdir(folder)
    with pytest.raises(ValueError, match="within"), scratch():
        raise ValueError("within")
    assert not list(place.iterdir())


def test_the_folder_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(place):
    held = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(place)},
        )
        for _ in range(2)
    ]
    folders = [Path(p.stdout.readline().strip()) for p in held]
    held[0].send_signal(signal.SIGKILL)
    held[0].communicate()
    others = place / "edgekd-tmp-mine"  # no lock: not known to be left behind
    others.mkdir()
    with scratch():
        assert [(f / "model.onnx").exists() for f in folders] == [False, True]
    held[1].communicate("")
    assert [p.name for p in place.iterdir()] == [others.name]
