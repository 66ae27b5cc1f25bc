"""Images as engines read them: complete, the same for the same content, and sent without what the reader has."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import tarfile

import pytest

from tools.images.oci import Blobs, Image, Run

ENTRYPOINT = "/bin/program"


@pytest.fixture
def blobs(tmp_path: pathlib.Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def content(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "content"
    (folder / "sub").mkdir(parents=True)
    (folder / "program").write_text("run")
    (folder / "sub/link").symlink_to("../program")
    return folder


def image_of(blobs: Blobs, content: pathlib.Path, *names: str) -> Image:
    lower = blobs.add_layer({"/": content})
    upper = blobs.add_layer({"/opt/application": content / "sub", ENTRYPOINT: content / "program"})
    return blobs.add_image(names or ("example.com/a:1",), [lower, upper], Run((ENTRYPOINT,), {"KEY": "value"}, "65532:65532"))


def archive(blobs: Blobs, image: Image, without: set[str] | None = None) -> dict[str, bytes]:
    out = io.BytesIO()
    blobs.write_archive([image], out, without or set())
    out.seek(0)
    with tarfile.open(fileobj=out) as read:
        return {member.name: file.read() for member in read if (file := read.extractfile(member)) is not None}


def test_every_blob_is_there_under_its_digest(blobs: Blobs, content: pathlib.Path) -> None:
    members = archive(blobs, image_of(blobs, content))
    index = json.loads(members["index.json"])
    manifest = json.loads(members["blobs/sha256/" + index["manifests"][0]["digest"].removeprefix("sha256:")])
    for blob in (manifest["config"], *manifest["layers"]):
        kept = members["blobs/sha256/" + blob["digest"].removeprefix("sha256:")]
        assert hashlib.sha256(kept).hexdigest() == blob["digest"].removeprefix("sha256:")
        assert len(kept) == blob["size"]


def test_the_configuration_says_how_to_run(blobs: Blobs, content: pathlib.Path) -> None:
    image = image_of(blobs, content)
    config = json.loads(blobs.path(image.blobs[1].digest).read_text())
    assert config["config"]["Entrypoint"] == [ENTRYPOINT]
    assert config["config"]["User"] == "65532:65532"
    assert "KEY=value" in config["config"]["Env"]
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in image.blobs[2:]]


def test_layers_hold_folders_and_files_at_their_targets(blobs: Blobs, content: pathlib.Path) -> None:
    lower, upper = image_of(blobs, content).blobs[2:]
    with tarfile.open(blobs.path(lower.digest)) as read:
        assert set(read.getnames()) == {"program", "sub", "sub/link"}
        assert read.getmember("sub/link").linkname == "../program"
        assert {(member.uid, member.mtime) for member in read} == {(0, 0)}
    with tarfile.open(blobs.path(upper.digest)) as read:
        assert set(read.getnames()) == {"opt/application", "opt/application/link", "bin/program"}


def test_the_same_content_gives_the_same_image(tmp_path: pathlib.Path, content: pathlib.Path) -> None:
    first = image_of(Blobs(tmp_path / "one"), content)
    os.utime(content / "program", (1, 1))
    assert image_of(Blobs(tmp_path / "two"), content) == first
    (content / "program").write_text("fly")
    assert image_of(Blobs(tmp_path / "two"), content) != first


def test_what_the_reader_has_is_not_sent(blobs: Blobs, content: pathlib.Path) -> None:
    image = image_of(blobs, content)
    shared = image.blobs[2].digest
    whole, partial = archive(blobs, image), archive(blobs, image, {shared})
    assert set(whole) - set(partial) == {"blobs/sha256/" + shared.removeprefix("sha256:")}


def test_an_image_can_have_several_names(blobs: Blobs, content: pathlib.Path) -> None:
    names = ("example.com/a:1", "example.com/b:1")
    members = archive(blobs, image_of(blobs, content, *names))
    index = json.loads(members["index.json"])["manifests"]
    assert tuple(entry["annotations"]["io.containerd.image.name"] for entry in index) == names
    assert tuple(json.loads(members["manifest.json"])[0]["RepoTags"]) == names
