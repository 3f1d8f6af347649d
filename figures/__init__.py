"""The figures of the documentation, drawn from the simulator in tests/sim.

    python -m figures [--out DIRECTORY]

The modules that run the simulator (`runs`, and `story` for one single run) know of no drawing; the
others, one a figure, know of nothing else. matplotlib is imported here and nowhere else.
"""

import sys
from pathlib import Path

# The simulator belongs to the tests, which are no package that could be installed.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
