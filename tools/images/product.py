"""Build the product's images and give them to nodes: `python3 -m tools.images.product [--node CONTAINER]… [IMAGE]…`.

A layer is made once per content and shared by every image that has it. A node is sent only the blobs that it lacks, so that after a change of
the code new images are in a running cluster within seconds. Needs mmdebstrap, binutils, pip and, for the engine, maturin with cargo.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import inspect
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tools.images import layers, oci
from tools.images.layers import LISTS, ROOT, USER
from tools.images.oci import Blob, Blobs, Image, Run

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "cloudstate-knative"
PREFIX = "dev.local/cloudstate-knative"
PYTHON = {"PYTHONPATH": "/opt/application:/opt/dependencies", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
KEPT_DAYS = 14
WITHOUT_KUBERNETES = ("cloudstate_core/kube",)


@dataclass(frozen=True, slots=True)
class Component:
    """What an image of the product holds. `list` names its requirements in deploy/images/, `module` is what it runs."""

    list: str
    module: str
    sources: tuple[str, ...]
    without: tuple[str, ...] = ()
    engine: bool = False


COMPONENTS = {
    "stateful-proxy": Component("stateful-proxy", "stateful_proxy", ("cloudstate_core", "stateful_proxy"), WITHOUT_KUBERNETES, engine=True),
    "activator": Component("activator", "activator", ("cloudstate_core", "activator"), WITHOUT_KUBERNETES, engine=True),
    "autoscaler": Component("control-plane", "autoscaler", ("cloudstate_core", "autoscaler")),
    "revision-controller": Component("control-plane", "revision_controller", ("cloudstate_core", "revision_controller")),
    "shopping-cart": Component("shopping-cart", "cart", ("sdk/python/cloudstate_sdk", "samples/shopping-cart")),
}


class Builder:
    """Makes layers that the cache lacks and images from layers."""

    def __init__(self, cache: pathlib.Path) -> None:
        self.cache = cache
        self.blobs = Blobs(cache / "blobs")
        (cache / "layers").mkdir(exist_ok=True)

    def layer(self, name: str, target: str, content: str, fill: Callable[[pathlib.Path], None]) -> Blob:
        """The layer that `fill` makes, at `target` in the image; `content` and the code of `layers` are its key."""
        key = hashlib.sha256((inspect.getsource(layers) + inspect.getsource(oci) + target + content).encode()).hexdigest()[:12]
        kept = self.cache / "layers" / f"{name}-{key}"
        if kept.exists():
            digest = kept.read_text()
            if self.blobs.path(digest).exists():
                os.utime(kept)
                os.utime(self.blobs.path(digest))
                return Blob(digest, self.blobs.path(digest).stat().st_size)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.cache) as scratch:
            folder = pathlib.Path(scratch) / "layer"
            folder.mkdir()
            fill(folder)
            blob = self.blobs.add_layer({target: folder})
        kept.write_text(blob.digest)
        print(f"layer {name:22} {blob.size / 2**20:6.1f} MiB {time.monotonic() - started:6.1f} s", file=sys.stderr)
        return blob

    def system(self) -> tuple[Blob, pathlib.Path]:
        """The base layer, and the same as a folder, whose interpreter compiles the other layers."""
        content = (LISTS / "base.txt").read_text()
        folder = self.cache / ("base-" + hashlib.sha256((inspect.getsource(layers) + content).encode()).hexdigest()[:12])

        def copy(into: pathlib.Path) -> None:
            shutil.copytree(folder, into, symlinks=True, dirs_exist_ok=True)

        if not folder.exists():
            scratch = pathlib.Path(tempfile.mkdtemp(dir=self.cache))
            scratch.chmod(0o755)
            layers.base(scratch)
            scratch.rename(folder)
        os.utime(folder)
        return self.layer("base", "/", content, copy), folder

    def component(self, name: str) -> Image:
        """The image of a component."""
        wanted = COMPONENTS[name]
        system, folder = self.system()
        wheels = [engine_wheel(self.cache)] if wanted.engine else []
        requirements = layers.names(LISTS / f"{wanted.list}.txt")
        content = "\n".join([*requirements, *layers.names(LISTS / "without/control-plane.txt"), *(_digest([wheel]) for wheel in wheels)])
        dependencies = self.layer(
            f"{wanted.list}-python", "/opt/dependencies", content, lambda into: layers.dependencies(into, folder, requirements, wheels)
        )
        sources = [path for source in wanted.sources for path in _files(ROOT / source)]
        application = self.layer(
            name,
            "/opt/application",
            _digest(sources) + repr(wanted),
            lambda into: layers.application(into, folder, wanted.sources, wanted.without),
        )
        home = f"/opt/application/{name}" if (ROOT / "samples" / name).exists() else "/"
        run = Run(("/usr/bin/python3", "-m", wanted.module), PYTHON, f"{USER}:{USER}", home)
        return self.blobs.add_image([f"{PREFIX}/{name}:dev"], [system, dependencies, application], run)

    def redis(self) -> Image:
        """A Redis server that any pod may reach, keeping nothing beyond its life unless told where."""
        layer = self.layer("redis", "/", "", layers.redis)
        arguments = ("--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/tmp")
        return self.blobs.add_image(["dev.local/redis:7"], [layer], Run(("/usr/bin/redis-server", *arguments), {}, f"{USER}:{USER}", "/tmp"))

    def image(self, name: str) -> Image:
        """An image by its short name."""
        return self.redis() if name == "redis" else self.component(name)

    def forget_old(self) -> None:
        """Drop what no build has used for two weeks."""
        limit = time.time() - KEPT_DAYS * 86_400
        for folder in (self.cache, self.cache / "layers", self.blobs.folder):
            for entry in folder.iterdir():
                if entry.lstat().st_mtime < limit and entry.name not in {"blobs", "layers", "lock"}:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def engine_wheel(cache: pathlib.Path) -> pathlib.Path:
    """The engine as an abi3 wheel, built when its sources changed."""
    key = _digest(path for path in _files(ROOT / "engine") if "target" not in path.parts)[:12]
    kept = cache / f"engine-{key}"
    if not kept.exists():
        scratch = pathlib.Path(tempfile.mkdtemp(dir=cache))
        maturin = [sys.executable, "-m", "maturin", "build", "--quiet", "--release", "--compatibility", "linux", "--out", str(scratch)]
        environment = {"CARGO_TARGET_DIR": str(CACHE / "target"), **os.environ}
        environment["PATH"] += os.pathsep + str(pathlib.Path.home() / ".cargo/bin")
        subprocess.run([*maturin, "-m", str(ROOT / "engine/Cargo.toml")], env=environment, check=True, stdout=subprocess.DEVNULL)
        scratch.rename(kept)
    os.utime(kept)
    return next(kept.glob("*.whl"))


def load(image: Image, blobs: Blobs, node: str) -> None:
    """Give an image to a node of a kind cluster, sending what it lacks."""
    ctr = ["docker", "exec", "-i", node, "ctr", "--namespace", "k8s.io"]
    listed = subprocess.run([*ctr, "images", "list"], capture_output=True, text=True, check=True).stdout
    if any(line.split()[0:1] == [image.names[0]] and image.manifest.digest in line for line in listed.splitlines()):
        return
    held = subprocess.run([*ctr, "content", "list", "--quiet"], capture_output=True, text=True, check=True).stdout.split()
    loading = subprocess.Popen([*ctr, "images", "import", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert loading.stdin is not None
    blobs.write_archive([image], loading.stdin, without=set(held))
    loading.stdin.close()
    if loading.wait():
        raise SystemExit(f"{node} did not take {image.names[0]}")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _digest(files: Iterable[pathlib.Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(path.anchor)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def main(arguments: Sequence[str]) -> int:
    """Build the images asked for, all by default, and load them where asked."""
    parser = argparse.ArgumentParser(prog="tools.images.product", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="image", help="short names; all by default")
    parser.add_argument("--node", action="append", default=[], help="container of a kind node to load into")
    asked = parser.parse_args(arguments)
    known = [*COMPONENTS, "redis"]
    for name in asked.names:
        if name not in known:
            parser.error(f"no image is called {name}; there are {', '.join(known)}")
    cache = CACHE / "images"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        builder = Builder(cache)
        for name in asked.names or known:
            image = builder.image(name)
            for node in asked.node:
                load(image, builder.blobs, node)
            print(f"{image.names[0]} {image.size / 2**20:.1f} MiB")
        builder.forget_old()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
