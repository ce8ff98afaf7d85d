"""A board over ssh: `connect(address)` is a Host as long as it is open. Jobs are copied to the board and run, and their
output is copied back. An interrupted job resumes, at once or with the next call. When the connection is closed, only
unfinished work stays on the board."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd import environment
from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.files import canonical, sha256
from edgekd.hosts import fetched
from edgekd.hosts.address import Address, parse
from edgekd.hosts.connection import KEPT, Connection, Lost, refused
from edgekd.records import Host
from edgekd.runtimes import facts as reading
from edgekd.runtimes import worker

TRIES = 2  # new connections after one was lost
AFTER = 60  # s that a board has to end what it was told to stop
WAIT = 100  # s for another connection's end: a dead one is given up after 90
Task = Callable[[str], contextlib.AbstractContextManager[Callable[[int, int, str], None]]]


@contextlib.contextmanager
def connect(
    address: str, task: Task = lambda label: contextlib.nullcontext(lambda done, total, text="": None)
) -> Iterator[Host]:
    """The board at `ssh://[user@]host[:port][?python=...]`, by the system's ssh and the user's configuration of it.
    `task(label)`: a bar for what takes long (report/progress.py). Raises UsageError for an address that is wrong,
    EnvironmentUnfit where the board can't be reached or lacks Python 3.8."""
    board = _Board(parse(address), task)
    try:
        with task(f"connect to {board.address}"):
            facts = board.facts(environment.libraries())
        lacks = lambda runtime: board.lacks(runtime, facts)
        versions = lambda names: board.facts(names)["versions"]
        yield Host(str(board.address), board.run, facts, lacks=lacks, versions=versions)
    finally:
        board.close()


