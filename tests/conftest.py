"""Shared by all layers: unit (no containers), config (files only), stack (a stack of their own)."""

import sys
from pathlib import Path

for layer in ("", "unit", "stack"):  # helpers stand beside the tests that use them
    sys.path.insert(0, str(Path(__file__).parent / layer))
