"""Where an exception was raised, in words. Nothing heavy is imported for it."""

from __future__ import annotations

import traceback
from importlib.util import find_spec
from pathlib import Path


def place(error: BaseException) -> str:
    """Where an exception was raised: the file with its folder, and the line. Torch's own files tell nothing."""
    torch = find_spec("torch")
    hidden = str(Path(torch.origin).parent) if torch is not None and torch.origin else "<nothing>"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((item for item in reversed(frames) if not item.filename.startswith(hidden)), frames[-1])
    return f"{'/'.join(Path(frame.filename).parts[-2:])}, line {frame.lineno}"
