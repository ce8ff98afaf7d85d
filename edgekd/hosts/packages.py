"""Distribution packages and wheels as plain files, without root: what apt and pip would fetch, with the digests of
their signed lists and indexes.

apt works on lists of its own in a folder that is given (apt-get(8), Dir::State::Lists), for another architecture if
wanted; dpkg -x unpacks. pip resolves for another platform (pip install --dry-run --report, pip download --platform).
Nothing is installed on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekd.errors import BaselineError, EnvironmentUnfit, Problem
from edgekd.files import sha256

_URI = re.compile(r"^'([^']+)' (\S+_\S+_\S+\.deb) (\d+) ", re.M)  # what `apt-get --print-uris` prints
_DIGEST = re.compile(r"^'[^']+' (\S+_\S+_\S+\.deb) (\d+) SHA256:([0-9a-f]{64})", re.M)
PORTS = "http://ports.ubuntu.com/ubuntu-ports"  # where Ubuntu keeps what is not for x86 (https://wiki.ubuntu.com/Ports)


@dataclass(frozen=True)
class Package:
    """A file to fetch: `file` its name, `bytes` None where nobody says."""

    kind: Literal["deb", "wheel"]
    name: str
    version: str
    file: str
    bytes: int | None
    sha256: str


@dataclass(frozen=True)
class Apt:
    """apt for one architecture, with lists in `folder`. `installed`: what this machine has counts as there; else
    nothing does."""

    folder: Path
    architecture: str
    installed: bool = False

    def options(self) -> list[str]:
        settings = {
            "Dir::State::Lists": self.folder / "lists",
            "Dir::Cache": self.folder / "cache",
            "APT::Sandbox::User": "",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "Acquire::Languages": "none",
            "Debug::NoLocking": 1,
        }
        if not self.installed:
            settings["Dir::State::status"] = "/dev/null"
        if (self.folder / "sources.list").is_file():
            settings |= {"Dir::Etc::SourceList": self.folder / "sources.list", "Dir::Etc::SourceParts": "/dev/null"}
        return [f"-o{name}={value}" for name, value in settings.items()]


def unfit(wheels: bool = True) -> list[Problem]:
    """What this machine lacks to fetch packages."""
    found = []
    lacking = [name for name in ("apt-get", "apt-cache", "dpkg") if shutil.which(name) is None]
    if lacking:
        hint = "it is made of Debian or Ubuntu packages: run edgekd in a Debian container, or use a board with --on"
        found.append(Problem("arm-emulator", f"there is no {', no '.join(lacking)} on this machine", hint))
    if wheels and subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        found.append(Problem("arm-emulator", "this Python has no pip", f"{sys.executable} -m ensurepip"))
    return found


def update(apt: Apt, release: Mapping[str, str]) -> None:
    """Reads the package lists of this system's own sources; `release`: its /etc/os-release."""
    for part in ("lists/partial", "cache/archives/partial"):
        (apt.folder / part).mkdir(parents=True, exist_ok=True)
    if release.get("ID") == "ubuntu" and apt.architecture not in ("amd64", "i386"):
        (apt.folder / "sources.list").write_text(ports(release.get("VERSION_CODENAME", "")))
    said = _run(["apt-get", *apt.options(), "update"], "the package lists can't be read", told="stderr")
    if not any((apt.folder / "lists").glob("*_Packages*")):  # apt-get ends with 0 where it reached nothing
        complaints = re.findall(r"^[WE]: (.+)", said, re.M)
        reason = complaints[0] if complaints else f"the sources of apt have none for {apt.architecture}"
        raise EnvironmentUnfit(
            Problem(
                "arm-emulator",
                f"the package lists can't be read: {reason}",
                "check the network, and run the same command to try again",
            )
        )


def ports(codename: str) -> str:
    """Ubuntu's sources for other architectures than x86."""
    key = "signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg"
    return "".join(
        f"deb [{key}] {PORTS} {codename}{pocket} main universe\n" for pocket in ("", "-updates", "-security")
    )


def python(apt: Apt) -> str:
    """The distribution's Python, as `3.11`."""
    said = _run(["apt-cache", *apt.options(), "depends", "python3-minimal"], "the distribution's Python can't be told")
    version = re.search(r"\bpython(3\.\d+)-minimal\b", said)
    if not version:
        raise EnvironmentUnfit(
            Problem(
                "arm-emulator",
                f"the package lists have no python3-minimal for {apt.architecture}",
                "see the sources of apt",
            )
        )
    return version[1]


