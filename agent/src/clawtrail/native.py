"""The parts of an event's way that exist in C too, where the package was built with a compiler; else Python does it all.

Both write the same bytes. `CLAWTRAIL_NATIVE=0` in the environment does without the compiled ones.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

native: Any = None  #: the compiled module, or None
if os.environ.get("CLAWTRAIL_NATIVE", "1") != "0":
    try:
        native = importlib.import_module("clawtrail._native")
    except ImportError:  # built without a compiler
        pass
