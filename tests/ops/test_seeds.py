"""Seeds made of two integers."""

from __future__ import annotations

import itertools

from tokenprune.ops.seeds import mixed_seed


def test_neighbours_have_different_seeds_of_63_bits() -> None:
    pairs = list(itertools.product((-1, 0, 1, 2, 2**40), (0, 1, 2, 3, 2**62)))
    seeds = [mixed_seed(seed, sample) for seed, sample in pairs]
    assert len(set(seeds)) == len(pairs)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_never_change() -> None:
    """They decide what published results were: computed by hand from splitmix64."""
    state = (3 * 0x9E3779B97F4A7C15 + 8) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> shift)) * factor % 2**64
    assert mixed_seed(3, 7) == (state ^ (state >> 31)) >> 1
