"""Makes the exactness kit (tests/exact/kit.py) importable here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "exact"))
