"""`python -m whence_server` is `whence-server`."""

import sys

from whence_server.cli import main

sys.exit(main())
