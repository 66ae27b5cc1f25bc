"""Disks that are really full: the kernel itself refuses to write (ENOSPC on a small file system of its own, EFBIG at a limit of file size)."""

from __future__ import annotations

import contextlib
import pathlib
import resource
import subprocess
from collections.abc import Iterator

SIZE = 1 << 20
"""Bytes of a small disk, or of the largest file."""
ENOUGH = 64 << 20


class Disk:
    """A folder with little room. `confine(pid)` keeps a process (0 = this one) to it, `make_room` ends the shortage."""

    def __init__(self, folder: pathlib.Path, mounted: bool) -> None:
        self.folder, self.mounted = folder, mounted
        self._confined: list[tuple[int, tuple[int, int]]] = []

    def confine(self, pid: int = 0, size: int = SIZE) -> None:
        """From now on the process finds the disk full once its journal has grown to about `size`."""
        if not self.mounted:
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            self._confined.append((pid, before))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))

    def fill(self) -> None:
        """Leave this process no room at all."""
        self.confine(size=0)
        if self.mounted:
            with (self.folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))

    def make_room(self) -> None:
        """Writing is possible again."""
        if self.mounted:
            subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", self.folder], check=True)
        for pid, before in self._confined:
            try:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
            except ProcessLookupError:
                continue
        self._confined.clear()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, kind: str) -> Iterator[Disk]:
    """A `device` is a file system of its own where this user may mount one; a `limit`, which works everywhere, is one of file size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "small-disk", folder]
    mounted = kind == "device" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    disk = Disk(folder, mounted)
    try:
        yield disk
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        else:
            disk.make_room()


