"""A process whose clock jumps and whose disk fails, by a library that it loads first."""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from required import skip_without

_SOURCE = Path(__file__).with_name("fault_shim.c")
_FORM = struct.Struct("=qq")


class FaultShim:
    """The library, compiled, and the faults of the processes that load it.

    Args:
        folder: folder for its files.

    Attributes:
        environment: variables of a process that loads it.
    """

    def __init__(self, folder: Path) -> None:
        """Compile it; skip the test without a compiler of C."""
        compiler = shutil.which("cc")
        if compiler is None:
            skip_without("cc", "there is no compiler of C here")
        library, file = folder / "fault_shim.so", folder / "faults"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True
        )
        file.write_bytes(bytes(_FORM.size))
        with file.open("r+b") as opened:
            self._faults = mmap.mmap(opened.fileno(), _FORM.size)
        self._clock_s = self._errno = 0
        self.environment = {"LD_PRELOAD": str(library), "FAULT_SHIM": str(file)}

    def jump(self, clock_s: int) -> None:
        """Set the clock so many seconds ahead of the real time, or behind it."""
        self._clock_s = clock_s
        self._write()

    def fail_fsync(self, error: int) -> None:
        """Have every fsync fail with an errno; 0 for none."""
        self._errno = error
        self._write()

    def _write(self) -> None:
        self._faults[:] = _FORM.pack(self._clock_s, self._errno)
