"""``python -m geolatent``."""

import sys

from geolatent.cli import main

sys.exit(main())
