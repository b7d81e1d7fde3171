"""FLOPs and cache bytes in closed form."""

from __future__ import annotations
