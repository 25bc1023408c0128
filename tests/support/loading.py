"""What running some code loads."""

import subprocess
import sys


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded after running this code in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.split("\n")[-2].split()}
