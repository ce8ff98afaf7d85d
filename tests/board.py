"""A board on the loopback: a real sshd with keys of its own, whose home and temporary folders are a test's."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Board:
    """`address`: of the board, with this Python; `home`: its home folder; `config`: for EDGEKD_SSH_CONFIG."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port, self.home, self.config = folder, port, folder / "home", folder / "ssh_config"
        self.address = f"ssh://board:{port}?python={sys.executable}"

    def left(self):
        """What lies in the board's home and temporary folder."""
        return sorted(
            str(p.relative_to(self.folder)) for part in ("home", "tmp") for p in (self.folder / part).rglob("*")
        )

    def processes(self):
        """Ids of those that stand in its home."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if str(self.home) in os.readlink(path) or str(self.folder / "tmp") in os.readlink(path):
                    found.append(int(path.parts[2]))
        return found


@contextlib.contextmanager
def board(folder: Path, setting: str = "", login: str = ""):
    """Starts sshd on a free port of the loopback. `setting`: lines for its configuration; `login`: a shell line before
    every command."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs OpenSSH's sshd and ssh")
    if os.getuid() == 0:
        # where it keeps nothing, and without which it does not start
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Board(folder, port)
    if login:
        (folder / "login.sh").write_text(f'{login}\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
        setting += f"\nForceCommand /bin/sh {folder}/login.sh"
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host",
        f"AuthorizedKeysFile {folder}/authorized",
        "StrictModes no",
    ]
    lines += ["UsePAM no", "PidFile none", "PasswordAuthentication no", "KbdInteractiveAuthentication no"]
    lines += [f"SetEnv HOME={made.home} TMPDIR={folder}/tmp", setting]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    lines = [
        "Host board",
        "HostName 127.0.0.1",
        f"User {getpass.getuser()}",
        "HostKeyAlias board",
        "Host *",
        f"IdentityFile {folder}/user",
    ]
    lines += ["IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known", "GlobalKnownHostsFile /dev/null"]
    made.config.write_text("\n".join(lines) + "\n")
    made.config.chmod(0o600)
    know(made)
    with open(folder / "sshd.log", "wb") as log:
        sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while not _listens(port):
            if sshd.poll() is not None or time.monotonic() > end:
                pytest.skip(f"sshd does not start here: {(folder / 'sshd.log').read_text()[-300:]}")
            time.sleep(0.02)
        yield made
    finally:
        sshd.terminate()
        sshd.wait()


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def know(made: Board, key: str = "host"):
    """Makes a key the known one of the board."""
    kind, text, *_ = (made.folder / f"{key}.pub").read_text().split()
    (made.folder / "known").write_text(f"board {kind} {text}\n")
