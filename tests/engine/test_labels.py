"""Labels in a pruned forward: loss and gradients are those of the masked oracle."""

from __future__ import annotations

import copy
import gc
import pickle
import types
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

import tokenprune as tp
from tests.support import matrix
from tests.support.method_table import prepared
from tests.support.oracle import Stage, dropped, masked
from tests.support.simple import CASE, KEPT, fastv, pair
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import Padding, Variant
from tokenprune.engine.loss import IGNORED
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One way to train."""

    family: str
    padding: Padding
    variant: Variant
    layers: tuple[int, ...]
    attention: str = "sdpa"

    def __str__(self) -> str:
        return "-".join([self.family, self.attention, self.padding, self.variant, *map(str, self.layers)])


WAYS: tuple[tuple[Padding, Variant, tuple[int, ...]], ...] = (
    ("right", "ragged", (1, 2)),
    ("left", "ragged", (2,)),
    ("none", "multi", (0, 2)),
    ("right", "image", (1,)),
)
CELLS = [
    *(Cell("llava", *way) for way in WAYS),
    *(Cell(name, *WAYS[number % 2]) for number, name in enumerate(CORE) if name != "llava"),
    # eager masks hold the minimum of float32
    *(Cell("llava", *way, attention="eager") for way in WAYS[:2]),
    Cell("gemma4_unshared", *WAYS[2]),  # hands its labels on to the layers
    Cell("qwen3_vl_moe", *WAYS[0]),
    Cell("blip_2", *WAYS[2]),  # cuts its logits to the length of the labels
]


def labels_of(inputs: dict[str, Tensor], visual_ids: tuple[int, ...] = CASE.visual_ids) -> Tensor:
    """Every token is a target but padding, visual tokens, and what only padding could predict."""
    labels = inputs["input_ids"].clone()
    real = inputs["attention_mask"].bool()
    labels[torch.isin(labels, torch.tensor(visual_ids)) | ~real] = IGNORED
    labels[:, 1:][~real[:, :-1]] = IGNORED
    return labels


def loss_and_gradients(model: PreTrainedModel, **call: Any) -> tuple[Tensor, Gradients]:
    model.zero_grad()
    loss = model(**call, use_cache=False).loss
    loss.backward()
    return loss.detach(), {n: weight.grad.clone() for n, weight in model.named_parameters() if weight.grad is not None}


def lost_targets(inputs: dict[str, Tensor], labels: Tensor, stages: list[Stage], visual_ids: tuple[int, ...]) -> Tensor:
    """Targets behind a dropped token, bool [batch, seq]."""
    gone = dropped(inputs, stages, visual_ids, layer=10**6)
    return nn.functional.pad(gone, (1, 0))[:, :-1] & (labels != IGNORED)


def assert_close(ours: tuple[Tensor, Gradients], theirs: tuple[Tensor, Gradients], rounding: float) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=rounding, atol=rounding)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=rounding * max(1.0, largest))


@pytest.mark.each("cell.family")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_loss_and_gradients_are_the_oracles(cell: Cell) -> None:
    """In float64, where a family computes in it throughout: the loss itself is float32 in transformers."""
    case = CASES[cell.family]
    single = cell.attention == "eager" or "moe" in cell.family  # torch multiplies experts in float32 at most
    model = case.build(cell.attention, dtype=torch.float32 if single else torch.float64)
    inputs = case.batch(model, 3, cell.padding, seed=1, variant=cell.variant).inputs
    labels = labels_of(inputs, case.visual_ids)
    with tp.apply(model, matrix.method([*cell.layers], matrix.budget_of(cell.variant))) as run:
        ours = loss_and_gradients(model, **inputs, labels=labels)
    stages = matrix.checked_stages(run, inputs, case)
    lost = lost_targets(inputs, labels, stages, case.visual_ids)
    with masked(model, inputs, stages, case.visual_ids):
        theirs = loss_and_gradients(model, **inputs, labels=labels.masked_fill(lost, IGNORED))
    assert_close(ours, theirs, 2e-6)
    assert run.report.targets == (labels[:, 1:] != IGNORED).sum(1).tolist()
    assert run.report.lost_targets == lost.sum(1).tolist()
    assert lost.any(), "nothing was put to the test"


@pytest.mark.parametrize("given", ["num_items_in_batch", "shift_labels", "ignore_index", "tuple"])
def test_what_the_loss_function_reads_is_handed_on(given: str) -> None:
    """The number of targets is used as it is given: of the unpruned batch, over all steps of an accumulation."""
    model, inputs = pair(padding="right")
    labels = labels_of(inputs)
    ignored: dict[str, Any] = {}
    if given == "ignore_index":
        ignored, labels = {"ignore_index": 0}, labels.masked_fill(labels == IGNORED, 0)
    with tp.apply(model, matrix.method([1], matrix.budget_of("image"))) as run:
        if given == "tuple":
            ours = model(**inputs, labels=labels, return_dict=False)[0]
        elif given == "shift_labels":
            shifted = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
            ours = model(**inputs, labels=torch.full_like(labels, IGNORED), shift_labels=shifted).loss
        else:
            more = ignored or ({"num_items_in_batch": torch.tensor(7)} if given == "num_items_in_batch" else {})
            ours = model(**inputs, labels=labels, **more).loss
    stages, plain = matrix.stages_of(run), labels.masked_fill(labels == 0, IGNORED)
    lost = lost_targets(inputs, plain, stages, CASE.visual_ids)
    with masked(model, inputs, stages, CASE.visual_ids):
        theirs = model(**inputs, labels=plain.masked_fill(lost, IGNORED), use_cache=False).loss
    if given == "num_items_in_batch":
        theirs = theirs * ((plain[:, 1:] != IGNORED) & ~lost[:, 1:]).sum() / 7
    torch.testing.assert_close(ours, theirs)
    assert run.report.lost_targets == lost.sum(1).tolist()


def test_rows_that_merge_are_differentiated_through_their_mean() -> None:
    """The mean of dropped tokens that a kept one takes over: a step along the gradient changes the loss as it says."""
    model, inputs = CASE.build(dtype=torch.float64), pair(padding="right")[1]
    inputs["pixel_values"] = inputs["pixel_values"].double()
    labels = labels_of(inputs)
    projector = model.model.multi_modal_projector.linear_2.bias
    with tp.apply(model, prepared("visionzip")):
        _, found = loss_and_gradients(model, **inputs, labels=labels)
        slope = found["model.multi_modal_projector.linear_2.bias"]
        losses = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                projector += step * slope
                losses.append(model(**inputs, labels=labels, use_cache=False).loss.item())
                projector -= step * slope
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(float(slope.square().sum()), rel=0.02)


@pytest.mark.parametrize("prompt", ["text", "keep all"])
def test_an_unpruned_prompt_has_the_loss_of_the_model(prompt: str) -> None:
    model = CASE.build()
    inputs = CASE.inputs(model, variant="text" if prompt == "text" else "image")
    labels = labels_of(inputs)
    expected = loss_and_gradients(model, **inputs, labels=labels)
    with tp.apply(model, fastv(name="keep_ratio", ratio=1.0)) as run:
        assert_close(loss_and_gradients(model, **inputs, labels=labels), expected, 0.0)
    assert run.report.reason is not None
    assert run.report.lost_targets == [0, 0]
    assert run.report.targets == (labels[:, 1:] != IGNORED).sum(1).tolist()


@torch.no_grad()
def test_the_report_says_what_was_lost_only_if_there_were_labels() -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()) as run:
        model(**inputs, labels=labels_of(inputs))
        assert f"targets lost with dropped rows: {run.report.lost_targets} of {run.report.targets}" in str(run.report)
        model(**inputs)
        assert run.report.lost_targets is None
        assert "targets" not in str(run.report)


class TestRefused:
    """Before anything runs."""

    @pytest.fixture
    def model(self) -> PreTrainedModel:
        model = CASE.build()
        model.model.vision_tower.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
        return model

    @staticmethod
    def train(model: PreTrainedModel, **more: Any) -> None:
        inputs = CASE.inputs(model)
        with tp.apply(model, fastv()):
            model(**inputs, labels=labels_of(inputs), **more)

    def test_a_forward_with_a_loss_of_its_own(self, model: PreTrainedModel) -> None:
        """What fused losses put in its place, for example."""

        def forward(self: Any, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            logits = self.lm_head(self.model(input_ids, **kwargs)[0])
            return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

        model.forward = types.MethodType(forward, model)
        with pytest.raises(UnsupportedModelError, match=r"labels: the forward of LlavaForCond.* does not compute its"):
            self.train(model)

    def test_a_loss_function_that_knows_no_rows(self, model: PreTrainedModel) -> None:
        def focal(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
            return logits.sum()

        model.loss_function = focal
        with pytest.raises(UnsupportedFeatureError, match=r"the loss function focal of Llava.* takes no shift_labels"):
            self.train(model)

    def test_logits_of_some_positions(self, model: PreTrainedModel) -> None:
        with pytest.raises(UnsupportedFeatureError, match="labels with logits_to_keep"):
            self.train(model, logits_to_keep=5)

    @pytest.mark.parametrize("where", ["call", "config"])
    def test_a_load_balancing_loss(self, where: str) -> None:
        case = CASES["qwen3_vl_moe"]
        model = case.build()
        inputs = case.inputs(model)
        model.config.text_config.output_router_logits = where == "config"
        asked = {"output_router_logits": True} if where == "call" else {}
        with (
            tp.apply(model, matrix.method([1], matrix.budget_of("image"))),
            pytest.raises(UnsupportedFeatureError, match="labels with output_router_logits"),
        ):
            model(**inputs, labels=labels_of(inputs), **asked)


def test_a_loss_computed_elsewhere_is_an_error() -> None:
    """The name stands in its code, and it is not asked."""
    model, inputs = pair()

    def forward(self: Any, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if labels is None:
            self.loss_function(None, None)
        return self.model(input_ids, **kwargs)

    model.forward = types.MethodType(forward, model)
    with tp.apply(model, fastv()), pytest.raises(UnsupportedModelError, match="does not compute its loss by"):
        model(**inputs, labels=labels_of(inputs))


def test_logits_of_other_rows_are_an_error() -> None:
    model, inputs = pair()

    def forward(self: Any, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids, **kwargs)[0])
        return self.loss_function(logits[:, 1:], labels, vocab_size=logits.shape[-1])

    model.forward = types.MethodType(forward, model)
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match=r"16 rows are left .* logits of 15"):
        model(**inputs, labels=labels_of(inputs))


def test_a_loss_function_of_the_users_gets_the_rows() -> None:
    """Also one that is set inside the block; it is there after every call and after the block."""
    model, inputs = pair()
    labels = labels_of(inputs)
    seen: list[tuple[Tensor, Tensor]] = []

    def mine(logits: Tensor, labels: Tensor, vocab_size: int, shift_labels: Tensor | None = None, **more: Any) -> Any:
        assert shift_labels is not None
        seen.append((labels, shift_labels))
        return 2 * ForCausalLMLoss(logits, labels, vocab_size, shift_labels=shift_labels, **more)

    with tp.apply(model, fastv()) as run:
        expected = model(**inputs, labels=labels).loss
        model.loss_function = mine
        found = model(**inputs, labels=labels).loss
        assert model.loss_function is mine
    assert model.loss_function is mine
    torch.testing.assert_close(found, 2 * expected)
    rows = run.stages[0].rows
    own, following = seen[0]
    assert torch.equal(own, labels.gather(1, rows))
    assert torch.equal(following[:, :-1], labels.gather(1, (rows + 1)[:, :-1]))


def test_nothing_stays_on_the_model_or_its_copies() -> None:
    """A copy that is made while a loss is computed has the loss function of the model."""
    model, inputs = pair()
    labels = labels_of(inputs)
    before, unpruned = set(vars(model)), model(**inputs, labels=labels).loss
    copied: list[Any] = []

    def forward(hidden: Tensor) -> Tensor:
        replaced: Any = model._loss_function
        copied.extend([copy.deepcopy(replaced), pickle.loads(pickle.dumps(replaced)), copy.deepcopy(model)])
        return nn.functional.linear(hidden, model.lm_head.weight)

    model.lm_head.forward = forward
    with tp.apply(model, fastv()):
        assert model(**inputs, labels=labels).loss != unpruned
        assert set(vars(model)) > before
        assert "_loss_function" not in vars(model)
    assert set(vars(model)) == before
    assert copied[:2] == [ForCausalLMLoss, ForCausalLMLoss]
    del copied[2].lm_head.forward
    assert torch.equal(copied[2](**inputs, labels=labels).loss, unpruned)


def test_a_step_leaves_no_graph_behind() -> None:
    """Not in the records of the run, and not among the steps of generations without a cache."""
    model, inputs = pair()
    graphs: list[weakref.ref[Tensor]] = []
    watch = model.model.language_model.layers[0].register_forward_hook(
        lambda module, args, output: graphs.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
    )
    with tp.apply(model, fastv()):
        for labels in (labels_of(inputs), None):
            output = model(**inputs, labels=labels, use_cache=False)
            output.logits.sum().backward()
            del output
    watch.remove()
    gc.collect()
    assert len(graphs) == 2
    assert all(graph() is None for graph in graphs)


def test_a_step_of_training_is_no_step_of_a_generation() -> None:
    """The second sample is the first one and a token, of the same picture in the same memory."""
    model, inputs = pair(batch=1, padding="none")
    longer = torch.cat([inputs["input_ids"], torch.tensor([[20]])], 1)
    random = matrix.method([1], {"name": "keep_count", "tokens": KEPT})
    with tp.apply(model, random) as run:
        kept = []
        for ids in (inputs["input_ids"], longer):
            call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": inputs["pixel_values"]}
            model(**call, labels=ids, use_cache=False)
            kept.append(run.stages[0].kept)
    assert not torch.equal(*kept)
