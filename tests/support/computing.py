"""Device of the engines that tests start; `make test-cuda` sets another one."""

import os

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
