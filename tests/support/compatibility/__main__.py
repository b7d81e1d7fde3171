"""Run every cell and write docs/compatibility.md."""

from __future__ import annotations

import torch
import transformers

from tests.support.compatibility.page import PAGE, page

if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page(), encoding="utf-8")
