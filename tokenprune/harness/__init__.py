"""A model with one method on it that answers samples: what evaluation harnesses of others call."""

from __future__ import annotations

from tokenprune.harness.answerer import Answer, Answerer, Likelihood
from tokenprune.harness.media import picture_of, video_of

__all__ = ["Answer", "Answerer", "Likelihood", "picture_of", "video_of"]
