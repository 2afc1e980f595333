"""`python -m whence.cli`: the `whence` command."""

import sys

from whence.cli.main import main

sys.exit(main())
