"""What the authors' published code computed, recorded once, and compared with ours; README.md says how to record."""
