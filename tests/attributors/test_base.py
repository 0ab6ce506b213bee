"""The seam of all attributors: names and facts, dims and coordinates of results, forms with all fields filled."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from linear import linear_trace
from small import refusal

import denoscope
from denoscope import DFCam, DFRise, Relevance, Words, words_at
from denoscope.attributors.base import (
    METHODS,
    Attributor,
    cell_centres,
    explains_every_step,
    list_methods,
    method,
    needs_of,
    register,
)
from denoscope.attributors.masks import BalancedMasks
from denoscope.errors import DenoscopeError, InputError, Interrupted
from denoscope.evaluation.stability import agreement
from denoscope.recording.traces import Trace
from denoscope.targets import Target

WITHOUT_LABEL = [
    *["concepts", "df-cam", "df-cam-reference", "df-rise", "df-rise-contrast", "df-rise-reference"],
    *["lime", "relevance", "relevance-reference", "words"],
]
OF_LABEL = ["gradient-shap", "integrated-gradients", "occlusion"]


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


# Names and facts.


def test_methods_are_listed_by_what_they_need():
    assert list_methods() == WITHOUT_LABEL
    assert list_methods(needs="label") == OF_LABEL
    assert list_methods(needs="words") == ["relevance", "relevance-reference", "words"]
    assert list_methods(needs="any") == sorted(METHODS) == sorted([*list_methods(), *list_methods(needs="label")])
    assert [name for name in METHODS if explains_every_step(name)] == ["relevance", "relevance-reference"]
    assert needs_of("random") is None and not explains_every_step("random")


def test_a_method_of_a_label_is_refused_without_one():
    message = refusal(method, "occlusion")
    assert "denoscope recognise" in message and "target=ClassScore" in message and "df-rise-contrast" in message
    assert 'Did you mean "df-rise"' in refusal(method, "df-rice")


def test_a_name_may_stand_for_a_class_a_class_method_or_a_function(monkeypatch):
    monkeypatch.setattr("denoscope.attributors.base.METHODS", dict(METHODS))
    register("quick")(lambda: Relevance())
    assert method("quick") == Relevance() and needs_of("quick") is None
    register("quick")(Relevance.reference)
    assert method("quick") == Relevance.reference() and needs_of("quick") == "words"


# Forms.


def test_forms_are_full_values():
    assert DFRise() == DFRise.contrast() == method("df-rise-contrast") and DFCam() == DFCam.paper()
    assert method("df-rise", num_masks=8) == DFRise.paper(8) and Relevance() == Relevance.paper()
    forms = [DFRise.contrast(), DFRise.paper(), DFRise.reference(), DFCam.paper(), DFCam.reference()]
    forms += [Relevance.paper(), Relevance.reference()]
    optional = {"until", "batch_size", "layers"}
    for form in forms:
        values = {name: getattr(form, name) for name in form.__dataclass_fields__}
        assert {name for name, value in values.items() if value is None} <= optional
        assert form.title and form.reading and replace(form) == form
    assert len({form.title for form in forms}) == len({str(form.options()) for form in forms}) == len(forms)
    assert [form.signed for form in forms] == [True] + 6 * [False]


def test_old_ways_of_choosing_a_form_are_not_taken_for_something_else():
    for wrong in (lambda: DFRise(500, "paper"), lambda: DFRise(variant="paper"), lambda: Relevance("reference")):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(InputError, match="layers"):
        DFCam("reference")


def test_results_name_their_form(trace):
    for form, name in ((DFRise.paper(8), "paper"), (DFRise(8), "contrast"), (DFCam.reference(), "reference")):
        result = form(trace, [1])
        assert result.attrs["form"] == name and result.attrs["title"] == form.title
    assert Relevance()(trace, [1]).attrs["form"] == "paper"


# Coordinates.


@dataclass(frozen=True)
class Place(Target):
    """The energy of the samples at some positions."""

    mask: np.ndarray

    def at(self, step):
        inside = torch.from_numpy(self.mask)
        return lambda samples: samples[..., inside].square().sum(dim=(1, 2))


def test_the_highest_cell_lies_in_the_object_by_its_coordinates(stable_diffusion):
    """A score that reads one box of the sample alone; the picture has 32 × 64 pixels, a cell 4 × 4."""
    trace = denoscope.load(stable_diffusion).trace("a circle", seed=0, num_inference_steps=2, height=32, width=64)
    height, width = np.asarray(trace.image).shape[:2]
    mask = np.zeros((8, 16), bool)
    mask[1:3, 10:13] = True  # rows 4 to 12, columns 40 to 52 of 32 × 64 pixels
    maps = DFRise(num_masks=256, target=Place(mask), masks=BalancedMasks(), fill="zero")(trace, [1])
    y, x = np.unravel_index(maps.saliency[0].values.argmax(), (8, 16))
    assert 4 <= float(maps.y[y]) < 12 and 40 <= float(maps.x[x]) < 52
    assert maps.y.units == maps.x.units == "pixel" and (height, width) == (32, 64)
    np.testing.assert_array_equal(maps.y, (np.arange(8) + 0.5) * 4)
    np.testing.assert_array_equal(maps.x, cell_centres(16, 64))
    box = maps.saliency.sel(step=1, y=slice(4, 12), x=slice(40, 52))
    assert box.shape == (2, 3) and float(box.mean()) > float(maps.saliency.sel(step=1).mean())


def test_words_at_agrees_with_the_coordinates(stable_diffusion):
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=0, num_inference_steps=2, height=32, width=64)
    maps = Words()(trace, [1])
    words = words_at(maps, box=(40, 4, 52, 12))
    inside = maps.saliency.sel(step=1, y=slice(4, 12), x=slice(40, 52)).mean(("y", "x"))
    for token in maps.token.values:
        assert float(words["mean"].sel(token=token)) == pytest.approx(float(inside.sel(token=token)), rel=1e-5)


def test_every_kind_of_map_has_the_coordinates_and_keeps_them_on_disk(trace, tmp_path):
    steps_of_words, layers = Words()(trace, [1]), DFCam()(trace, [1])
    assert steps_of_words.saliency.dims == ("step", "token", "y", "x")
    assert layers.layer_saliency.dims == ("step", "layer", "y", "x")
    sides = np.asarray(trace.image).shape
    for maps in (steps_of_words, layers):
        np.testing.assert_array_equal(maps.y, cell_centres(8, sides[0]))
        maps.to_zarr(tmp_path / "maps.zarr", mode="w", zarr_format=2)
        again = xr.open_zarr(tmp_path / "maps.zarr").load()
        xr.testing.assert_identical(again.drop_attrs(deep=False), maps.drop_attrs(deep=False))
        assert again.x.units == "pixel"


def test_frames_have_their_own_pixels():
    target = denoscope.ClassScore(classifier(), "b")
    frames = denoscope.blend(torch.zeros(3, 16, 16), count=3, draws=2)
    maps = denoscope.Occlusion(target)(frames, [1])
    assert maps.saliency.dims == ("step", "draw", "y", "x")
    np.testing.assert_array_equal(maps.y, np.arange(16) + 0.5)


def test_a_run_without_a_picture_is_decoded_for_its_size(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    call = dict(seed=1, num_inference_steps=1, height=32, width=64)
    latent, picture = (model.trace("a circle", output_type=kind, **call) for kind in ("latent", "pil"))
    xr.testing.assert_identical(DFCam()(latent).x, DFCam()(picture).x)
    assert DFCam()(Trace(latent.steps, SimpleNamespace(), latent.call, model)).x[-1] == 62
    arrays = [model.trace("a circle", output_type=kind, **call) for kind in ("np", "pt")]
    assert all(DFCam()(trace).y.identical(DFCam()(picture).y) for trace in arrays)


def test_pixels_of_a_model_without_latents_are_the_cells():
    maps = DFRise(num_masks=8)(linear_trace(), [1])
    np.testing.assert_array_equal(maps.x, np.arange(8) + 0.5)


def test_maps_of_other_grids_are_not_lined_up_silently(trace):
    small, large = DFCam()(trace, [1]).saliency, xr.DataArray(np.ones((1, 16, 16)), dims=("step", "y", "x"))
    large = large.assign_coords(step=[1], y=cell_centres(16, 32), x=cell_centres(16, 32))
    with pytest.raises(ValueError, match="exact"):
        xr.apply_ufunc(agreement, small, large, input_core_dims=[["y", "x"]] * 2, vectorize=True)
    with pytest.raises(InputError, match="cannot be compared"):
        agreement(small[0].values, large[0].values)


# What is stored.


def test_attributes_can_be_stored_as_netcdf(trace):
    results = [
        DFRise(num_masks=8)(trace, [1]),
        Words(special_tokens=True)(trace, [1]),
        Relevance.reference()(trace, [1]),
    ]
    for result in results:
        assert not [name for name, value in result.attrs.items() if isinstance(value, bool)]
    numbers = results[0].drop_attrs(deep=False).assign_attrs(signed=results[0].attrs["signed"])
    assert len(numbers.to_netcdf(engine="scipy")) > 0
    assert results[0].attrs["signed"] == 1 and results[1].attrs["special_tokens"] == 1


# A method as CONTRIBUTING has it.


def example(number: int) -> str:
    """Return one of the Python blocks of CONTRIBUTING."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split("```python\n")[number].split("```")[0]


