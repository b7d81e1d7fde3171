"""Everything that writers of components need: base classes, contexts, annotations, errors, and contexts for tests.

A scorer, pruner, layer selector, budget, adapter, metric, task, model, executor or evaluation harness imports from here
and from :mod:`tokenprune` alone. Other modules may move from one release to the next; what stands here does not move
without an entry in the changelog.
"""

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.decoder_stack import DecoderStack
from tokenprune.adapters.downsampling import Downsampling
from tokenprune.adapters.grids import lattice
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.placements import Frames, Whole
from tokenprune.adapters.projections import Projection
from tokenprune.adapters.towers import TowerSite, find_tower, image_batch_site, packed_site, pixtral_site
from tokenprune.adapters.views import Placement
from tokenprune.budgets.base import Budget, Schedule
from tokenprune.core.component import Component, FromRegistry
from tokenprune.core.plugins import builtin_only, refresh, registry
from tokenprune.core.tunable import Tunable, TunableLayer, tunable_fields, variants
from tokenprune.errors import (
    BudgetError,
    ConfigError,
    LayerError,
    MissingDataError,
    SampleError,
    ScoreError,
    TokenPruneError,
    TokenPruneWarning,
    UnknownNameError,
    UnsupportedFeatureError,
    UnsupportedModelError,
)
from tokenprune.executors.base import Executor, Workers
from tokenprune.executors.service import Message, Setup, packed, serve, unpacked
from tokenprune.harness.answerer import Answer, Answerer, Likelihood
from tokenprune.harness.media import picture_of, video_of
from tokenprune.methods.beyond_features import FEATURE_SIGNALS, needs_beyond_features
from tokenprune.metrics.base import Metric
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.pictures.place import views_of
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.selectors.base import LayerChoice, LayerSelector, SelectorContext, Trial, TrialResult
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.signals.context import PruneContext, TokenGrid
from tokenprune.signals.signal_reader import TowerLayerNumber
from tokenprune.signals.signals import AttentionProbe, Prompt, TowerSignals
from tokenprune.tasks.base import Sample, Task, Video, different_images, first_word, foreground_tokens
from tokenprune.testing import TowerTensors, make_context, tower_signals

__all__ = [
    "FEATURE_SIGNALS",
    "Adapter",
    "Answer",
    "Answerer",
    "AttentionProbe",
    "Budget",
    "BudgetError",
    "Component",
    "ConfigError",
    "DecoderStack",
    "Downsampling",
    "EntropyProfile",
    "Executor",
    "Frames",
    "FromRegistry",
    "ImageVideoAdapter",
    "Item",
    "LayerChoice",
    "LayerError",
    "LayerSelector",
    "LayerSignature",
    "Likelihood",
    "LoadedModel",
    "Message",
    "Metric",
    "MissingDataError",
    "Modality",
    "ModelSpec",
    "Placement",
    "Projection",
    "Prompt",
    "PruneContext",
    "Pruner",
    "Sample",
    "SampleError",
    "Schedule",
    "ScoreError",
    "Scorer",
    "Selection",
    "SelectorContext",
    "Setup",
    "Task",
    "TokenGrid",
    "TokenPruneError",
    "TokenPruneWarning",
    "TowerLayerNumber",
    "TowerSignals",
    "TowerSite",
    "TowerTensors",
    "Trial",
    "TrialResult",
    "Tunable",
    "TunableLayer",
    "UnknownNameError",
    "UnsupportedFeatureError",
    "UnsupportedModelError",
    "Video",
    "VisualLayout",
    "Whole",
    "Workers",
    "builtin_only",
    "different_images",
    "find_tower",
    "first_word",
    "foreground_tokens",
    "image_batch_site",
    "lattice",
    "make_context",
    "needs_beyond_features",
    "packed",
    "packed_site",
    "picture_of",
    "pixtral_site",
    "refresh",
    "registry",
    "serve",
    "tower_signals",
    "tunable_fields",
    "unpacked",
    "variants",
    "video_of",
    "views_of",
]
