"""One connection to a board: starts ssh with the agent (runtimes/agent.py) on the board, sends requests, receives
answers, and explains errors."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.hosts import fetched
from edgekd.hosts.address import CONFIG, PYTHON, Address, command
from edgekd.runtimes import worker

AGENT = Path(worker.__file__).parent / "agent.py"
PING = 15.0  # s; the other end gives up after 90 s of silence
BEGIN = 60.0  # s that a connection and Python may take to start
CHUNK = 1 << 16
LINE = 1 << 20  # bytes of a line
KEPT = "finished work is kept there for a week; run the same command to resume"

# what ssh says -> (what is wrong, what to do)
_REASONS = (
    (
        "IDENTIFICATION HAS CHANGED",
        "its host key differs from the known one",
        "check that it is the right board; if it was set up again: ssh-keygen -R {known}",
    ),
    (
        "Host key verification failed",
        "its host key is not known",
        "connect once by hand, and compare its fingerprint: {ssh}",
    ),
    (
        "Permission denied",
        "it refuses the login",
        "a key that needs no input is required: ssh-copy-id, or ssh-add for a key with a passphrase",
    ),
    ("Could not resolve", "there is no such host", "give a name of your ssh configuration or of DNS, or an IP address"),
    ("Connection refused", "nothing listens there", "check that sshd runs on this port"),
    ("timed out", "it does not answer", "check that it is on and in this network"),
    ("No route to host", "it can't be reached", "check that it is on and in this network"),
    ("Network is unreachable", "it can't be reached", "check that this machine is in its network"),
    (
        "Bad owner or permissions",
        "ssh refuses its own configuration",
        f"chmod 600 ~/.ssh/config, or the file of {CONFIG}",
    ),
    ("Can't open user config file", "ssh can't read its configuration", f"{CONFIG} names a file that is there"),
)


class Lost(Exception):
    """The connection is lost."""


class Connection:
    """`ask` sends a record (and a payload) and returns the answer; `receive` waits for a line. Raises Lost if the
    connection is lost, EnvironmentUnfit if the board can't do what is requested."""

    def __init__(self, address: Address):
        self.address, self.held = address, b""
        if shutil.which("ssh") is None:
            raise EnvironmentUnfit(Problem(str(address), "there is no ssh on the PATH", "install OpenSSH's client"))
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the connection is
        self.sending, self.closed = threading.Lock(), threading.Event()
        token, program = secrets.token_hex(8), AGENT.read_bytes()
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        # a session of its own: an interrupt of the terminal is ours to handle, and ends the other side in order
        self.ssh = subprocess.Popen(command(address, _bootstrap(token)), start_new_session=True, bufsize=0, **pipes)
        try:
            self._begin(token, program)
        except BaseException:
            self.ssh.kill()
            self.close()
            raise
        threading.Thread(target=self._ping, daemon=True).start()

    def _begin(self, token: str, program: bytes) -> None:
        try:
            for _ in range(1000):  # what a login script prints comes before
                head, _, rest = self._line(BEGIN).partition(token.encode() + b" ")
                if rest:
                    break
            else:
                raise Lost
            version = tuple(int(n) for n in rest.split()[:2])
            if version < (3, 8):
                shown = ".".join(map(str, version))
                what = f"{self.address.python} there is Python {shown}, and 3.8 is needed"
                raise EnvironmentUnfit(Problem(str(self.address), what, _other_python()))
            self._send(b"%d\n" % len(program) + program)
            self.receive(BEGIN)
        except (Lost, TimeoutError, ValueError):
            raise EnvironmentUnfit(self._why()) from None

    def ask(
        self,
        record: dict[str, Any],
        payload: Path | bytes = b"",
        seconds: float = 300,
        told: Callable[[int], None] = lambda sent: None,
    ) -> dict:
        """`seconds`: how long the answer may take after all was sent."""
        self.send(record, payload, told)
        reply = self.receive(seconds)
        if "error" in reply:
            raise EnvironmentUnfit(refused(self.address, fetched.text(reply["error"]), str(reply.get("errno"))))
        return reply

    def send(
        self, record: dict[str, Any], payload: Path | bytes = b"", told: Callable[[int], None] = lambda sent: None
    ) -> None:
        size = payload.stat().st_size if isinstance(payload, Path) else len(payload)
        with self.sending:
            self._send(
                json.dumps({**record, **({"bytes": size} if size or record["do"] == "put" else {})}).encode() + b"\n"
            )
            if isinstance(payload, bytes):
                self._send(payload)
                return
            with open(payload, "rb") as file:
                while size and (piece := file.read(min(CHUNK, size))):
                    self._send(piece)
                    size -= len(piece)
                    told(len(piece))
            if size:  # it became shorter meanwhile: the line is out of step
                raise Lost

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises TimeoutError."""
        try:
            record = fetched.parsed(self._line(seconds))
        except fetched.Damaged:
            record = None
        if not isinstance(record, dict):
            raise Lost
        return record

    def take(self, count: int, file: BinaryIO, seconds: float = 120) -> None:
        """The next `count` bytes, into a file; `seconds` for each piece."""
        while count:
            if not self.held:
                self._fill(seconds)
            piece, self.held = self.held[:count], self.held[count:]
            file.write(piece)
            count -= len(piece)

    def close(self) -> None:
        """The end of its input ends the other side, which clears up; what doesn't end by itself is ended."""
        self.closed.set()
        with contextlib.suppress(OSError):
            self.ssh.stdin.close()
        try:
            end = time.monotonic() + 20
            with contextlib.suppress(Lost, TimeoutError):
                while True:
                    self.held = b""
                    self._fill(max(0, end - time.monotonic()))
            self.ssh.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.ssh.kill()
            self.ssh.wait()
            self.ssh.stdout.close()
            self.errors.close()

    def _line(self, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        while b"\n" not in self.held:
            if len(self.held) > LINE:
                raise Lost
            self._fill(max(0, end - time.monotonic()))
        line, _, self.held = self.held.partition(b"\n")
        return line

    def _fill(self, seconds: float) -> None:
        if not select.select([self.ssh.stdout], [], [], seconds)[0]:
            raise TimeoutError
        data = os.read(self.ssh.stdout.fileno(), CHUNK)
        if not data:
            raise Lost
        self.held += data

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self.ssh.stdin.write(view) :]
        except (OSError, ValueError):  # closed
            raise Lost from None

    def _ping(self) -> None:
        while not self.closed.wait(PING):
            with contextlib.suppress(Lost), self.sending:
                self._send(b'{"do": "ping"}\n')

    def _why(self) -> Problem:
        """In words, from what ssh and the shell there said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ssh.wait(2)
        self.errors.seek(0)
        said, code = self.errors.read(CHUNK).decode("utf-8", "replace"), self.ssh.poll()
        for mark, what, hint in _REASONS if code == 255 else ():
            if mark in said:
                return Problem(str(self.address), what, hint.format(**_by_hand(self.address)))
        if code in (126, 127) or "not found" in said or "No such file" in said:
            return Problem(
                str(self.address),
                f"there is no {self.address.python} there",
                f"apt install python3, or: {_other_python()}",
            )
        last = [fetched.text(line) for line in said.splitlines() if line.strip()][-1:]
        ended = f"ssh ended with exit code {code}" if code is not None else f"no answer within {BEGIN:.0f} s"
        return Problem(
            str(self.address),
            f"no connection: {last[0] if last else ended}",
            f"does `{_by_hand(self.address)['ssh']}` work?",
        )


def refused(address: Address, message: str, code: str) -> Problem:
    """What the other end could not do."""
    if fetched.full(message) or code in ("ENOSPC", "EDQUOT", "EFBIG"):
        return Problem(
            str(address),
            f"the board has too little free disk space for the job ({message})",
            "free some in the home folder or in $TMPDIR of the board",
        )
    if code in ("EAGAIN", "EWOULDBLOCK", "EACCES") and "unavailable" in message:
        return Problem(
            str(address),
            "another measurement is running there",
            "two at a time would disturb each other: wait for it to end",
        )
    return Problem(str(address), f"the board says: {message}")


def _bootstrap(token: str) -> str:
    """Code that prints its Python version and then runs the code that it is sent. It does not import from its current
    folder."""
    return (
        "import sys;sys.path=[p for p in sys.path if p];"
        f'sys.stdout.write("{token} %d %d %s" % (sys.version_info[0],sys.version_info[1],chr(10)));sys.stdout.flush();'
        'r=sys.stdin.buffer;exec(compile(r.read(int(r.readline())),"agent","exec"))'
    )


def _by_hand(address: Address) -> dict[str, str]:
    """{ssh: the command that goes there, known: the name in known_hosts}."""
    config = os.environ.get(CONFIG)
    port = f" -p {address.port}" if address.port else ""
    known = f"'[{address.host}]:{address.port}'" if address.port and address.port != 22 else address.host
    return {"ssh": f"ssh{' -F ' + config if config else ''}{port} {address}", "known": known}


def _other_python() -> str:
    return f"another one by ?python=/path/to/python in the address, or {PYTHON}"
