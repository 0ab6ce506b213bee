"""The check by deletion and insertion: the next step after the map's highest places are taken away, or given back."""

import xarray as xr

from ...evaluation.games import GAMES, games
from ...evaluation.metrics import Metric
from ..pictures import MethodMaps, RecordedPicture, shared_encoder
from .registry import Measured, check

_SOURCE = "Petsiuk, Das, Saenko 2018; Park, Ju, Lee 2024 measure distances instead of scores"


def gains_over_random(scores: xr.DataArray) -> Measured:
    """Return how much better each method is in each game than the random map of the same scene; above 0 is better."""
    gains = {}
    for name, game in GAMES.items():
        areas = scores.sel(measure=name, drop=True)
        sign = 1 if game.higher_is_better else -1
        gains[f"{name} gain"] = sign * (areas - areas.sel(attributor="random", drop=True)) + 0.0  # no negative zeros
    return gains


@check(
    "games",
    needs="encoder",
    derive=gains_over_random,
    short=["deletion gain", "insertion gain"],
    measures=[
        Metric(
            "deletion gain",
            "deletion, above random",
            "games",
            low=-0.5,
            high=0.5,
            higher_is_better=True,
            source=_SOURCE,
            chance=0.0,
            text="How much more the next step changes when the map’s highest places are taken away first, than at "
            "random.",
        ),
        Metric(
            "insertion gain",
            "insertion, above random",
            "games",
            low=-0.5,
            high=0.5,
            higher_is_better=True,
            source=_SOURCE,
            chance=0.0,
            text="How much faster the next step comes back when these places are given back first, than at random.",
        ),
        Metric("deletion", "deletion, area", "games", 0, 1, True, _SOURCE, text="Of distances: higher is better."),
        Metric("insertion", "insertion, area", "games", 0, 1, False, _SOURCE, text="Of distances: LOWER is better."),
    ],
)
def check_games(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Play both games with the maps."""
    if picture.settings.encoder is None:
        return {}
    areas = games(picture.trace, maps.saliency, shared_encoder(picture.settings.encoder)).auc
    return {game: areas.sel(game=game) for game in GAMES}
