"""Where POSIX calls are missing, as on Windows: everything is imported, locks hold, and `gate` judges. The stand-in for
Windows' byte locks is made of POSIX's; no Windows machine has seen this."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import edgekd

ROOT = Path(edgekd.__file__).parent
BOARDS = ("edgekd.runtimes.agent",)  # runs on a board, which is Linux
WITHOUT = '''
import fcntl, os, signal, subprocess, sys, types

def locking(descriptor, mode, count):
    """Of bytes from where the file stands. A record lock wants a descriptor to write with, and goes with any that is
    closed."""
    assert mode == 2
    writable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    fcntl.lockf(writable, fcntl.LOCK_EX | fcntl.LOCK_NB, count, os.lseek(descriptor, 0, os.SEEK_CUR))

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in "O_NOFOLLOW O_NONBLOCK killpg fork sched_getaffinity sched_setaffinity getuid geteuid".split():
    delattr(os, name)
'''


def python(code, *arguments, **variables):
    """What a Python without POSIX prints."""
    command = [sys.executable, "-c", WITHOUT + code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported():
    names = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    wanted = [name for name in names if name not in BOARDS]
    assert (
        python("import importlib\nfor n in sys.argv[1:]: importlib.import_module(n)\nprint('all')", *wanted) == "all\n"
    )


LOCKS = """
import subprocess, pathlib
from edgekd.store import locks

place = pathlib.Path(sys.argv[1])
other = WITHOUT + "from edgekd.store import locks; import pathlib; p = pathlib.Path(sys.argv[1]); print(WHAT)"

def elsewhere(what):
    command = [sys.executable, "-c", other.replace("WHAT", what), str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

with locks.held(place) as mine:
    print(mine, elsewhere("locks.share(p)"), elsewhere("locks.share(p, exclusive=True)"))
reader = locks.share(place)
print(elsewhere("locks.share(p) is not None"), elsewhere("locks.share(p, exclusive=True)"))
os.close(reader)
print(elsewhere("locks.share(p, exclusive=True) is not None"))
"""


def test_locks_of_bytes_hold_between_processes(tmp_path):
    (tmp_path / "lock").touch()
    code = f"WITHOUT = {WITHOUT!r}\n{LOCKS}"
    assert python(code, str(tmp_path / "lock")).split() == ["True", "None", "None", "True", "None", "True"]


@pytest.mark.slow
def test_gate_judges(tmp_path, monkeypatch):
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "r.toml").write_text(tiny.SHORT)
    outcome = edgekd.compress(tmp_path / "r.toml", out="run")
    said = python("from edgekd.cli import run\nprint(run(['gate', sys.argv[1]]))", str(tmp_path / "run"))
    assert said.split()[-1] == str(outcome.exit_code)
