"""Declares the operators of torchvision that its meta registrations name: ``python mend_torchvision.py``.

pip's torchvision is built for CUDA, and cannot load its operators beside a CPU build of torch. Processors need none of
them, but importing torchvision does. This is for the environment of these tests alone.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

OPERATORS = """

if not _has_ops():  # declared for tests beside a CPU build of torch
    _DECLARED = torch.library.Library("torchvision", "FRAGMENT")
    _DECLARED.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _DECLARED.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
"""


def main() -> None:
    """Append the declarations, once."""
    path = Path(sysconfig.get_paths()["purelib"]) / "torchvision" / "extension.py"
    text = path.read_text(encoding="utf-8")
    if "_DECLARED" not in text:
        path.write_text(text.rstrip() + OPERATORS, encoding="utf-8")


if __name__ == "__main__":
    main()
