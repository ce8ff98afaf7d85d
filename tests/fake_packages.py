"""A distribution and an index in a folder, for tests of what is made from them: apt-get, apt-cache, dpkg and
qemu-aarch64 as small programs, pip as a module. They log what they are asked to `log`; `fail` and `wrong` name files
that don't come, or come with another content."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

DEBS = (
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
)
HEAD = (
    f"#!{sys.executable} -SE\n"
    "import hashlib, json, os, re, shutil, sys\n"
    "from pathlib import Path\n"
    f"root, args = Path({{root!r}}), sys.argv[1:]\n"
)
LOG = (
    "told = [Path(sys.argv[0]).name, *[a for a in args if not a.startswith('-o')]]\n"
    "open(root / 'log', 'a').write(' '.join(told) + chr(10))\n"
)
APT_GET = """
option = lambda name: next(a.partition('=')[2] for a in args if a.startswith('-o' + name + '='))
if 'update' in args:
    if (root / 'offline').exists():
        print('W: Failed to fetch http://somewhere/InRelease  Temporary failure resolving', file=sys.stderr)
    else:
        Path(option('Dir::State::Lists'), 'somewhere_Packages.lz4').write_text('')
    sys.exit(0)
folder = root / ('debs' if option('APT::Architecture') == 'arm64' else 'own')
named = {f.name.split('_')[0]: f for f in folder.iterdir()}
uri = lambda f, hash: f"'http://somewhere/{f.name}' {f.name} {f.stat().st_size} {hash}:"
if 'install' in args:
    for file in named.values():
        print(uri(file, 'MD5Sum') + hashlib.md5(file.read_bytes()).hexdigest())
    sys.exit(0)
for name in [a.split('=')[0] for a in args[args.index('download') + 1:]]:
    file = named[name]
    if '--print-uris' in args:
        print(uri(file, 'SHA256') + hashlib.sha256(file.read_bytes()).hexdigest())
    elif (root / 'fail').exists() and (root / 'fail').read_text() == name:
        sys.exit('E: Failed to fetch ' + file.name + '  Connection refused')
    elif (root / 'wrong').exists() and (root / 'wrong').read_text() == name:
        Path(file.name).write_bytes(b'something else')
    else:
        shutil.copy(file, file.name)
"""
APT_CACHE = "print('python3-minimal\\n  PreDepends: python3.11-minimal\\n  Depends: dpkg')\n"
DPKG = """
import tarfile
if args == ['--print-architecture']:
    print('amd64')
else:
    tarfile.open(args[1]).extractall(args[2], filter='tar')
"""
QEMU = """
if args == ['--version']:
    print('qemu-aarch64 version 7.2.22 (Debian)')
elif args == ['-cpu', 'help']:
    print('Available CPUs:\\n  cortex-a53\\n  cortex-a72\\n  cortex-a76\\n  max')
elif (root / 'broken').exists():
    sys.exit('Illegal instruction')
elif 'getauxval' in args[-1]:
    print(json.dumps({'hwcap': 0x8fb, 'hwcap2': 0, 'midr': 0x410fd083}))
else:
    print('VERSION')
"""
PIP = """
wanted = lambda: Path(args[args.index('--requirement') + 1]).read_text()
file = lambda name: next(f for f in (root / 'wheels').iterdir() if f.name.startswith(name))
if '--version' in args:
    print('pip 25')
elif 'install' in args:
    name = lambda f: f.name.split('-')[:2]
    one = lambda f: {'metadata': dict(zip(('name', 'version'), name(f))), 'download_info': {'url': f.as_uri(),
                     'archive_info': {'hashes': {'sha256': hashlib.sha256(f.read_bytes()).hexdigest()}}}}
    found = [one(f) for f in sorted((root / 'wheels').iterdir())]
    Path(args[args.index('--report') + 1]).write_text(json.dumps({'install': found}))
elif (root / 'fail').exists() and wanted().startswith((root / 'fail').read_text()):
    sys.exit('ERROR: Could not find a version that satisfies the requirement')
else:
    f = file(wanted().split('==')[0])
    shutil.copy(f, Path(args[args.index('--dest') + 1]) / f.name)
"""


def make(root: Path, version: str) -> Path:
    """Writes the folder; `root / "bin"` goes to the front of PATH, `root / "modules"` of PYTHONPATH."""
    for name in ("debs", "own", "wheels", "bin", "modules/pip"):
        (root / name).mkdir(parents=True)
    for name in DEBS:
        file = {"python3.11-minimal": "usr/bin/python3.11", "libc6": "lib/libc.so.6"}.get(name, f"usr/lib/{name}.so")
        _deb(root / "debs" / f"{name}_1.0-1_arm64.deb", {file: name, f"usr/share/doc/{name}/copyright": name})
    emulator = HEAD.format(root=str(root)) + QEMU.replace("VERSION", version)
    _deb(root / "own/qemu-user_1%3a7.2-1_amd64.deb", {"usr/bin/qemu-aarch64": emulator, "usr/bin/qemu-m68k": emulator})
    _deb(root / "own/libcapstone4_4.0-5_amd64.deb", {"usr/lib/x86_64-linux-gnu/libcapstone.so.4": "capstone"})
    for name, number in (("numpy", "2.4.6"), ("onnxruntime", version)):
        with zipfile.ZipFile(
            root / "wheels" / f"{name}-{number}-cp311-cp311-manylinux_2_28_aarch64.whl", "w"
        ) as archive:
            archive.writestr(f"{name}/__init__.py", "")
            archive.writestr(f"{name}/tests/test.py", "")
    head = HEAD.format(root=str(root))
    programs = {
        "apt-get": head + LOG + APT_GET,
        "apt-cache": head + APT_CACHE,
        "dpkg": head + DPKG,
        "qemu-aarch64": emulator,
    }
    for name, text in programs.items():
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    (root / "modules/pip/__init__.py").write_text("")
    (root / "modules/pip/__main__.py").write_text(
        HEAD.format(root=str(root)) + LOG.replace("Path(sys.argv[0]).name", "'pip'") + PIP
    )
    return root


def _deb(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text.encode()), 0o755
            archive.addfile(info, io.BytesIO(text.encode()))


def log(root: Path) -> list[str]:
    return (root / "log").read_text().splitlines() if (root / "log").exists() else []
