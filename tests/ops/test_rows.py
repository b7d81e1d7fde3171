"""Rows of states, position embeddings and masks, written out for a batch of unequal samples."""

from __future__ import annotations

import pytest
import torch

from tokenprune.ops.rows import (
    causal_mask,
    compose,
    decode_mask,
    keep_index,
    place_of,
    prefill_mask,
    seen_columns,
    take,
    take_nested,
)

#: Sample 0 keeps rows 0, 2 and 3 of four; sample 1 keeps row 1.
ROWS = torch.tensor([[0, 2, 3], [-1, -1, 1]])


def test_indices_are_right_aligned_and_compose() -> None:
    keep = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert torch.equal(keep_index(keep, 3), ROWS)
    assert compose(ROWS, torch.tensor([[-1, 2], [-1, 2]])).tolist() == [[-1, 3], [-1, 1]]
    assert place_of(torch.tensor([[-1, 3], [-1, 1]]), ROWS).tolist() == [[-1, 2], [-1, 2]]


@pytest.mark.parametrize("shared", [False, True])
def test_take_along_any_axis(shared: bool) -> None:
    states = torch.arange(2.0 * 4 * 3).view(2, 4, 3)[: 1 if shared else 2]
    expected = torch.stack([states[0][[0, 2, 3]], states[-1][[0, 0, 1]]])  # padding gathers row 0
    assert torch.equal(take(states, ROWS, 1, 0), expected)
    assert torch.equal(take(states.transpose(1, 2), ROWS, -1, 0), expected.transpose(1, 2))


def test_nested_position_embeddings() -> None:
    cos = torch.randn(3, 2, 4, 5)  # three axes of a multimodal rotary embedding
    nested = take_nested({"full": (cos, cos[0]), "other": None}, ROWS)
    assert torch.equal(nested["full"][0], take(cos, ROWS, 2, 1))
    assert torch.equal(nested["full"][1], take(cos[0], ROWS, 1, 0))
    assert nested["other"] is None


@pytest.mark.parametrize("additive", [False, True])
def test_masks_of_a_prefill(additive: bool) -> None:
    """Kept tokens see the kept ones before them; padding sees itself and nobody sees padding."""
    visible = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, 4, 4).masked_fill(~visible, torch.finfo(torch.float32).min) if additive else visible
    expected = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]]).bool()
    compact = prefill_mask(mask, ROWS)[:, 0]
    assert torch.equal(compact == 0 if additive else compact, expected)
    assert torch.equal(causal_mask(ROWS, causal=True)[:, 0], expected)
    assert causal_mask(ROWS, causal=False)[0, 0].all()


def test_masks_of_a_prefill_behind_earlier_turns() -> None:
    """Two keys of earlier turns come first, of which the second is hidden; padding still sees itself alone."""
    mask = torch.cat([torch.tensor([True, False]).expand(1, 1, 4, 2), torch.ones(1, 1, 4, 4).bool().tril()], -1)
    expected = [
        [[1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 1, 1, 1]],
        [[1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]],
    ]
    assert prefill_mask(mask, ROWS, earlier=2)[:, 0].int().tolist() == expected


def test_masks_of_a_decode_step() -> None:
    """Keys at positions 0, 2 and 3 and at 1; one new token at position 4. A window's mask has the last two only."""
    columns = torch.cat([ROWS, torch.tensor([[4], [4]])], 1)
    present = [[True, True, True, True], [False, False, True, True]]
    assert decode_mask(None, columns, 5, 1)[:, 0, 0].tolist() == present
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[0, 0, 0, 2] = False
    assert decode_mask(mask, columns, 5, 1)[:, 0, 0].tolist() == [[True, False, True, True], present[1]]
    assert decode_mask(mask[:, 0, 0], columns, 5, 1).tolist() == [[True, False, True, True], present[1]]
    window = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    assert decode_mask(window, columns, 5, 1)[:, 0, 0].tolist() == [
        [False, False, True, True],
        [False, False, False, True],
    ]


def test_the_mask_of_full_attention_tells_the_padding() -> None:
    """A window hides tokens that are no padding: its mask tells nothing, alone or beside the other."""
    full = torch.tensor([[False, True, True, True], [True, True, True, True]])
    window = torch.tensor([[False, False, True, True]] * 2)
    for form in (full, full.long(), full[:, None, None].expand(-1, -1, 3, -1)):
        seen = seen_columns({"sliding_attention": window, "full_attention": form})
        assert seen is not None
        assert torch.equal(seen, full)
    assert seen_columns({"sliding_attention": window}) is None
