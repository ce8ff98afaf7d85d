"""What answers at the other end of a connection: takes files, runs the worker, tells how far it is, gives back what it
wrote.

It comes through standard input, is nowhere written, and ends with its connection: at the end of its input, or when
nothing was heard for SILENCE seconds, it ends the worker. What a job has finished stays for KEPT seconds, so that the
next connection goes on; what was fetched goes at once.

Both sides send a line of JSON, and `bytes` bytes after it where it says so. Asked {"do": ...}, it answers one line:

facts   libraries, payload: facts.py {facts}
open    job, files {name: sha256}, need (bytes), wait (s)     {have: [names that are there already]}
put     name, sha256; payload        {}
run                                  {line} per line of the worker; then {ended: exit code, error: its last line of
                                     errors}
stop                                 (while it runs) ends the worker
get     name, limit                  {bytes} and the file; {missing} without one; {size} where it is greater than the
        limit
done                                 {}; the job's folder goes when the connection ends
ping                                 no answer

or {error, errno}. Imports the standard library alone; Python 3.8.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SILENCE = 90.0
KEPT = 7 * 86400
ROOM = 16 * 2**20  # bytes that results may take, besides what is brought
CHUNK = 1 << 16


class Gone(Exception):
    """The other side is not there any more."""


class Connection:
    """Lines and bytes from `source` to `sink`, both file descriptors."""

    def __init__(self, source, sink):
        self.source, self.sink, self.held = source, sink, b""

    def fill(self, timeout=SILENCE):
        if not select.select([self.source], [], [], timeout)[0]:
            raise Gone
        data = os.read(self.source, CHUNK)
        if not data:
            raise Gone
        self.held += data

    def hear(self):
        while b"\n" not in self.held:
            self.fill()
        line, _, self.held = self.held.partition(b"\n")
        return json.loads(line.decode("utf-8"))

    def pieces(self, count):
        """The next `count` bytes, as they come."""
        while count:
            if not self.held:
                self.fill()
            piece, self.held = self.held[:count], self.held[count:]
            count -= len(piece)
            yield piece

    def say(self, record):
        self.write(json.dumps(record).encode() + b"\n")

    def write(self, data):
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.sink, view) :]
        except OSError as error:
            raise Gone from error


class Jobs:
    """The folders of jobs on this machine: one is open at a time, and one connection at a time works here."""

    def __init__(self):
        self.folder, self.lock, self.done, self.brought, self.made = None, None, set(), {}, []

    def open(self, what):
        self._alone(what["wait"])
        bases, name = _bases(), what["job"]
        self.sweep(bases)
        known = [base for base in bases if os.path.isdir(os.path.join(base, name))]
        for base in known or bases:
            if known or _free(base) >= what["need"] + ROOM:
                break
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.folder = os.path.join(base, name)
        for folder in (os.path.dirname(base), base, self.folder):
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o700)
                self.made.append(folder)
            held = os.lstat(folder)
            if folder == base and (held.st_uid != os.getuid() or held.st_mode & 0o022 or os.path.islink(base)):
                raise OSError(errno.EPERM, "the folder for jobs belongs to somebody else")
        self.done.discard(self.folder)
        os.utime(self.folder)
        return {"have": [name for name, digest in what["files"].items() if self._has(name, digest)]}

    def put(self, name, digest, pieces):
        path = os.path.join(self.folder, name)
        part, known = path + ".part", hashlib.sha256()
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            with open(part, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                    known.update(piece)
        except OSError:
            for _ in pieces:  # the line must stay in step
                pass
            self.forsake()
            raise
        if known.hexdigest() != digest:
            raise OSError(errno.EIO, "a file arrived damaged")
        os.replace(part, path)
        self.brought[digest] = path

    def forsake(self):
        """What has no results yet is worth nothing where there is no room."""
        if not os.path.exists(os.path.join(self.folder, "out", "results.jsonl")):
            self.done.add(self.folder)

    def close(self):
        for folder in self.done:
            shutil.rmtree(folder, ignore_errors=True)
            base = os.path.dirname(folder)
            # an empty cache folder is one that an earlier connection made
            self.made += [os.path.dirname(base), base] if base.startswith(os.path.expanduser("~")) else [base]
        for folder in reversed(self.made):
            with contextlib.suppress(OSError):  # not empty: there is another job, or this one is gone on with later
                os.rmdir(folder)

    def sweep(self, bases):
        """Takes away what nobody came back for."""
        for base in bases:
            for name in os.listdir(base) if os.path.isdir(base) else ():
                folder = os.path.join(base, name)
                if re.fullmatch("[0-9a-f]{16}", name) and os.lstat(folder).st_mtime < time.time() - KEPT:
                    shutil.rmtree(folder, ignore_errors=True)

    def _alone(self, wait):
        """Two jobs at a time would spoil each other's times. The lock is on the home folder itself: no file is left,
        none can be missing."""
        end = time.monotonic() + wait
        while self.lock is None:
            handle = os.open(os.path.expanduser("~"), os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.lock = handle
            except BlockingIOError:
                os.close(handle)
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
            except OSError:  # a file system without locks: nobody else is here, most likely
                self.lock = handle

    def _has(self, name, digest):
        path = os.path.join(self.folder, name)
        if not os.path.exists(path) and digest in self.brought:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            with contextlib.suppress(OSError):
                os.link(self.brought[digest], path)
        return _sha256(path) == digest


def _bases():
    """Where jobs may lie: in the user's cache, or, without room there, among the temporary files."""
    return [
        os.path.join(os.path.expanduser("~"), ".cache", "edgekd-jobs"),
        os.path.join(tempfile.gettempdir(), f"edgekd-jobs-{os.getuid()}"),
    ]


