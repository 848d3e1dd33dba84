"""python -m stepladder"""

import sys

from .cli import main

sys.exit(main())
