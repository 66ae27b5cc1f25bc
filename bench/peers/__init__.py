"""Builds what the benchmarks compare with: the Go peers and the load generator, into a cache outside the checkout."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent


class MissingToolchain(Exception):
    """A peer cannot be built: names the tool that is not installed."""


def _cache(folder: pathlib.Path) -> pathlib.Path:
    """Where the build of a source folder is kept: keyed by its content."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "target" not in p.parts):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    target = base / "cloudstate-knative" / "peers" / f"{folder.name}-{digest.hexdigest()[:16]}"
    target.mkdir(parents=True, exist_ok=True)
    return target


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(pathlib.Path.home() / ".cargo/bin")) or shutil.which(name, path="/usr/local/go/bin")
    if found is None:
        raise MissingToolchain(f"{name} is not installed: the peers of the benchmarks are built with it")
    return found


def go_peers() -> pathlib.Path:
    """The binary with the reference proxy, reverse proxy, back end and user function."""
    binary = _cache(HERE / "go") / "peers"
    if not binary.exists():
        subprocess.run([_tool("go"), "build", "-o", str(binary), "."], cwd=HERE / "go", check=True)
    return binary


def load_generator() -> pathlib.Path:
    """The closed-loop h2c load generator."""
    target = _cache(HERE / "load")
    binary = target / "release" / "load"
    if not binary.exists():
        environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
        subprocess.run([_tool("cargo"), "build", "--release", "--quiet"], cwd=HERE / "load", env=environment, check=True)
    return binary
