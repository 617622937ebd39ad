from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys, threading
import torch
from vxpress.core.whole_import import import_for_optimizers

assert "torch._dynamo" not in sys.modules
# during the import
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    import_for_optimizers()
    threading.Event().wait(30)
except KeyboardInterrupt:
    pass
else:
    sys.exit("lost")
torch.optim.Adam([torch.zeros(1, requires_grad=True)])
"""


@pytest.mark.slow
def test_ctrl_c_waits_until_torch_is_imported_whole() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
