"""`python -m tests.fuzz [TARGET…]`: run targets under atheris, each in a process of its own and for a bounded time (FUZZ_SECONDS, 60 by default).

What leads to new code is kept in build/fuzz/<target>, and the next run goes on from there. A failure ends with the rule that was broken and with
a file, which `--replay FILE` runs once more, without atheris.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import random
import subprocess
import sys

FOLDER = pathlib.Path("build/fuzz")
LONGEST, SEEDS = 600, 30
"""Bytes of a script, and scripts to begin with."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which ones (default: all)")
    parser.add_argument("--replay", type=pathlib.Path, metavar="FILE", help="run one target with what a file holds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the proxy warns of what functions do wrong, which here is all that they do
    if options.here:
        return _fuzz(options.targets[0])
    from tests.fuzz.targets import TARGETS

    unknown = sorted(set(options.targets) - TARGETS.keys())
    if unknown or (options.replay and len(options.targets) != 1):
        parser.error(f"target {', '.join(unknown) or 'missing'}: must be {'one' if options.replay else 'some'} of {', '.join(TARGETS)}")
    if options.replay:
        TARGETS[options.targets[0]](options.replay.read_bytes())
        return 0
    failed = [target for target in options.targets or TARGETS if subprocess.run([sys.executable, "-m", "tests.fuzz", "--here", target]).returncode]
    print(f"failed: {', '.join(failed)}; failing scripts are in {FOLDER}/" if failed else "no target failed")
    return 1 if failed else 0


def _fuzz(target: str) -> int:
    """Run one target in this process, which libFuzzer ends."""
    try:
        import atheris
    except ImportError:
        print("error: atheris is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 1
    with atheris.instrument_imports(include=["stateful_proxy", "cloudstate_core.entity_key"]):
        from tests.fuzz.targets import TARGETS
    corpus = FOLDER / target
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number in range(SEEDS):
            (corpus / f"seed-{number}").write_bytes(random.Random(number).randbytes(LONGEST // 2))
    seconds = os.environ.get("FUZZ_SECONDS", "60")
    print(f"{target}: {seconds} s", flush=True)
    arguments = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-len_control=0", "-timeout=10", f"-artifact_prefix={FOLDER}/{target}-"]
    atheris.Setup([sys.argv[0], *arguments, "-print_final_stats=1", "-verbosity=0", str(corpus)], TARGETS[target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
