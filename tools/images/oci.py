"""OCI images made of plain files, with no container engine.

A `Blobs` folder keeps layers, configurations and manifests by digest, so that images share layers on disk and on the wire. The same content
gives the same digest everywhere: members are sorted, times are zero, everything is owned by root. Layers are not compressed: they are written
to the same machine again at once. The archives can be read by `ctr images import`, `kind load image-archive` and `docker load`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import platform
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob: `digest` is `sha256:<hex>`, `size` in bytes."""

    digest: str
    size: int

    def described(self, media_type: str) -> dict[str, Any]:
        """The OCI descriptor that points at it."""
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Run:
    """How a container of an image starts. `user` is numeric, as Knative and Pod Security want it."""

    entrypoint: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = "/"
    stop_signal: str = ""

    def as_json(self) -> dict[str, Any]:
        """The `config` object of an image configuration."""
        config = {
            "Env": [PATH, *(f"{key}={value}" for key, value in self.environment.items())],
            "Entrypoint": list(self.entrypoint),
            "WorkingDir": self.folder,
            "User": self.user,
            "StopSignal": self.stop_signal,
        }
        return {key: value for key, value in config.items() if value}


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest under one or more names; `blobs` are all that belong to it."""

    names: tuple[str, ...]
    manifest: Blob
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """Bytes of all its blobs."""
        return sum(blob.size for blob in self.blobs)


class Blobs:
    """A content-addressed folder. Writes are renames, so that a killed writer leaves nothing that looks finished."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> pathlib.Path:
        """Where a blob is kept."""
        return self.folder / digest.removeprefix("sha256:")

    def _keep(self, written: pathlib.Path) -> Blob:
        with written.open("rb") as stream:
            blob = Blob("sha256:" + hashlib.file_digest(stream, "sha256").hexdigest(), written.stat().st_size)
        written.chmod(0o644)
        written.replace(self.path(blob.digest))
        return blob

    def add(self, content: bytes) -> Blob:
        """Keep some bytes."""
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            file.write(content)
        return self._keep(pathlib.Path(file.name))

    def add_layer(self, content: Mapping[str, pathlib.Path]) -> Blob:
        """Keep a layer: files and whole folders by their absolute path in the image."""
        with (
            tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for target in sorted(content):
                source = content[target]
                if target == "/":
                    for name in sorted(os.listdir(source)):
                        archive.add(source / name, name, filter=_plain)
                else:
                    archive.add(source.resolve(), target.lstrip("/"), filter=_plain)
        return self._keep(pathlib.Path(file.name))

    def add_image(self, names: Iterable[str], layers: Sequence[Blob], run: Run) -> Image:
        """Keep a configuration and a manifest over stored layers."""
        config = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": run.as_json(),
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
        kept = self.add(json.dumps(config).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": kept.described(CONFIG),
            "layers": [layer.described(LAYER) for layer in layers],
        }
        described = self.add(json.dumps(manifest).encode())
        return Image(tuple(names), described, (described, kept, *layers))

    def write_archive(self, images: Sequence[Image], out: IO[bytes], without: Collection[str] = ()) -> None:
        """Write images as one OCI archive, leaving out the blobs `without` that the reader has.

        A `manifest.json` beside the index serves engines that know only Docker's own form.
        """
        index = {"schemaVersion": 2, "manifests": [entry for image in images for entry in _entries(image)]}
        legacy = [
            {
                "Config": _member(image.blobs[1].digest),
                "RepoTags": list(image.names),
                "Layers": [_member(layer.digest) for layer in image.blobs[2:]],
            }
            for image in images
        ]
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            _put(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            for digest in dict.fromkeys(blob.digest for image in images for blob in image.blobs if blob.digest not in without):
                archive.add(self.path(digest), _member(digest), filter=_plain)
            _put(archive, "index.json", json.dumps(index).encode())
            _put(archive, "manifest.json", json.dumps(legacy).encode())


def _entries(image: Image) -> list[dict[str, Any]]:
    platform_ = {"architecture": ARCHITECTURE, "os": "linux"}
    described = {**image.manifest.described(MANIFEST), "platform": platform_}
    return [{**described, "annotations": {"io.containerd.image.name": name}} for name in image.names]


def _member(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    # A checkout may be private to whoever made it; an image is read by a user of its own.
    member.mode |= 0o555 if member.isdir() or member.mode & 0o100 else 0o444
    return member


def _put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
