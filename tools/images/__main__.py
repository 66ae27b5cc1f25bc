"""Pack one image from files: `python3 -m tools.images OUT.tar NAME… --add SOURCE:/target… [--entrypoint PROGRAM] …`.

`--blobs` keeps the blobs for other images; without it they live as long as the command.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

from tools.images.oci import Blobs, Run


def main(arguments: list[str]) -> int:
    """Pack an image as the arguments say."""
    parser = argparse.ArgumentParser(prog="tools.images", description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="+", metavar="name")
    parser.add_argument("--add", action="append", default=[], metavar="SOURCE:/target", help="a file, or a folder with all it holds")
    parser.add_argument("--entrypoint", nargs="+", default=[])
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--user", default="")
    parser.add_argument("--stop-signal", default="")
    parser.add_argument("--blobs", type=pathlib.Path)
    asked = parser.parse_args(arguments)
    content = {target: pathlib.Path(source) for source, _, target in (entry.partition(":") for entry in asked.add)}
    environment = dict(entry.split("=", 1) for entry in asked.env)
    run = Run(asked.entrypoint, environment, asked.user, stop_signal=asked.stop_signal)
    with tempfile.TemporaryDirectory(dir=asked.out.parent) as scratch:
        blobs = Blobs(asked.blobs or pathlib.Path(scratch))
        image = blobs.add_image(asked.names, [blobs.add_layer(content)], run)
        with asked.out.open("wb") as out:
            blobs.write_archive([image], out)
    print(asked.names[0], image.size >> 20, "MiB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
