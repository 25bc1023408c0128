"""Runs a script of this folder with the packages that `on_gpu.sh wheels` carried, before the machine's own: those of
cuda-python must fit each other, and what a machine has need not (cuda-core 1.0.0 fails beside bindings 13.0.3).

python benchmarks/with_wheels.py [--under PROGRAM ARGUMENTS... --] SCRIPT ARGUMENTS...
"""

import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    words = sys.argv[1:]
    if words[0] == "--under":
        end = words.index("--")
        os.execvp(words[1], [*words[1:end], sys.executable, __file__, *words[end + 1 :]])
    sys.path[:0] = [str(HERE), *filter(None, [os.environ.get("SDPL_WHEELS")])]
    sys.argv = words
    runpy.run_path(str(HERE / words[0]), run_name="__main__")


if __name__ == "__main__":
    main()