def _free(folder):
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK):
        return -1
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def _sha256(path):
    known = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                known.update(piece)
    except OSError:
        return None
    return known.hexdigest()


def run(line, folder):
    """Runs the worker in a job's folder and tells what it says, until it ends or `stop` is heard."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(folder, "out", "done.json"))
    command = [sys.executable, "worker.py", "job.json", "--with-parent"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    worker = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)
    out, err = worker.stdout.fileno(), worker.stderr.fileno()
    said, errors, heard, waiting = b"", b"", time.monotonic(), [line.source, out, err]
    try:
        while out in waiting or err in waiting:
            ready = select.select(waiting, [], [], 5)[0]
            if line.source in ready:
                line.fill()
                heard = time.monotonic()
            while b"\n" in line.held:
                if line.hear()["do"] == "stop":
                    _end(worker)
            if time.monotonic() - heard > SILENCE:
                raise Gone
            for pipe in (p for p in (out, err) if p in ready):
                data = os.read(pipe, CHUNK)
                if not data:
                    waiting.remove(pipe)
                elif pipe == err:
                    errors = (errors + data)[-CHUNK:]
                else:
                    *whole, said = (said + data).split(b"\n")
                    for text in whole:
                        line.say({"line": text.decode("utf-8", "replace")[:4096]})
        code = worker.wait()
    finally:
        _end(worker)
        worker.wait()
    last = errors.decode("utf-8", "replace").strip().splitlines()
    line.say({"ended": code, "error": last[-1][:2000] if last else ""})


def _end(worker):
    if worker.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


def give(line, path, limit):
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                line.say({"size": size})
                return
            line.say({"bytes": size})
            while size:
                piece = file.read(min(CHUNK, size))
                if not piece:
                    raise Gone
                line.write(piece)
                size -= len(piece)
    except FileNotFoundError:
        line.say({"missing": True})


def answer(line, jobs, what):
    do = what["do"]
    if do == "run":
        run(line, jobs.folder)
    elif do == "get":
        give(line, os.path.join(jobs.folder, what["name"]), what["limit"])
    elif do == "facts":
        code = {"__name__": "facts"}
        exec(compile(b"".join(line.pieces(what["bytes"])), "facts.py", "exec"), code)
        line.say({"facts": code["describe"](libraries=what["libraries"])})
    elif do == "open":
        line.say(jobs.open(what))
    elif do == "put":
        jobs.put(what["name"], what["sha256"], line.pieces(what["bytes"]))
        line.say({})
    elif do == "done":
        jobs.done.add(jobs.folder)
        line.say({})


def main(source=0):
    sink = os.dup(1)
    os.dup2(2, 1)  # what is printed by accident must not come between the lines
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    line, jobs = Connection(source, sink), Jobs()
    line.say({"ready": os.getpid()})
    try:
        while True:
            what = line.hear()
            try:
                answer(line, jobs, what)
            except OSError as error:
                line.say({"error": error.strerror or str(error), "errno": errno.errorcode.get(error.errno, "")})
    except Gone:
        pass
    finally:
        jobs.close()


if __name__ == "__main__":
    main()
