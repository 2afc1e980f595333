"""Where the engines that tests start compute: `make test-cuda` asks for another device."""

import os

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
