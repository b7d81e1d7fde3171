"""Pictures of a prefill: which visual tokens stay at each stage, and what the score saw."""
