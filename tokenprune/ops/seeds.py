"""Seeds of random choices: they belong to a sample, whatever batch it is in."""

_MASK = (1 << 64) - 1


def mixed_seed(seed: int, sample: int) -> int:
    """Hash two integers to a 63-bit seed; neighbouring inputs give unrelated seeds (splitmix64's finaliser)."""
    state = (seed * 0x9E3779B97F4A7C15 + sample + 1) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return (state ^ (state >> 31)) >> 1
