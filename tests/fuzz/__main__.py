"""``python -m fuzz``, in the folder tests: many inputs for every reader, and a table of the outcomes."""

import argparse
import os
import sys
import tempfile

# Before importing numpy and torch: their threads do not survive a fork.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

from fuzz.harness import HEAD, fuzz, row

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", help="names of readers; default: all")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", default="/tmp/udpm-fuzz", help="folder for inputs that find something")
    parser.add_argument("--folder", help="of valid files, to be made once and used again; default: a new one")
    given = parser.parse_args()
    print(HEAD, flush=True)
    findings = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, result in fuzz(
            given.readers, given.inputs, given.seed, given.kept, given.folder or f"{folder}/inputs"
        ):
            print(row(name, result), flush=True)
            findings += len(result.findings)
    sys.exit(findings > 0)
