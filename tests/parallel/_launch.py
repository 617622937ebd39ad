"""Start a script in several processes, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def torchrun(script: str, *arguments: str | Path, n: int = 2, seconds: float = 120, **env: str) -> tuple[int, str]:
    """Return status and output of a script of this folder in ``n`` processes of one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    found = subprocess.run(
        [*command, str(HERE / script), *map(str, arguments)],
        check=False, capture_output=True, text=True, timeout=seconds, env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )  # fmt: skip
    return found.returncode, found.stdout + found.stderr
