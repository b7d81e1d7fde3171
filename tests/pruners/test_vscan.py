"""VScan against a literal scan, merging and second pruning in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.pruners.test_visionzip import pruned_states
from tests.support.literal import Recording, cosine, exact_vectors, record
from tests.support.tiny import CASES
from tests.support.tower import attention
from tokenprune.budgets.base import Schedule
from tokenprune.ops.topk import apportion
from tokenprune.ops.windows import best_of_windows, grid_windows, sized_windows
from tokenprune.pruners.stages import Stages
from tokenprune.pruners.topk import TopK
from tokenprune.pruners.vscan import VScan
from tokenprune.scorers.fastv import FastV
from tokenprune.selectors.base import SelectorContext
from tokenprune.testing import TowerTensors, make_context

Place = tuple[int, int, int]


def best_local(scores: list[float], windows: dict[Place, list[int]], count: int, spare: list[int]) -> list[int]:
    """One token after the other in descending order of score, unless its window has given its part.

    Tokens of full windows, then ``spare`` tokens (in no window), make up what is missing.
    """
    limit = -(-count // max(1, len(windows)))
    place_of = {token: place for place, tokens in windows.items() for token in tokens}
    given = dict.fromkeys(windows, 0)
    chosen: list[int] = []
    skipped: list[int] = []
    for token in sorted(place_of, key=lambda i: (-scores[i], i)):
        full = given[place_of[token]] == limit
        (skipped if full else chosen).append(token)
        given[place_of[token]] += not full
    return [*chosen, *skipped, *sorted(spare, key=lambda i: (-scores[i], i))][:count]


def window_of(place: Place, height: int, width: int, side: int) -> Place:
    frame, row, column = place
    return frame, row * side // height, column * side // width


def window_of_size(place: Place, height: int, width: int, size: int) -> Place:
    """Whole windows from the first row and column on; the rest goes to the last of them."""
    frame, row, column = place
    last_row, last_column = max(0, height // size - 1), max(0, width // size - 1)
    return frame, min(row // size, last_row), min(column // size, last_column)


def literal_keep(shallow: list[float], deep: list[float], width: int, count: int, local: float, side: int) -> list[int]:
    """Numbers of the kept tokens of an image with rows of ``width`` tokens."""
    windows: dict[Place, list[int]] = {}
    for token in range(len(shallow)):
        place = window_of((0, *divmod(token, width)), len(shallow) // width, width, side)
        windows.setdefault(place, []).append(token)
    chosen = best_local(shallow, windows, int(count * local), [])
    rest = [token for token in range(len(deep)) if token not in chosen]
    return sorted([*chosen, *sorted(rest, key=lambda i: (-deep[i], i))[: count - len(chosen)]])


def literal_merge(states: Tensor, kept: list[int]) -> dict[int, Tensor]:
    """The kept tokens, each the mean of itself and what is most like it."""
    groups = {i: [i] for i in kept}
    for token in range(len(states)):
        if token not in groups:
            groups[max(kept, key=lambda i: (cosine(states[token], states[i]), -i))].append(token)
    return {i: states[group].double().mean(0) for i, group in groups.items()}


def last_attention(
    recording: Recording, name: str, layer: int, sample: int, states: dict[int, Tensor]
) -> dict[int, float]:
    """Attention from the last prompt token at a layer to each position, mean over heads, in float64.

    From the map that an eager language model returns, given nothing but the rows that are left, at their positions.
    """
    model: Any = CASES[name].build("eager").double()
    rows = sorted(states)
    padding = min(
        position
        for image in recording.image_positions[sample]
        for position in [*image, *recording.text_positions[sample]]
    )
    made = model.model.language_model(
        inputs_embeds=torch.stack([states[row] for row in rows])[None],
        position_ids=torch.tensor([[row - padding for row in rows]]),
        attention_mask=torch.ones(1, len(rows), dtype=torch.long),  # else gaps in the positions part two sequences
        output_attentions=True,
        use_cache=False,
    )
    row = made.attentions[layer][0].mean(0)[-1].tolist()
    return dict(zip(rows, row, strict=True))


def method(tokens: list[int], layers: list[int], **fields: Any) -> dict[str, Any]:
    scan = {"name": "vscan", "local_layer": 0, **fields}
    return {
        "layers": {"name": "fixed", "layers": layers},
        "pruner": {"name": "stages", "pruners": [scan, {"name": "topk", "scorer": {"name": "fastv"}}]},
        "budget": {"name": "keep_schedule", "tokens": tokens},
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("local", "side", "tokens"), [(0.5, 2, [13, 5]), (0.9, 4, [11, 7]), (0.4, 3, [14, 3])])
@torch.no_grad()
def test_both_stages_keep_what_the_definition_says(
    name: str, variant: Any, local: float, side: int, tokens: list[int]
) -> None:
    """Ragged batches, padded on the left, of prompts with several images of 4 x 4 tokens; merging counts at layer 2."""
    recording = record(name, variant, batch=3)
    layer = 2
    shallow, deep = (attention(recording, name, number) for number in (0, -1))
    made = tp.Method.from_dict(method(tokens, [0, layer], local=local, windows=side, layer=-1))
    with tp.apply(recording.model, made) as run:
        recording.model(**recording.inputs)
    stages = [[[i for i in row if i >= 0] for row in stage.kept.tolist()] for stage in run.stages]
    for sample, images in enumerate(recording.image_positions):
        states = {row: recording.layer_inputs[0][sample, row] for row in recording.text_positions[sample]}
        first: list[list[int]] = []
        counts = recording.quotas(sample, tokens[0])
        for number, (image, count) in enumerate(zip(images, counts, strict=True)):
            kept = literal_keep(shallow[sample][number], deep[sample][number], 4, count, local, side)
            merged = literal_merge(recording.layer_inputs[0][sample, image], kept)
            states |= {image[i]: merged[i] for i in kept}
            first.append([image[i] for i in kept])
        assert stages[0][sample] == sorted(row for image in first for row in image)
        received = last_attention(recording, name, layer - 1, sample, states)
        second: list[int] = []
        for image, count in zip(first, apportion(tokens[1], counts), strict=True):
            second += sorted(image, key=lambda row: (-received[row], row))[:count]
        assert stages[1][sample] == sorted(second)


@pytest.mark.parametrize(("name", "variant"), [("llava", "multi"), ("llava_qwen3", "ragged")])
def test_merged_values(name: str, variant: Any) -> None:
    """What enters layer 0, row by row: means at the kept tokens, text as it was."""
    recording = record(name, variant, batch=3)
    how = {**method([9], [0], local_layer=-1), "pruner": {"name": "vscan", "local_layer": -1}}
    rows, entered = pruned_states(recording, how)
    kept = recording.kept(how)
    for sample, images in enumerate(recording.image_positions):
        expected = {row: recording.layer_inputs[0][sample, row] for row in recording.text_positions[sample]}
        for image in images:
            own = [i for i, row in enumerate(image) if row in kept[sample]]
            merged = literal_merge(recording.layer_inputs[0][sample, image], own)
            expected |= {image[i]: vector for i, vector in merged.items()}
        actual = {row: state for row, state in zip(rows[sample], entered[sample], strict=True) if row in expected}
        assert actual.keys() == expected.keys()
        assert all(torch.allclose(actual[row], expected[row], atol=1e-5) for row in expected)


SHAPES = pytest.mark.parametrize("shape", [(1, 6, 6), (1, 5, 3), (2, 4, 8), (1, 1, 9), (1, 11, 9), (3, 10, 17)])


def whole_grid(shape: Place) -> tuple[list[Place], Tensor, Tensor]:
    """Places of a grid; the same as a tensor with a separator and an entry that is padding behind; which are tokens."""
    frames, height, width = shape
    places = [(f, r, c) for f in range(frames) for r in range(height) for c in range(width)]
    grid = torch.tensor([[*places, (-1, -1, -1), (90, 90, 90)]])
    return places, grid, torch.tensor([[True] * (len(places) + 1) + [False]])


def same_partition(actual: list[int], expected: list[Place]) -> bool:
    """Whether two lists divide the tokens in the same way, whatever the windows are called."""
    pairs = set(zip(actual, expected, strict=True))
    return len(pairs) == len(set(actual)) == len(set(expected))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
@SHAPES
def test_windows_by_number(shape: Place, side: int) -> None:
    """Every token lies in one window, windows are rectangles of one size as far as the grid allows."""
    places, grid, valid = whole_grid(shape)
    actual = grid_windows(grid, valid, side)[0].tolist()
    expected = [window_of(place, *shape[1:], side) for place in places]
    assert same_partition(actual[:-2], expected)
    assert actual[-2:] == [-1, -1]
    sizes = [expected.count(window) for window in set(expected)]
    assert max(sizes) <= -(-shape[1] // side) * -(-shape[2] // side)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@SHAPES
def test_windows_by_size(shape: Place, size: int) -> None:
    places, grid, valid = whole_grid(shape)
    actual = sized_windows(grid, valid, size)[0].tolist()
    expected = [window_of_size(place, *shape[1:], size) for place in places]
    assert same_partition(actual[:-2], expected)
    assert actual[-2:] == [-1, -1]
    assert len(set(expected)) == shape[0] * max(1, shape[1] // size) * max(1, shape[2] // size)


def test_six_by_six_tokens_are_four_by_four_windows_of_llava() -> None:
    """The published size for 24 x 24 tokens; 4 x 4 tokens of 10 x 11 are 2 x 2 windows, the last ones larger."""
    _, grid, valid = whole_grid((1, 24, 24))
    assert torch.equal(sized_windows(grid, valid, 6), grid_windows(grid, valid, 4))
    _, grid, valid = whole_grid((1, 10, 11))
    assert sized_windows(grid, valid, 4)[0, :-2].bincount().tolist() == [16, 28, 24, 42]


@pytest.mark.parametrize("divide", [grid_windows, sized_windows])
def test_lengths_of_windows_are_those_of_each_image(divide: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """An image of 4 x 4 and one of 2 x 2 in one batch, the second padded."""
    large = [[0, r, c] for r in range(4) for c in range(4)]
    small = [[0, r, c] for r in range(2) for c in range(2)]
    grid = torch.tensor([large, [*small, *[[0, 0, 0]] * 12]])
    valid = torch.arange(16) < torch.tensor([[16], [4]])
    actual = divide(grid, valid, 2).tolist()
    assert actual[0] == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert actual[1][:4] == ([0, 1, 2, 3] if divide is grid_windows else [0, 0, 0, 0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_best_of_windows(seed: int, ties: bool) -> None:
    """Windows of all sizes, some exhausted before the others, tokens in no window, tokens not to be chosen."""
    noise = torch.Generator().manual_seed(seed)
    windows = torch.randint(-1, 6, (3, 40), generator=noise)
    scores = exact_vectors(120, 3, seed, 1).view(3, 40) if ties else torch.rand(3, 40, generator=noise)
    tokens = torch.rand(3, 40, generator=noise) < torch.tensor([[0.9], [0.4], [1.0]])
    for counts in ([0, 1, 6], [7, 3, 13], [23, 5, 40], [1, int(tokens[1].sum()), 31]):
        actual = best_of_windows(scores, windows, tokens, torch.tensor(counts))
        for row, count in enumerate(counts):
            groups: dict[Place, list[int]] = {}
            for token in tokens[row].nonzero()[:, 0].tolist():
                groups.setdefault((0, 0, int(windows[row, token])), []).append(token)
            spare = groups.pop((0, 0, -1), [])
            expected = sorted(best_local(scores[row].double().tolist(), groups, count, spare))
            assert actual[row].nonzero()[:, 0].tolist() == expected


def test_windows_get_equally_many() -> None:
    """Attention all in one corner: the local half is spread all the same."""
    grid = torch.tensor([[[0, r, c] for r in range(24) for c in range(24)]])
    valid = torch.ones(1, 576, dtype=torch.bool)
    windows = grid_windows(grid, valid, 4)
    scores = torch.arange(576, 0, -1).float()[None]
    actual = best_of_windows(scores, windows, valid, torch.tensor([48]))
    assert windows[actual].bincount().tolist() == [3] * 16


def test_a_remainder_is_taken_from_the_windows_with_low_scores() -> None:
    """5 of 3 windows: at most two each, and the window with the lowest scores gives one."""
    windows = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2]])
    scores = torch.tensor([[9.0, 8, 7, 1, 2, 3, 6, 5, 4]])
    actual = best_of_windows(scores, windows, torch.ones_like(windows).bool(), torch.tensor([5]))
    assert actual[0].nonzero()[:, 0].tolist() == [0, 1, 5, 6, 7]


def test_the_local_scan_goes_first() -> None:
    """Token 0 is best in both layers: it is local, and the global scan takes the next best of the deep layer.

    The other way round token 0 would be global and the local scan would take token 1 of the same window.
    """
    shallow = torch.tensor([[9.0, 8, 1, 2]])
    deep = torch.tensor([[9.0, 1, 2, 8]])
    grid = torch.tensor([[[0, 0, column] for column in range(4)]])
    tower = {
        number: TowerTensors(attention=values, received=values, key=torch.ones(1, 4, 1), features=torch.ones(1, 4, 1))
        for number, values in ((0, shallow), (1, deep))
    }
    context = make_context(torch.eye(4)[None], keep=2, tower=tower, grid=grid)
    for fields in ({"windows": 1}, {"window_size": 4}):
        selection = VScan(local_layer=0, layer=1, **fields).select(context)
        assert selection.keep.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("divide", [grid_windows, sized_windows])
def test_nothing_waits_for_the_device(divide: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """The meta device has no values: whatever asks for one raises."""
    grid, valid = torch.empty(2, 9, 3, dtype=torch.long, device="meta"), torch.ones(2, 9, device="meta").bool()
    windows = divide(grid, valid, 4)
    counts = torch.ones(2, dtype=torch.long, device="meta")
    assert best_of_windows(torch.empty(2, 9, device="meta"), windows, valid, counts).shape == (2, 9)


@pytest.mark.parametrize("size", [2, 3])
def test_windows_of_a_size_in_the_engine(size: int) -> None:
    """4 x 4 tokens: 2 x 2 windows of 2 x 2 tokens, and one window of all where 3 x 3 fit only once."""
    recording = record("llava", "multi", batch=2)
    how = {**method([8], [0]), "pruner": {"name": "vscan", "local_layer": 0, "layer": -1, "window_size": size}}
    shallow, deep = (attention(recording, "llava", number) for number in (0, -1))
    kept = recording.kept(how)
    for sample, images in enumerate(recording.image_positions):
        expected: list[int] = []
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, 8), strict=True)):
            own = literal_keep(shallow[sample][number], deep[sample][number], 4, count, 0.5, 4 // size)
            expected += [image[i] for i in own]
        assert kept[sample] == sorted(expected)


def test_towers_that_cannot_serve_are_refused() -> None:
    made = tp.load_method("vscan")
    with (
        pytest.raises(tp.errors.LayerError, match="layer 5 of a vision tower of 2 layers"),
        tp.apply(record("llava").model, made),
    ):
        pass
    with (
        pytest.raises(tp.errors.UnsupportedModelError, match="vision tower"),
        tp.apply(record("aya_vision").model, made),
    ):
        pass


def test_published_defaults() -> None:
    """96 of LLaVA-1.5's 576 tokens before the language model, 32 from its middle on: 64 on average."""
    made = tp.load_method("vscan")
    scan = VScan(local=0.5, windows=4, window_size=None, local_layer=5, layer=-2)
    assert made.pruner == Stages(pruners=(VScan(), TopK(scorer=FastV(at="entering"))))
    assert VScan() == scan
    for count, middle in ((32, 16), (28, 14), (40, 20)):
        layers = made.layers.select(SelectorContext("llava", count)).layers
        assert layers == (0, middle)
        assert made.budget.keep(576, Schedule(layers, count)) == (96, 32)
