"""``python -m visreg_core`` is the command `visreg`."""

import sys

from visreg_core.cli import main

sys.exit(main())
