"""The entropy profile of an experiment's model, with the verdicts on the experiment's methods."""

from dataclasses import dataclass

from tokenprune.config import Method
from tokenprune.errors import ConfigError
from tokenprune.experiment.choosing import calibration
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.run import verify_methods
from tokenprune.selectors.base import LayerChoice
from tokenprune.selectors.entropy_profile import EntropyProfile, detect_collapse
from tokenprune.selectors.path_drop import find_path_drop
from tokenprune.selectors.plateau import find_plateau
from tokenprune.selectors.verdict import Verdict


@dataclass(frozen=True)
class ProfiledModel:
    """Measurements on the calibration pictures of an experiment.

    Attributes:
        profile: The entropy curves, and the verdicts.
        choices: The choices of the selectors that verify, by their series' keys.
        verdicts: The verdicts by the series' key. Where none was reached, the choice says why.
    """

    profile: EntropyProfile
    choices: dict[str, LayerChoice]
    verdicts: dict[str, Verdict]

    @property
    def sentences(self) -> list[str]:
        """The findings of both rules in the decoder's curves, and where the entropy falls most on the whole path."""
        rules = [detect_collapse(self.profile).sentence, find_plateau(self.profile).sentence]
        return [*rules, find_path_drop(self.profile).sentence]

    @property
    def reasons(self) -> dict[str, str]:
        """The choice of every selector that verifies, and why: a sentence by the series' key."""
        return {key: f"{key}: {choice.reason}" for key, choice in self.choices.items()}


def profile_model(config: ExperimentConfig) -> ProfiledModel:
    """Measure the entropy curves of an experiment's model, and verify the methods whose selector does so.

    Every method is verified once per budget, on the experiment's calibration pictures. Neither the user's cache nor the
    profile files that the selectors name are read.

    Raises:
        ConfigError: The experiment has no calibration pictures.
    """
    loaded = config.model.load()
    inputs = calibration(config, loaded)
    if not inputs:
        raise ConfigError("this experiment has no calibration pictures", "set calibration to 1 or more")
    methods = {item.key: _unprofiled(item.method) for item in config.series() if item.method is not None}
    profile, choices = verify_methods(loaded.model, methods, inputs)
    found = {key: profile.verdict(methods[key].model_dump(mode="json", exclude={"label"})) for key in choices}
    return ProfiledModel(profile, choices, {key: verdict for key, verdict in found.items() if verdict is not None})


def _unprofiled(method: Method) -> Method:
    """The method without the profile file of its selector, which may be the one that is to be written."""
    if "profile_file" not in type(method.layers).model_fields:
        return method
    return method.model_copy(update={"layers": method.layers.model_copy(update={"profile_file": None})})
