"""python -m trpo_brax"""

import sys

from trpo_brax.cli import main

sys.exit(main())
