"""The check by deletion and insertion: the next step after the map's highest places are taken away, or given back."""

import xarray as xr

from ...evaluation.games import GAMES, games
from ..pictures import MethodMaps, RecordedPicture, shared_encoder
from .registry import CHANGE, Measure, Measured, check


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
    question=CHANGE,
    needs="encoder",
    derive=gains_over_random,
    measures=[
        Measure(
            "deletion gain",
            "deletion, above random",
            low=-0.5,
            high=0.5,
            higher_is_better=True,
            chance=0.0,
            text="How much more the next step changes when the map’s highest places are taken away first, than at "
            "random.",
            short=True,
        ),
        Measure(
            "insertion gain",
            "insertion, above random",
            low=-0.5,
            high=0.5,
            higher_is_better=True,
            chance=0.0,
            text="How much faster the next step comes back when these places are given back first, than at random.",
            short=True,
        ),
        Measure(
            "deletion", "deletion, area", low=0, high=1, higher_is_better=True, text="Of distances: higher is better."
        ),
        Measure(
            "insertion", "insertion, area", low=0, high=1, higher_is_better=False, text="Of distances: LOWER is better."
        ),
    ],
)
def check_games(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Play both games with the maps."""
    if picture.settings.encoder is None:
        return {}
    areas = games(picture.trace, maps.saliency, shared_encoder(picture.settings.encoder)).auc
    return {game: areas.sel(game=game) for game in GAMES}
