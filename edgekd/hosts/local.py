"""This machine: `host()` as a record, `run` as a function."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from edgekd import environment, system
from edgekd.errors import EnvironmentUnfit, Problem, RunFailed
from edgekd.hosts import fetched
from edgekd.records import Host

KEPT = "`compress` keeps finished measurements: run it again to resume"
LEAST = 2**16  # bytes without which a worker can't even say what is wrong


def host() -> Host:
    return Host("this machine", run, environment.describe(), lacks=environment.lacking, versions=environment.versions)


def run(job_folder: Path, timeout: float, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Runs `worker.py job.json` of a job folder and returns its `out` folder; `timeout` in seconds for the whole job.

    Finished work stays if the run is interrupted, and the same call resumes. Raises EnvironmentUnfit on timeout,
    RunFailed if the worker itself fails (errors of a model are in out/done.json)."""
    command = [sys.executable, "worker.py", "job.json", "--with-parent"]
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(
            command,
            cwd=job_folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        late = threading.Event()
        timer = threading.Timer(timeout, lambda: (late.set(), _kill(worker)))
        timer.start()
        try:
            for line in worker.stdout:
                event = json.loads(line)
                progress(event["done"], event["total"])
            worker.wait()
        finally:
            timer.cancel()
            _kill(worker)
            worker.stdout.close()
            worker.wait()
        if late.is_set():
            raise EnvironmentUnfit(Problem("", f"the measurement took longer than {timeout:.0f} s", KEPT))
        if worker.returncode not in (0, 1) or not (job_folder / "out" / "done.json").is_file():
            errors.seek(0)
            last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:] or [
                f"exit code {worker.returncode}"
            ]
            if fetched.full(last[0]) or shutil.disk_usage(job_folder).free < LEAST:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job_folder))
            raise RunFailed(Problem("", f"the measuring process failed: {last[0]}", KEPT))
    return job_folder / "out"


def _kill(worker: subprocess.Popen) -> None:
    """Ends the worker and the process that it started, if they are still there."""
    system.kill_group(worker)
