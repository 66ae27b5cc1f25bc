"""The layers of the product's images: a minimal Debian with Python, dependencies, applications, the Redis server of the tests.

Each function fills an empty folder. Packages are named in `deploy/images/*.txt`, which the Dockerfile reads too. Byte code is compiled by the
interpreter of the base layer itself, so that a read-only root file system starts as quickly as any other.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LISTS = ROOT / "deploy/images"
USER = 65532
# of the standard library, what no service uses
UNUSED = ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo", "distutils")
KEPT_SHARE = {"ca-certificates", "zoneinfo"}
PASSWD = f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n"


def names(path: pathlib.Path) -> list[str]:
    """The entries of a package list."""
    return [line for line in path.read_text().split("\n") if line and not line.startswith("#")]


def debian(folder: pathlib.Path, packages: Iterable[str]) -> None:
    """Extract Debian packages and what they depend on, without running any of their scripts."""
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=" + ",".join(packages), "bookworm", str(folder)]
    subprocess.run(command, check=True)


def base(folder: pathlib.Path) -> None:
    """Python and nothing to log in with: no shell, no package manager, no documentation."""
    debian(folder, names(LISTS / "base.txt"))
    for place, kept in (("usr/bin", {"python3.11"}), ("usr/sbin", set()), ("bin", set()), ("sbin", set()), ("usr/share", KEPT_SHARE)):
        for entry in (folder / place).iterdir():
            if entry.name not in kept:
                _remove(entry)
    for place in ("var", "etc", "dev", "usr/libexec", "usr/include", "usr/lib/systemd", "usr/lib/dpkg", "lib/systemd", "usr/lib/ssl/misc"):
        _remove(folder / place)
    for pattern in ("usr/lib/*/perl*", "usr/lib/*/gconv", "usr/lib/python3", "usr/lib/tmpfiles.d"):
        for entry in folder.glob(pattern):
            _remove(entry)
    library = folder / "usr/lib/python3.11"
    for entry in (*(library / name for name in UNUSED), *library.glob("config-3.11-*")):
        _remove(entry)
    _write(folder / "etc/passwd", PASSWD)
    _write(folder / "etc/group", f"root:x:0:\nnonroot:x:{USER}:\n")
    _write(folder / "etc/nsswitch.conf", "hosts: files dns\n")
    certificates = sorted((folder / "usr/share/ca-certificates").rglob("*.crt"))
    _write(folder / "etc/ssl/certs/ca-certificates.crt", "".join(path.read_text() for path in certificates))
    _remove(folder / "usr/share/ca-certificates")
    (folder / "usr/bin/python3").symlink_to("python3.11")
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    compile_python(folder, library, "/usr/lib/python3.11")


def loader(system: pathlib.Path) -> list[str]:
    """The start of a command that runs a program of the system in a folder with that system's own libraries."""
    found = next(path for pattern in ("lib/*/ld-linux-*.so.*", "usr/lib/*/ld-linux-*.so.*") for path in sorted(system.glob(pattern)))
    libraries = ":".join(str(system / place / found.parent.name) for place in ("lib", "usr/lib"))
    return [str(found), "--library-path", libraries]


def python(system: pathlib.Path, *arguments: str, path: pathlib.Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the interpreter of the image, not the one that runs this; `path` is where it finds more modules."""
    environment = {**os.environ, "PYTHONHOME": str(system / "usr"), "PYTHONPATH": str(path or ""), "LC_ALL": "C.UTF-8"}
    command = [*loader(system), str(system / "usr/bin/python3.11"), "-s", "-B", *arguments]
    return subprocess.run(command, env=environment, check=False)


def compile_python(system: pathlib.Path, folder: pathlib.Path, home: str) -> None:
    """Compile all modules in a folder, which is `home` in the image. The byte code is trusted: files of an image do not change."""
    how = ("-q", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", home)
    python(system, "-m", "compileall", *how, str(folder))  # its result is of no use: some modules are for other versions of Python


def dependencies(folder: pathlib.Path, system: pathlib.Path, wanted: Sequence[str], wheels: Sequence[pathlib.Path]) -> None:
    """Python packages from wheels, chosen by the image's own interpreter: requirements can depend on its exact version."""
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        raise SystemExit(f"{sys.executable} has no pip to install dependencies with")
    with tempfile.TemporaryDirectory() as scratch:
        (pathlib.Path(scratch) / "pip").symlink_to(pathlib.Path(found.origin).parent)
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-compile")
        python(system, *pip, "--only-binary=:all:", "--target", str(folder), *wanted, path=pathlib.Path(scratch)).check_returncode()
    for wheel in wheels:
        shutil.unpack_archive(wheel, folder, "zip")
    _remove(folder / "bin")
    for unused in [path for pattern in names(LISTS / "without/control-plane.txt") for path in folder.glob(pattern)]:
        _remove(unused)
    for entry in sorted(folder.rglob("*")):
        if (entry.name in {"tests", "test", "__pycache__"} and entry.is_dir()) or entry.suffix in {".pyi", ".c", ".h", ".pyx", ".pxd"}:
            _remove(entry)
    libraries = [str(path) for path in folder.rglob("*.so*") if path.is_file()]
    if libraries:
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
    compile_python(system, folder, "/opt/dependencies")


def application(folder: pathlib.Path, system: pathlib.Path, sources: Iterable[str], without: Iterable[str]) -> None:
    """The project's own packages and files, by their path in the checkout."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyi", "*.so", "*.egg-info")
    for source in sources:
        shutil.copytree(ROOT / source, folder / pathlib.Path(source).name, ignore=ignored)
    for path in without:
        _remove(folder / path)
    compile_python(system, folder, "/opt/application")


def redis(folder: pathlib.Path) -> None:
    """Debian's Redis server with the libraries that it loads, and nothing else."""
    scratch = folder.with_name(folder.name + "-debian")
    try:
        debian(scratch, ["redis-server"])
        program = scratch / "usr/bin/redis-check-rdb"  # redis-server is a link to it
        listed = subprocess.run([*loader(scratch), "--list", str(program)], capture_output=True, text=True, check=True).stdout
        found = [word for line in listed.splitlines() for word in line.split() if word.startswith(str(scratch))]
        for path in {pathlib.Path(loader(scratch)[0]), *map(pathlib.Path, found)}:
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        (folder / "usr/bin").mkdir(parents=True)
        shutil.copy2(program, folder / "usr/bin/redis-server")
        for link in (scratch / "lib64").glob("ld-*"):
            (folder / "lib64").mkdir(exist_ok=True)
            (folder / "lib64" / link.name).symlink_to(link.readlink())
        _write(folder / "etc/passwd", PASSWD)
    finally:
        _remove(scratch)


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
