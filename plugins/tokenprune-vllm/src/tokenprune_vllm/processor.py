"""The processor of a model, with fewer placeholders per picture and video."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing.context import InputProcessingContext

from tokenprune import TokenPruneError
from tokenprune.authoring import Modality, Schedule
from tokenprune_vllm.metrics import Shortened, count
from tokenprune_vllm.note import Note, runs_of
from tokenprune_vllm.servable import check_items
from tokenprune_vllm.settings import KEY, UNPRUNED, EngineSettings, Settings, asked_by, engine_settings, parsed
from tokenprune_vllm.twin import Twin, twin_of

logger = init_logger("vllm.tokenprune")

#: Kinds of items that are pruned, and the field that holds their pixels.
PIXELS: dict[Modality, str] = {"image": "pixel_values", "video": "pixel_values_videos"}

#: A field that vLLM rounds to the model's precision, with which Qwen2.5-VL spaces the frames of a video.
SECONDS = "second_per_grid_ts"

#: What the memory profile asks for; known by its identity: a request may be forbidden to ask for it, and is counted.
PROFILE = {"method": UNPRUNED}


class WholeContext(InputProcessingContext):  # type: ignore[misc]
    """A context in which vLLM's own pruning is off: only the runner is told that positions follow the features."""

    def get_mm_config(self) -> Any:
        """See ``InputProcessingContext``."""
        config = copy(super().get_mm_config())
        config.video_pruning_rate = None
        return config

    def _postprocess_output(self, output: Any) -> Any:
        """See ``InputProcessingContext``. Times are not rounded: positions of frames are made of them."""
        made = super()._postprocess_output(output)
        return {**made, SECONDS: output[SECONDS]} if SECONDS in output else made


class PrunedProcessor:
    """Put in front of a model's processor: the settings of a request enter its hashes, and placeholders are dropped."""

    info: Any

    @property
    def engine(self) -> EngineSettings:
        """The settings of the engine."""
        return engine_settings(getattr(self.info.get_hf_config(), KEY, None))

    @cached_property
    def twin(self) -> Twin:
        """What tokenprune knows of the model; kept, as finding it reads the whole config."""
        return twin_of(self.info.ctx.model_config.hf_config)

    def apply(self, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
        """Process a prompt. What decides over its items is made explicit, so that caches tell settings apart.

        Raises:
            VLLMValidationError: The request asks for a method that cannot be served; the server answers 400.
        """
        given = dict(inputs.hf_processor_mm_kwargs)
        try:
            asked = asked_by(given)
            engine, config = self.engine, self.info.ctx.model_config
            settings = parsed(PROFILE) if asked is PROFILE else engine.of_request(asked)
            method = settings.resolved()
            if method is not None:
                check_method(settings.model_dump_json(), self.twin, config.max_model_len, engine.tower)
                check_items(method, inputs.mm_data_items.get_all_counts())
        except TokenPruneError as error:
            raise VLLMValidationError(f"{KEY}: {error}") from None
        explicit = PROFILE if asked is PROFILE else settings.model_dump(exclude_none=True)
        inputs = replace(inputs, hf_processor_mm_kwargs={**given, KEY: explicit})
        return super().apply(inputs, *arguments, **keywords)  # type: ignore[misc]

    def get_dummy_inputs(self, *arguments: Any, **keywords: Any) -> Any:
        """The inputs with which memory is profiled: unpruned, as a request may keep all tokens."""
        inputs = super().get_dummy_inputs(*arguments, **keywords)  # type: ignore[misc]
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEY: PROFILE})

    def _cached_apply_hf_processor(self, inputs: Any, *arguments: Any) -> Any:
        """Count the visual tokens of a request, also those of pictures that the cache has."""
        result = super()._cached_apply_hf_processor(inputs, *arguments)  # type: ignore[misc]
        asked = inputs.hf_processor_mm_kwargs[KEY]
        items = [updates[0].content for kind in PIXELS for updates in result.prompt_updates.get(kind, ())]
        if items and asked is not PROFILE:
            before, kept = count(items)
            logger.debug("%d of %d visual tokens kept: %s", kept, before, asked)
        return result

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        """The checkpoint's processor does not know our settings."""
        return super()._apply_hf_processor_main(mm_items, without_key(hf_kwargs))  # type: ignore[misc]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        """Nor does what vLLM makes of its output."""
        return super()._get_mm_fields_config(hf_inputs, without_key(hf_processor_mm_kwargs))  # type: ignore[misc]

    def _get_mm_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out: Any) -> Any:
        """Drop placeholders, and give every picture and video its note.

        Raises:
            VLLMValidationError: A video, or a picture of several images, cannot be pruned with the method.
        """
        updates = super()._get_mm_prompt_updates(  # type: ignore[misc]
            mm_items, without_key(hf_processor_mm_kwargs), out
        )
        settings = Settings.model_validate(hf_processor_mm_kwargs[KEY])
        try:
            for kind in PIXELS:
                for item, resolved in zip(out.get(kind, ()), updates.get(kind, ()), strict=True):
                    resolved[:] = [shortened(update, item, kind, settings, self.twin) for update in resolved]
        except TokenPruneError as error:
            raise VLLMValidationError(f"{KEY}: {error}") from None
        return updates


