"""Entry point of `python -m whence_server.training.export`."""

import sys

from whence_server.training.export.process import main

if __name__ == "__main__":
    sys.exit(main())
