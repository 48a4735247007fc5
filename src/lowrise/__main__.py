"""`python -m lowrise`."""

import sys

from lowrise.cli import main

sys.exit(main())
