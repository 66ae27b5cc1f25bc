"""`python -m demo` plays the script."""

import sys

from demo.script import main

sys.exit(main())
