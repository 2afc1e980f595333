"""The engine imports transformers without scipy, and leaves transformers as it is."""

import importlib.util
import subprocess
import sys

PROGRAM = """
import sys
from transformers.utils import import_utils
from whence_server.engines.transformers.importing import leave_out_scipy

answer = import_utils.is_scipy_available
with leave_out_scipy():
    from transformers import PreTrainedModel
assert import_utils.is_scipy_available is answer
import whence_server.engines.transformers.decoding
import whence_server.engines.transformers.loading
import whence_server.engines.transformers.loop
print(sorted({name.partition(".")[0] for name in sys.modules} & {"scipy", "torch", "transformers"}))
"""


def test_the_engine_imports_no_scipy() -> None:
    assert importlib.util.find_spec("scipy"), "without scipy this shows nothing"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("['torch', 'transformers']", 0), done.stderr
