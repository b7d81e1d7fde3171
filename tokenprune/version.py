"""The version of the package. Every module can import it, as it imports nothing itself."""

from __future__ import annotations

__version__ = "0.2.0"