@lru_cache(maxsize=256)
def check_method(settings: str, twin: Twin, longest: int, tower: bool) -> None:
    """Refuse a method that a model cannot be pruned with. Requests repeat few settings.

    Args:
        settings: Settings with a method, as JSON.
        twin: See :meth:`Twin.check`, also for the others.
        longest: Tokens of a prompt and its answer at most.
        tower: Whether methods may read the vision tower.

    Raises:
        TokenPruneError: It cannot.
    """
    method = Settings.model_validate_json(settings).resolved()
    if method is not None:
        twin.check(method, longest, tower)


def without_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments without our settings."""
    return {name: value for name, value in values.items() if name != KEY}


def shortened(update: Any, item: Any, kind: Modality, settings: Settings, twin: Twin) -> Any:
    """The placeholders of a picture or video without those of the tokens that are dropped.

    The last placeholders are dropped, as all are equal. Which token a placeholder stands for is known when the vision
    tower has run; see :mod:`tokenprune_vllm.positions`. Where text stands between the frames of a video, it is not
    known before how many placeholders stand before it: then placeholders stand for the text, too, and the model embeds
    both in their order.

    Raises:
        TokenPruneError: See :meth:`tokenprune_vllm.twin.Twin.check_item`.
    """
    full, is_embed = update.content.full, update.content.is_embed
    mask = torch.ones(len(full), dtype=torch.bool) if is_embed is None else is_embed(full)
    method = settings.resolved()
    runs, end = runs_of(full, mask)
    tokens = int(mask.sum())
    kept = tokens if method is None else method.budget.keep(tokens, Schedule((0,), 1))[-1]
    seed = 0 if method is None else seed_of(item[PIXELS[kind]].data)
    note = Note(settings.model_dump_json(), kind, runs, end, kept, seed)
    if method is not None and kept < tokens and (kind == "video" or len(runs) > 1):
        call = {name: element.data[None] for name, element in item.items() if isinstance(element.data, torch.Tensor)}
        twin.check_item(method, kept, {**call, "input_ids": note.ids(twin.token(kind))[None]})
    item[KEY] = MultiModalFieldElem(data=note.written(), field=MultiModalBatchedField(keep_on_cpu=True))
    if len(runs) > 1:
        left, is_embed = [twin.token(kind)] * note.rows, None
    else:
        stays = (~mask | (mask.cumsum(0) <= kept)).tolist()
        left = [token for token, stay in zip(full, stays, strict=True) if stay]
    name = settings.method if isinstance(settings.method, str) else settings.method.get("label") or "definition"
    return update.with_content(Shortened(left, is_embed, method=name, tokens=tokens, kept=kept))


def seed_of(pixels: Any) -> int:
    """A number made of an item's pixels: the same for the same picture or video, in every prompt and process."""
    parts = pixels if isinstance(pixels, list | tuple) else [pixels]
    seed = 0
    for part in parts:
        seed = zlib.crc32(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(), seed)
    return seed


def pruned_processor(factory: Any, text_of_video: Callable[[Any], int]) -> Any:
    """Make the processor of a model from the one that vLLM registered for its parent.

    Args:
        factory: ``factory(info, dummy_inputs, ...)`` makes the parent's processor; a class, or a function that chooses.
        text_of_video: Gives the most tokens of text that are embedded with a video, from ``info``.
    """

    def build(info: Any, dummy_inputs: Any, **more: Any) -> Any:
        info.ctx = WholeContext(info.ctx.model_config, info.ctx.tokenizer)
        info.get_mm_max_tokens_per_item = partial(_most_tokens, info, info.get_mm_max_tokens_per_item, text_of_video)
        made = type(factory(info, dummy_inputs, **more))
        return type(f"Pruned{made.__name__}", (PrunedProcessor, made), {})(info, dummy_inputs, **more)

    return build


def _most_tokens(
    info: Any, own: Callable[[int, Any], Any], text_of_video: Callable[[Any], int], seq_len: int, mm_counts: Any
) -> Any:
    """The most tokens of an item of each kind; None where vLLM finds out with a dummy item."""
    most = own(seq_len, mm_counts)
    if most is None or "video" not in most:
        return most
    return {**most, "video": most["video"] + text_of_video(info)}
