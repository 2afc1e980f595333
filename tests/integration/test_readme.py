"""The README's example runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

from server_process import ServerProcess

README = Path(__file__).parents[2] / "README.md"


def test_the_python_example_runs(server: ServerProcess) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert '"127.0.0.1:50051"' in example
    assert len(example.strip().splitlines()) <= 12
    code = example.replace('"127.0.0.1:50051"', repr(server.target))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert sum("p=" in line and "among" in line for line in lines) >= 1
    assert any(reason in lines[-1] for reason in ("length", "end_of_sequence"))
