"""Installs the published SDKs, each with a function of ours on it, into a cache folder keyed by what was asked for.

What an SDK drags in stays away from this project's own environment. An installation is made once and then only read; a half-made one is
made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.api import annotations_pb2

HERE = pathlib.Path(__file__).resolve().parent
GOOGLE_APIS = pathlib.Path(annotations_pb2.__file__).parents[2]
LIMIT = 900.0
"""Seconds for one step: registries are slow at times."""
PAUSES = (5.0, 20.0, 60.0)
"""Seconds after which a download that has failed is tried again: one lost connection must not fail the tests."""


@dataclass(frozen=True)
class Sdk:
    """A published SDK."""

    name: str
    """How it is asked for."""
    functions: str
    """Folder of the functions on it."""
    programs: tuple[str, ...]
    """What must be on this machine."""
    install: Callable[[pathlib.Path], None]
    """Make the functions in a folder runnable."""
    command: Callable[[str], list[str]]
    """How to start one of them, in that folder."""


def installed(sdk: Sdk) -> pathlib.Path:
    """The folder with the SDK and the functions on it. CalledProcessError, with its output shown, when it cannot be made."""
    folder = _cache() / f"{sdk.name}-{_digest(sdk)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(HERE / sdk.functions, folder)
            shutil.copytree(HERE / "proto", folder / "proto")
            sdk.install(folder)
            (folder / ".complete").touch()
    return folder


def _cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "cloudstate-knative/sdks"


def _digest(sdk: Sdk) -> str:
    """Of all that an installation is made from."""
    digest = hashlib.sha256(sys.version.encode())
    for root in (HERE / sdk.functions, HERE / "proto", pathlib.Path(__file__)):
        for path in sorted([root] if root.is_file() else root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _run(folder: pathlib.Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, timeout=LIMIT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(command)}: ended with {error.returncode}:\n{error.stdout[-4000:]}") from None


def _download(folder: pathlib.Path, *command: str) -> None:
    """Run what fetches from a registry and can be run again."""
    for pause in PAUSES:
        try:
            return _run(folder, *command)
        except RuntimeError as error:
            print(error, f"trying again in {pause:g} s", sep="\n")
            time.sleep(pause)
    return _run(folder, *command)


def _protos(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder / "proto")) for path in (folder / "proto").rglob("*.proto"))


def _python(folder: pathlib.Path) -> None:
    """A virtual environment of its own, and the stubs that its protoc makes."""
    python = "venv/bin/python"
    _run(folder, sys.executable, "-m", "venv", "venv")
    _download(folder, python, "-m", "pip", "install", "--quiet", "--no-deps", "setuptools==65.5.0", "-r", "requirements.txt")
    includes = ["-Iproto", "-Ioptions", f"-I{GOOGLE_APIS}"]
    _run(folder, python, "-m", "grpc_tools.protoc", *includes, "--python_out=.", *_protos(folder))


def _node(folder: pathlib.Path) -> None:
    """The packages without their scripts: the SDK's would download protoc; this project's own makes the descriptors instead."""
    _download(folder, "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    well_known = pathlib.Path(str(importlib.resources.files("grpc_tools") / "_proto"))
    shutil.copytree(well_known, folder / "node_modules/cloudstate/protoc/include")
    includes = ["-Iproto", "-Inode_modules/cloudstate/proto", f"-I{well_known}"]
    made = ["--include_imports", "--descriptor_set_out=user-function.desc"]
    _run(folder, sys.executable, "-m", "grpc_tools.protoc", *includes, *made, *_protos(folder))


def _java(version: str) -> Callable[[pathlib.Path], None]:
    maven = ("mvn", "--batch-mode", "--quiet", "--no-transfer-progress")
    return lambda folder: _download(folder, *maven, f"-Dcloudstate.version={version}", "package")


def _java_command(name: str) -> list[str]:
    return ["java", "-cp", "target/cart.jar:target/dependency/*", f"shop.{name.title()}"]


_JDK = ("java", "javac", "mvn")


SDKS: Mapping[str, Sdk] = {
    sdk.name: sdk
    for sdk in (
        Sdk("python", "python", (), _python, lambda name: ["venv/bin/python", "-u", f"{name}.py"]),
        Sdk("node", "node", ("node", "npm"), _node, lambda name: ["node", "--no-deprecation", f"{name}.js"]),
        Sdk("java", "java", _JDK, _java("0.5.2"), _java_command),
        Sdk("java-0.4", "java", _JDK, _java("0.4.3"), _java_command),
    )
}