class _Board:
    """The connection that is open at the time, and what goes over it."""

    def __init__(self, address: Address, task: Task):
        self.address, self.task, self.open = address, task, None

    def line(self) -> Connection:
        if self.open is None:
            self.open = Connection(self.address)
        return self.open

    def close(self) -> None:
        if self.open is not None:
            line, self.open = self.open, None
            line.close()

    def facts(self, libraries: Sequence[str]) -> dict[str, Any]:
        """What the board is, with the versions of those `libraries` that are installed there."""
        asked = {"do": "facts", "libraries": list(libraries)}
        try:
            return fetched.facts(self.line().ask(asked, Path(reading.__file__).read_bytes())["facts"])
        except (Lost, TimeoutError, KeyError, fetched.Damaged) as error:
            why = fetched.text(error) or "the connection ended"
            raise EnvironmentUnfit(Problem(str(self.address), f"does not tell what it is: {why}")) from None

    def lacks(self, runtime: str, facts: Mapping[str, Any]) -> list[Problem]:
        """What is not installed there of what a runtime needs."""
        needed, known = environment.needs(runtime), environment.libraries()
        there = facts["versions"] if set(needed) <= set(known) else self.facts(needed)["versions"]
        lacking = [name for name in needed if name not in there]
        if not lacking:
            return []
        hint = (
            f"there: {self.address.python} -m pip install {' '.join(lacking)}; in a venv, where the system's Python "
            "takes none: python3 -m venv ~/edgekd, and then ?python=~/edgekd/bin/python in the address"
        )
        if facts["architecture"] in ("armv7l", "armv6l", "i686"):
            hint = f"its Python is a 32-bit one, for which there may be no {lacking[0]}: take a 64-bit system"
        text = f"{self.address.python} there has no {' and no '.join(lacking)}"
        return [Problem(str(self.address), text, hint)]

    def run(
        self, job_folder: Path, timeout: float, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Path:
        """As hosts.local.run, on the board. What is finished is here or there, whatever ends the run."""
        end, tries = time.monotonic() + timeout, 0
        while True:
            try:
                return self._once(job_folder, end, timeout, progress)
            except (Lost, TimeoutError):
                self.close()
                tries += 1
                if tries > TRIES or time.monotonic() > end:
                    raise EnvironmentUnfit(Problem(str(self.address), "the connection was lost", KEPT)) from None
                time.sleep(tries)
            except fetched.Damaged as error:
                with contextlib.suppress(Lost):
                    self.line().send({"do": "done"})  # what is kept there would be as damaged the next time
                self.close()
                hint = "it is deleted there; run the same command to measure it again"
                raise EnvironmentUnfit(Problem(str(self.address), f"sent an invalid result: {error}", hint)) from None
            except EnvironmentUnfit as error:
                if tries:  # it was there before
                    problem = error.problems[0]
                    raise EnvironmentUnfit(
                        Problem(problem.place, f"the connection was lost: {problem.message}", KEPT)
                    ) from None
                raise

    def _once(self, job_folder: Path, end: float, timeout: float, progress: Callable[[int, int], None]) -> Path:
        line, out = self.line(), job_folder / "out"
        job = json.loads((job_folder / "job.json").read_text(encoding="utf-8"))
        out.mkdir(exist_ok=True)
        done = worker.finished_lines(out / "results.jsonl", repair=True)
        place = {entry["id"]: number for number, entry in enumerate(job["schedule"], 1)}
        left = {entry["id"]: entry for entry in job["schedule"] if entry["id"] not in done}
        self._bring(line, job_folder, job, list(left.values()))
        line.send({"do": "run"})
        ended, late = None, False
        while ended is None:
            rest = end + AFTER * late - time.monotonic()
            try:
                # one that always says something gets no more time than one that is silent
                event = line.receive(rest) if rest > 0 else {}
            except TimeoutError:
                event, rest = {}, 0.0
            if rest <= 0:
                if late:
                    raise Lost
                late, end = True, max(end, time.monotonic())
                line.send({"do": "stop"})
                continue
            if "ended" in event:
                ended = event
            elif (id := _id(event)) in place:
                progress(place[id], len(place))
        failed = self._fetch(line, out, left)
        if late:
            raise EnvironmentUnfit(
                Problem(str(self.address), f"the measurement took longer than {timeout:.0f} s", KEPT)
            )
        self._judge(ended, failed)
        finished = worker.finished_lines(out / "results.jsonl")
        worker.write(
            out / "done.json",
            json.dumps({"finished": [id for id in place if id in finished], "failed": failed}).encode(),
        )
        line.ask({"do": "done"})
        return out

    def _bring(self, line: Connection, job_folder: Path, job: Mapping[str, Any], left: list[dict]) -> None:
        """Sends what is not there already. What is finished here is not in the schedule there."""
        there = json.dumps({**job, "schedule": left}).encode()
        known = {name: sha256(job_folder / name) for name in job["files"]}
        known["job.json"] = hashlib.sha256(there).hexdigest()
        sizes = {name: (job_folder / name).stat().st_size for name in job["files"]}
        opened = line.ask(
            {"do": "open", "job": _name(job), "files": known, "need": sum(sizes.values()), "wait": WAIT},
            seconds=WAIT + 600,
        )
        have = opened.get("have")
        missing = [name for name in sorted(known) if not isinstance(have, list) or name not in have]
        total, sent = sum(sizes.get(name, 0) for name in missing), [0]
        with (
            self.task(f"send to {self.address}")
            if total > 2**20
            else contextlib.nullcontext(lambda *_: None) as advance
        ):

            def told(count: int) -> None:
                sent[0] += count
                advance(sent[0], total, f"{sent[0] / 1e6:.0f} of {total / 1e6:.0f} MB")

            for name in missing:
                payload = there if name == "job.json" else job_folder / name
                line.ask({"do": "put", "name": name, "sha256": known[name]}, payload, told=told)

    def _fetch(self, line: Connection, out: Path, left: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Brings every finished process's line and files; {entry: why it failed}."""
        spare = out / ".fetched"
        got = self._get(line, "results.jsonl", spare, fetched.LINES)
        for id, result in fetched.lines(spare.read_bytes() if got else b"", left).items():
            for name in fetched.files(result):
                if not self._get(line, name, spare, fetched.BYTES[result["pass"]]):
                    raise fetched.Damaged(f"no file {name}")
                part = spare.with_suffix(Path(name).suffix)
                os.replace(spare, part)
                fetched.check(part, result)
                (out / name).parent.mkdir(exist_ok=True)
                os.replace(part, out / name)
            worker.append(out / "results.jsonl", json.dumps({**result, "id": id}))
        told = self._get(line, "done.json", spare, fetched.LINES)
        failed = fetched.failures(spare.read_bytes() if told else None, set(left))
        spare.unlink(missing_ok=True)
        return failed

    def _get(self, line: Connection, name: str, path: Path, limit: int) -> bool:
        """A file of the job's `out` into `path`; whether there is one."""
        reply = line.ask({"do": "get", "name": f"out/{name}", "limit": limit})
        if "missing" in reply:
            return False
        size = reply.get("bytes")
        if type(size) is not int or not 0 <= size <= limit:
            raise fetched.Damaged(f"{name} of {fetched.text(reply.get('size', size), 40)} bytes")
        with open(path, "wb") as file:
            line.take(size, file)
        return True

    def _judge(self, ended: Mapping[str, Any], failed: Mapping[str, str]) -> None:
        """Raises where not a file but the board or the worker is at fault."""
        said = fetched.text(ended.get("error", ""))
        for message in (said, *failed.values()):
            if fetched.full(message):
                raise EnvironmentUnfit(refused(self.address, message, ""))
        if ended["ended"] not in (0, 1) or (ended["ended"] == 1 and not failed):
            what = said or f"exit code {fetched.text(ended['ended'], 20)}"
            raise EnvironmentUnfit(Problem(str(self.address), f"the measuring process failed: {what}", KEPT))


def _id(event: Mapping[str, Any]) -> Any:
    """The entry that a line of the worker is about."""
    try:
        said = fetched.parsed(event["line"])
    except (KeyError, TypeError, fetched.Damaged):
        return None
    return said.get("id") if isinstance(said, dict) and isinstance(said.get("id"), str) else None


def _name(job: Mapping[str, Any]) -> str:
    """The folder of a job there: the same for the same work, however much of it is left or added."""
    kinds = sorted({canonical({k: v for k, v in entry.items() if k != "id"}) for entry in job["schedule"]})
    return hashlib.sha256(canonical({**job, "schedule": [kind.decode() for kind in kinds]})).hexdigest()[:16]
