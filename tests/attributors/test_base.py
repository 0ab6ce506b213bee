"""What all attributors share: results with dims of their own."""

from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr

from denoscope.attributors.base import Attributor
from denoscope.errors import DenoscopeError, Interrupted


@dataclass(frozen=True)
class Named(Attributor):
    """A map for each of two words, worth the step's index and the word's; fails at a step if told to."""

    fails_at: int | None = None

    def explain(self, step, advance):
        if step.index == self.fails_at:
            raise DenoscopeError("broken.")
        ones = np.ones(step.sample.shape[-2:], np.float32)
        words = xr.DataArray(
            step.index + np.arange(2)[:, None, None] * 10 * ones,
            {"token": [1, 4], "word": ("token", ["red", "circle"])},
            ("token", "y", "x"),
        )
        return {"saliency": ones * step.index, "word_saliency": words, "norm": float(step.index)}


def test_results_bring_dims_and_coordinates_of_their_own(trace):
    result = Named()(trace, [0, 3])
    assert result.saliency.dims == ("step", "y", "x") and result.norm.dims == ("step",)
    assert result.word_saliency.dims == ("step", "token", "y", "x")
    assert result.token.values.tolist() == [1, 4] and result.word.values.tolist() == ["red", "circle"]
    assert result.timestep.values.tolist() == [trace[0].timestep, trace[3].timestep]
    circle = result.word_saliency.sel(step=3, token=4)
    assert (circle == 13).all() and circle.word == "circle" and circle.timestep == trace[3].timestep


def test_what_was_finished_keeps_its_names(trace):
    with pytest.raises(Interrupted) as stop:
        Named(fails_at=2)(trace)
    assert stop.value.partial.word_saliency.sizes == {"step": 2, "token": 2, "y": 8, "x": 8}


def test_labels_that_change_from_step_to_step_are_not_lined_up_silently(trace):
    class Changing(Named):
        def explain(self, step, advance):
            found = super().explain(step, advance)
            return {**found, "word_saliency": found["word_saliency"].assign_coords(token=[step.index, 9])}

    with pytest.raises(ValueError, match="token"):
        Changing()(trace, [0, 1])
