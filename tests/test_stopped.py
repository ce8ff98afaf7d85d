"""What the command line says where a signal or a full disk stops it."""

import errno
import os
import signal
import tempfile

import click
import pytest

from edgekd import cli
from edgekd.errors import RunFailed
from edgekd.hosts import local
from edgekd.verbs import doctor


@pytest.fixture
def verb(monkeypatch):
    """Puts a function in the place of the verb `doctor`."""
    before = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda work: monkeypatch.setattr(doctor, "command", click.command()(work))
    for number, handler in before:
        signal.signal(number, handler)


def swallowed():
    """As an extension module does whose import is interrupted."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**6):
            pass
    except KeyboardInterrupt:
        raise ImportError("initialization failed") from None


def test_a_signal_during_an_import_is_130_and_not_internal(verb, capsys):
    verb(swallowed)
    assert cli.run(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_import_error_without_a_signal_is_internal(verb, capsys):
    def broken():
        raise ImportError("initialization failed")

    verb(swallowed)
    cli.run(["doctor"])  # leaves nothing behind
    verb(broken)
    assert cli.run(["doctor"]) == 6 and "ImportError" in capsys.readouterr().err


def test_only_compress_goes_on_where_it_was():
    assert cli._kept("compress") == ("; finished work is kept", "; run the same command to resume")
    assert cli._kept("quantize") == ("", "")


@pytest.mark.parametrize("name", ["disk", "temporary"])
def test_a_full_disk_is_told(verb, capsys, monkeypatch, name):
    def full(*given, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/model.onnx")

    def work():
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(os, "open" if name == "temporary" else "mkdir", full)
        tempfile.mkdtemp()

    verb(work)
    code = cli.run(["doctor"])
    monkeypatch.undo()
    err = capsys.readouterr().err
    told = "no temporary folder can be written to" if name == "temporary" else "no space is left on the disk"
    assert code == 6 and told in err and "TMPDIR" in err and "resume" not in err, err


def test_a_worker_that_finds_no_room_is_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise SystemExit('OSError: [Errno 28] No space left on device')")
    with pytest.raises(OSError, match="No space left") as caught:
        local.run(tmp_path, 60)
    assert caught.value.errno == errno.ENOSPC
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    with pytest.raises(RunFailed, match="exit code 3"):
        local.run(tmp_path, 60)
    monkeypatch.setattr(local, "LEAST", 2**60)
    with pytest.raises(OSError, match="No space left"):
        local.run(tmp_path, 60)