def debs(apt: Apt, names: Sequence[str]) -> list[Package]:
    """The packages of these names; with `apt.installed`, also what they need and this machine has not."""
    missing = "packages are missing from the package lists"
    if apt.installed:  # `install` names what is lacking, with MD5 alone; `download` has the digests of the signed lists
        verb = ("install", "--yes", "--reinstall", "--no-install-recommends")
        said = _run(["apt-get", *apt.options(), "--print-uris", *verb, *names], missing)
        names = [f"{name}={version}" for _, file, _ in _URI.findall(said) for name, version in [_named(file)]]
    said = _run(["apt-get", *apt.options(), "--print-uris", "download", *names], missing) if names else ""
    found = [Package("deb", *_named(file), file, int(size), sha) for file, size, sha in _DIGEST.findall(said)]
    absent = sorted({n.partition("=")[0] for n in names} - {p.name for p in found})
    if absent:
        raise EnvironmentUnfit(
            Problem("arm-emulator", f"apt names no digest for {', '.join(absent)}", "apt 1.1 or later does")
        )
    return sorted(found, key=lambda p: p.name)


def _named(file: str) -> tuple[str, str]:
    """(name, version) of the file of a package (Debian Policy 5.6.12: a colon in a version is written %3a)."""
    name, version, _ = urllib.parse.unquote(file).split("_", 2)
    return name, version


def wheels(requirements: Sequence[str], python_version: str, platforms: Sequence[str], scratch: Path) -> list[Package]:
    """What pip would install of these, and of what they need, on another platform."""
    report = scratch / "wheels.json"
    options = ["--dry-run", "--ignore-installed", "--target", str(scratch / "none"), "--quiet", "--report", str(report)]
    _run(
        [*_pip("install"), *options, *_for(python_version, platforms), *requirements],
        f"pip finds no wheels for Python {python_version} on arm64",
    )
    found = []
    for item in json.loads(report.read_text())["install"]:
        link, about = item["download_info"], item["metadata"]
        digest = link.get("archive_info", {}).get("hashes", {}).get("sha256")
        file = urllib.parse.unquote(urllib.parse.urlsplit(link["url"]).path.rsplit("/", 1)[-1])
        if not digest:
            raise EnvironmentUnfit(
                Problem(
                    "arm-emulator", f"the index names no sha256 for {file}", "use an index that does, such as pypi.org"
                )
            )
        found.append(Package("wheel", about["name"], about["version"], file, _size(link["url"]), digest))
    return sorted(found, key=lambda p: p.name)


def _size(url: str) -> int | None:
    """Bytes of what lies there, where that is told."""
    with (
        contextlib.suppress(OSError, ValueError),
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer,
    ):
        return int(answer.headers.get("content-length", ""))
    return None


def fetch(package: Package, folder: Path, apt: Apt, python_version: str, platforms: Sequence[str]) -> Path:
    """The file, in `folder`: kept if it is there with its digest, else fetched. Raises BaselineError where what came
    has another digest."""
    path = folder / package.file
    if path.is_file() and sha256(path) == package.sha256:
        return path
    path.unlink(missing_ok=True)
    failed = f"{package.file} can't be fetched"
    if package.kind == "deb":
        _run(["apt-get", *apt.options(), "download", f"{package.name}={package.version}"], failed, folder)
    else:
        wanted = folder / f".{package.name}.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        options = ["--no-deps", "--quiet", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
        _run([*_pip("download"), *options, *_for(python_version, platforms)], failed)
        wanted.unlink()
    if not path.is_file():
        raise EnvironmentUnfit(
            Problem("arm-emulator", f"{package.file} was not downloaded", "run the same command to try again")
        )
    if sha256(path) != package.sha256:
        path.unlink()
        raise BaselineError(
            Problem(package.file, "is not the file that the package lists name: its sha256 differs", "it was removed")
        )
    return path


def unpack_deb(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _run(["dpkg", "-x", str(path), str(folder)], f"{path.name} can't be unpacked")


def _pip(verb: str) -> list[str]:
    return [sys.executable, "-m", "pip", verb, "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]


def _for(python_version: str, platforms: Sequence[str]) -> list[str]:
    return [
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
        "--python-version",
        python_version,
        *(f"--platform={p}" for p in platforms),
    ]


def _run(
    command: Sequence[str], failed: str, folder: Path | None = None, told: Literal["stdout", "stderr"] = "stdout"
) -> str:
    """What a command prints. Raises EnvironmentUnfit with the last thing that it complained about."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        lines = [
            line for line in done.stderr.strip().splitlines() if re.match(r"E:|ERROR", line)
        ] or done.stderr.strip().splitlines()
        reason = (
            re.sub(r"^(E|ERROR): ?", "", lines[-1])
            if lines
            else f"{Path(command[0]).name} ended with exit code {done.returncode}"
        )
        raise EnvironmentUnfit(
            Problem("arm-emulator", f"{failed}: {reason}", "downloaded files are kept; run the same command to resume")
        )
    return getattr(done, told)
