"""``python -m fuzz``, in the folder tests: many inputs for every reader, and a table of what became of them."""

import argparse
import sys
import tempfile

from fuzz.harness import fuzz, table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", help="names of readers; default: all")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", default="/tmp/udpm-fuzz", help="folder for inputs that find something")
    parser.add_argument("--folder", help="of valid files, to be made once and used again; default: a new one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(given.readers, given.inputs, given.seed, given.kept, given.folder or f"{folder}/inputs")
    print(table(found))
    sys.exit(any(result.findings for result in found.values()))
