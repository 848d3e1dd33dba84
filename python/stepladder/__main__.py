"""python -m stepladder"""

import sys

from .cli.command import main

sys.exit(main())
