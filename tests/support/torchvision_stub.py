"""torchvision beside any build of torch, for processors only: a process imports this module before transformers.

torchvision is not part of the tests' environment: its presence changes the processors of all tests. `make test`
installs it into a folder of its own. Its operators are compiled for one build of torch and not loaded. It registers
abstract versions of two of them as soon as it is imported, so they are defined here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

FOLDER = Path(os.environ.get("TOKENPRUNE_TORCHVISION") or Path(sys.prefix) / "torchvision")
if not (FOLDER / "torchvision").is_dir():
    raise FileNotFoundError(f"no torchvision in {FOLDER}; run `make test`, or set TOKENPRUNE_TORCHVISION to its folder")

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
OPERATORS.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
OPERATORS.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
sys.path.append(str(FOLDER))

import torchvision  # noqa: E402

assert Path(torchvision.__file__).is_relative_to(FOLDER), f"{torchvision.__file__} hides {FOLDER}"