def test_the_method_of_contributing_is_one_class(trace, monkeypatch):
    monkeypatch.setattr("denoscope.attributors.base.METHODS", dict(METHODS))
    exec(example(1), {})
    assert "gradient" in list_methods()
    maps = method("gradient")(trace, steps=[1, 2])
    assert maps.saliency.dims == ("step", "y", "x") and float(maps.saliency.max()) > 0
    step = trace[1]
    x = (0.9 * step.sample).requires_grad_()
    score = -(step.predict_original(x) - step.pred_original_sample).square().mean()
    (gradient,) = torch.autograd.grad(score, x)
    np.testing.assert_allclose(maps.saliency.sel(step=1), gradient[0].abs().sum(dim=0), rtol=1e-4, atol=1e-9)


def test_explaining_a_step_alone_is_refused_where_the_run_is_needed(trace):
    assert "Relevance()(trace, steps=[1])" in refusal(Relevance().explain, trace[1], print)
    frames = denoscope.blend(torch.zeros(3, 8, 8), 2)
    assert "Give a trace" in refusal(DFRise(num_masks=4), frames) and "Give a trace" in refusal(DFCam(), frames)


@pytest.mark.parametrize("name", list_methods())
def test_inference_mode_of_the_caller_and_other_default_dtypes_change_nothing(trace, name):
    options = {"num_masks": 8} if name.startswith("df-rise") else {"num_samples": 8} if name == "lime" else {}
    options |= {"concepts": ("blue sky",)} if name == "concepts" else {}
    explain = method(name, **options)
    plain = explain(trace, [1])
    with torch.inference_mode():
        inside = explain(trace, [1])
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    try:
        double = explain(trace, [1])
    finally:
        torch.set_default_dtype(torch.float32)
    xr.testing.assert_identical(inside, plain)
    xr.testing.assert_allclose(double, plain, rtol=1e-4)


def classifier():
    """A small classifier of pictures of 16 × 16 pixels in [0, 1]."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    network = torch.nn.Sequential(*layers, torch.nn.Linear(16, 3)).eval()
    return denoscope.load_classifier(network, ["a", "b", "c"], size=16, mean=0.0, std=1.0)
