"""Packed samples and clips: pipelines whose prediction depends on one known region, in several orders of axes.

The same network in another order is an oracle: the maps have to be the same."""

from dataclasses import dataclass, replace
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from small import refusal

import denoscope
from denoscope import DFRise, GradientShap, IntegratedGradients, Lime, Occlusion
from denoscope.attributors.masks import BalancedMasks, GridMasks, PixelMasks
from denoscope.evaluation import attacks, auroc, contrast_map, games, infidelities, localisation, resampling
from denoscope.evaluation.baselines import BASELINES, Baseline
from denoscope.evaluation.stability import noise_agreement
from denoscope.evaluation.stages import stages
from denoscope.targets import ClassScore, Closeness, FeatureCloseness, Similarity, Target
from denoscope.timing.commitment import Clones, PromptSwitch, UTurn
from denoscope.vision.clips import averaged_to, by_frame, middle_frame
from denoscope.vision.frames import frames_of
from denoscope.vision.similarity import LocalMoments, structure

HEIGHT, WIDTH, FRAMES, CHANNELS, PATCH = 8, 12, 3, 6, 4
SHAPES = {"picture": (HEIGHT, WIDTH), "clip": (FRAMES, HEIGHT, WIDTH)}
ROWS, COLUMNS, FRAME = slice(1, 3), slice(7, 11), 1
"""The region that the prediction depends on; of a clip, in one frame."""


@dataclass(frozen=True)
class Form:
    """An order of a sample's axes: from maps (n, channels, [frames,] h, w) and back."""

    kind: str
    pack: object
    unpack: object


def packed(kind):
    """Positions row by row, channels last."""
    return Form(
        kind,
        lambda maps: maps.flatten(2).mT.contiguous(),
        lambda samples: samples.mT.reshape(-1, CHANNELS, *SHAPES[kind]),
    )


def column_by_column():
    """Packed as no pipeline does: column by column."""
    return Form(
        "picture",
        lambda maps: maps.mT.flatten(2).mT.contiguous(),
        lambda samples: samples.mT.reshape(-1, CHANNELS, WIDTH, HEIGHT).mT,
    )


FORMS = {
    "picture": Form("picture", lambda maps: maps, lambda samples: samples),
    "packed picture": packed("picture"),
    "channels last": Form("picture", lambda maps: maps.movedim(1, -1), lambda samples: samples.movedim(-1, 1)),
    "clip": Form("clip", lambda maps: maps, lambda samples: samples),
    "packed clip": packed("clip"),
    "frames first": Form("clip", lambda maps: maps.movedim(2, 1), lambda samples: samples.movedim(1, 2)),
    "column by column": column_by_column(),
}
TWINS = [("packed picture", "picture"), ("channels last", "picture"), ("packed clip", "clip"), ("frames first", "clip")]
FOUND = ["packed picture", "clip", "packed clip", "frames first"]


def region(kind):
    """The mask of the region that the prediction depends on."""
    mask = np.zeros(SHAPES[kind], bool)
    mask[(*([FRAME] if kind == "clip" else []), ROWS, COLUMNS)] = True
    return mask


class RegionDenoiser(ModelMixin, ConfigMixin):
    """A flow whose clean prediction is an isometry of the region's values, spread over the whole picture."""

    @register_to_config
    def __init__(self, form="picture"):
        super().__init__()
        self.form = FORMS[form]
        self.inside = torch.from_numpy(region(self.form.kind))
        inputs, outputs = CHANNELS * int(self.inside.sum()), CHANNELS * self.inside.numel()
        spread, _ = torch.linalg.qr(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)))
        self.spread = torch.nn.Parameter(2 * spread)

    def forward(self, hidden_states, timestep):
        x = self.form.unpack(hidden_states)
        clean = (x[:, :, self.inside].flatten(1) @ self.spread.T).reshape(x.shape)
        sigma = (timestep / 1000).reshape(-1, *[1] * (x.ndim - 1))
        return self.form.pack((x - clean) / sigma)


class LinearDecoder(ModelMixin, ConfigMixin):
    """Three colours of each position, a square of pixels large."""

    @register_to_config
    def __init__(self):
        super().__init__()
        mixing = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(1))
        self.mixing = torch.nn.Parameter(0.2 * mixing)

    def decode(self, z):
        colours = torch.einsum("kc,nc...->nk...", self.mixing, z)
        return colours.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)


@dataclass
class Pictures(BaseOutput):
    images: object


@dataclass
class Clips(BaseOutput):
    frames: object


class RegionPipeline(diffusers.DiffusionPipeline):
    """A pipeline in diffusers' manner: noise is drawn and packed, denoised, unpacked and decoded."""

    def __init__(self, transformer, vae, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)

    def prepare_latents(self, count, generator):
        form = self.transformer.form
        return form.pack(torch.randn((count, CHANNELS, *SHAPES[form.kind]), generator=generator))

    @torch.no_grad()
    def __call__(self, num_inference_steps=4, num_images_per_prompt=1, generator=None, output_type="np"):
        latents = self.prepare_latents(num_images_per_prompt, generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            prediction = self.transformer(latents, t.expand(len(latents)))
            latents = self.scheduler.step(prediction, t, latents, return_dict=False)[0]
        if output_type == "latent":
            return Pictures(latents)
        form = self.transformer.form
        values = (self.vae.decode(form.unpack(latents)) / 2 + 0.5).clamp(0, 1)
        if form.kind == "clip":
            values = values.movedim(2, 1)  # frames before channels, as diffusers has them
        values = values if output_type == "pt" else values.movedim(-3, -1).numpy()
        return Pictures(values) if form.kind == "picture" else Clips(values)


@cache
def trace_of(form, seed=3):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = RegionPipeline(RegionDenoiser(form).eval(), LinearDecoder().eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return denoscope.load(pipeline).trace(seed=seed, num_inference_steps=4)


@dataclass(frozen=True)
class Brightness(Target):
    """A differentiable score of one's own: minus the squared change of the decoded clean picture, one number."""

    def at(self, step):
        unperturbed = step.clean().detach()
        return lambda maps: -(step.clean(step.as_samples(maps)) - unperturbed).square().flatten(1).sum(dim=1)


ONE_BY_ONE = {"picture": (CHANNELS, 1, 1), "clip": (CHANNELS, 1, 1, 1)}


# Ground truth.


def found(maps, form):
    """Assert that maps are highest in the region, at each step, and in its frame."""
    kind = FORMS[form].kind
    dims = ("step", "y", "x") if kind == "picture" else ("step", "frame", "y", "x")
    assert maps.saliency.dims == dims and maps.attrs["engine"] == "direct"
    assert maps.x.values.tolist() == [PATCH * (i + 0.5) for i in range(WIDTH)]
    assert maps.y.values.tolist() == [PATCH * (i + 0.5) for i in range(HEIGHT)]
    if kind == "clip":
        assert maps.frame.values.tolist() == list(range(FRAMES))
        assert (maps.saliency.max(("y", "x")).argmax("frame") == FRAME).all()
    scores = [auroc(saliency, region(kind)) for saliency in maps.saliency.values]
    assert min(scores) >= 0.99, scores
    assert localisation(maps.saliency, region(kind)).auroc.values.tolist() == scores


@pytest.mark.parametrize("form", FOUND)
def test_df_rise_finds_the_region(form):
    found(replace(DFRise.contrast(num_masks=1024), masks=BalancedMasks())(trace_of(form), [0, 2]), form)


@pytest.mark.parametrize("form", FOUND)
def test_df_rise_with_coarse_masks_finds_the_region(form):
    maps = replace(DFRise.contrast(num_masks=1024), masks=GridMasks(8))(trace_of(form), [1])
    assert auroc(maps.saliency.values[0], region(FORMS[form].kind)) >= 0.97


@pytest.mark.parametrize("form", FOUND)
@pytest.mark.parametrize("target", [Closeness(), Closeness("image"), Brightness()], ids=["clean", "image", "own"])
def test_occlusion_finds_the_region(form, target):
    window = ONE_BY_ONE[FORMS[form].kind]
    found(Occlusion(target, window, window)(trace_of(form), [0, 3]), form)


@pytest.mark.parametrize("form", FOUND)
def test_integrated_gradients_find_the_region_and_add_up(form):
    trace = trace_of(form)
    maps = IntegratedGradients(Closeness(), n_steps=4)(trace, [0, 3])
    found(maps, form)
    for i in (0, 3):
        score = Closeness().at(trace[i])
        x = trace[i].as_maps(trace[i].sample)
        expected = (score(x) - score(0 * x)).item()
        assert float(maps.saliency.sel(step=i).sum()) == pytest.approx(expected, rel=1e-4)
    outside = maps.saliency.values[:, ~region(FORMS[form].kind)]
    assert np.abs(outside).max() < 1e-6 * maps.saliency.max()


# The same network in another order of axes.


class Judge(torch.nn.Module):
    """A classifier of small pictures."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = torch.nn.Linear(3 * 8 * 8, 2)

    def forward(self, pictures):
        return self.last(pictures.flatten(1))


@cache
def class_score():
    return ClassScore(denoscope.load_classifier(Judge(), labels=["one", "two"], size=8, mean=0.5, std=0.5), "two")


def colours(pictures):
    """Features of pictures: means of quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures, (2, 2)).flatten(1)


METHODS = {
    "contrast": DFRise.contrast(num_masks=40),
    "paper": DFRise.paper(num_masks=40),
    "reference": DFRise.reference(num_masks=40),
    "picture structure": DFRise(num_masks=20, target=Similarity(space="image")),
    "cosine": DFRise(num_masks=20, target=Similarity("cosine", space="output"), masks=PixelMasks(0.3)),
    "features": DFRise(num_masks=20, target=FeatureCloseness(colours)),
    "usual occlusion": Occlusion(Closeness()),
    "integrated gradients": IntegratedGradients(class_score(), n_steps=3),
    "gradient shap": GradientShap(class_score(), n_samples=3),
    "lime": Lime(num_samples=40, max_dist=2.0),
    **{f"baseline {name}": Baseline(map_of) for name, map_of in BASELINES.items()},
}

OCCLUSION = {kind: Occlusion(class_score(), (CHANNELS, *shape[:-2], 4, 4)) for kind, shape in SHAPES.items()}


@pytest.mark.parametrize("form, twin", TWINS)
@pytest.mark.parametrize("name", [*METHODS, "occlusion"])
def test_maps_are_the_same_in_another_order_of_axes(name, form, twin):
    method = OCCLUSION[FORMS[form].kind] if name == "occlusion" else METHODS[name]
    maps, expected = (method(trace_of(each), [0, 2]) for each in (form, twin))
    assert list(maps.data_vars) == list(expected.data_vars) and maps.saliency.dims == expected.saliency.dims
    for variable in maps.data_vars:
        np.testing.assert_allclose(maps[variable], expected[variable], rtol=2e-3, atol=2e-4, err_msg=variable)


@pytest.mark.parametrize("form, twin", TWINS)
def test_measures_are_the_same_in_another_order_of_axes(form, twin):
    traces = [trace_of(form), trace_of(twin)]
    saliency = Baseline(BASELINES["random"])(traces[1], [0, 2]).saliency
    mask = np.zeros((HEIGHT * PATCH, WIDTH * PATCH), bool)
    mask[:8] = True
    distances = {"inside": denoscope.evaluation.WithinMask(mask), "features": denoscope.evaluation.OfFeatures(colours)}
    for measure in (
        lambda trace: games(trace, saliency, colours),
        lambda trace: infidelities(trace, saliency, Closeness(), count=16),
        lambda trace: resampling(trace, saliency, distances),
    ):
        values, expected = (measure(trace) for trace in traces)
        for variable in values.data_vars:
            np.testing.assert_allclose(values[variable], expected[variable], rtol=2e-3, atol=2e-4, err_msg=variable)


@pytest.mark.parametrize("form", ["packed picture", "packed clip"])
def test_attacks_keep_to_the_samples_own_shape(form):
    step = trace_of(form)[1]
    masks = next(GridMasks().stream(step.layout.shape, 0, 16, 16))
    result = attacks(step, contrast_map(step, Closeness(), masks), attack=denoscope.evaluation.Attack(iterations=3))
    assert result.saliency.dims == ("attack", *step.layout.dims) and float(result.map_change[0]) > 0


@pytest.mark.parametrize("form", ["packed picture", "packed clip", "frames first"])
def test_noise_is_added_in_the_samples_own_shape(form):
    agreement = noise_agreement(Baseline(BASELINES["|x_t|"]), trace_of(form), [1], draws=2)
    assert agreement.dims == ("step", "draw") and 0.98 < agreement.min() <= agreement.max() < 1


def test_the_engine_is_named_only_where_one_was_asked():
    trace = trace_of("packed clip")
    assert "engine" not in Baseline(BASELINES["random"])(trace, [0]).attrs
    assert trace[0].asked_engine is None
    assert DFRise(num_masks=8)(trace, [0]).attrs["engine"] == trace[0].asked_engine == "direct"


# A clip's own properties.


def test_a_score_of_a_clip_is_the_mean_of_its_frames():
    step = trace_of("packed clip")[1]
    x = step.as_maps(step.sample)
    classifier = class_score().classifier
    pictures = step.clean(step.sample)[0].movedim(1, 0)
    expected = classifier(classifier.normalise(pictures))[:, 1].mean()
    torch.testing.assert_close(class_score().at(step)(x)[0], expected)


def test_structure_of_a_clip_is_that_of_each_frame():
    step = trace_of("clip")[1]
    x = 0.5 * step.sample
    maps = Similarity(space="output").at(step)(x)
    for frame in range(FRAMES):
        a, b = (LocalMoments.of(values[:, :, frame]) for values in (step.model_output, step.predict(x)))
        torch.testing.assert_close(maps[:, frame], structure(a, b).mean(dim=1))


def test_stages_of_a_clip_are_those_of_each_frame():
    saliency = Baseline(BASELINES["|x_t|"])(trace_of("clip"), [0, 2]).saliency
    picture = np.random.default_rng(0).random((HEIGHT, WIDTH, 3))
    result = stages(saliency, picture, region("picture"))
    assert result.frequency.dims == ("step", "frame")
    alone = stages(saliency.sel(frame=1), picture, region("picture"))
    for name in result.data_vars:
        np.testing.assert_array_equal(result[name].sel(frame=1), alone[name])


def test_segments_of_a_clip_are_the_same_in_every_frame():
    maps = Lime(num_samples=30, max_dist=2.0)(trace_of("clip"), [0])
    assert (maps.segment == maps.segment.isel(frame=0)).all() and (maps.saliency == maps.saliency.isel(frame=0)).all()
    assert maps.segment.max() > 0


@pytest.mark.parametrize("masks", [GridMasks(), GridMasks(4, 0.3), BalancedMasks(), PixelMasks()])
def test_masks_of_clips(masks):
    """Every position is kept half of the time, and frames are not kept together."""
    drawn = np.concatenate(list(masks.stream((3, 6, 5), 0, 512, 100)))
    keep = getattr(masks, "keep", 0.5)
    assert drawn.shape == (512, 3, 6, 5) and drawn.min() >= 0 and drawn.max() <= 1
    assert np.abs(drawn.mean(axis=0) - keep).max() < 0.09
    between = np.corrcoef(drawn[:, 0].ravel(), drawn[:, 2].ravel())[0, 1]
    assert abs(between) < 0.1
    assert np.array_equal(drawn, np.concatenate(list(masks.stream((3, 6, 5), 0, 512, 37))))


def test_grid_masks_blend_along_frames_where_cells_have_several():
    drawn = next(GridMasks(2).stream((8, 4, 4), 0, 256, 256))
    neighbours, apart = (np.corrcoef(drawn[:, 0].ravel(), drawn[:, i].ravel())[0, 1] for i in (1, 7))
    assert neighbours > 0.7 > 0.2 > abs(apart)


def test_windows_of_other_dims_are_refused():
    message = refusal(Occlusion(Closeness(), (CHANNELS, 1, 1)), trace_of("clip"), [0])
    assert "channels, frames, height and width" in message
    message = refusal(Occlusion(Closeness(), None, (CHANNELS, 1, 1, 1)), trace_of("picture"), [0])
    assert "channels, height and width" in message


def test_a_clip_is_averaged_to_the_frames_that_it_was_decoded_from():
    """A causal autoencoder makes one picture of the first frame and four of each other."""
    pictures = torch.arange(9.0)[None, :, None, None].expand(1, 9, 4, 4)
    assert averaged_to(pictures, (3, 2, 2))[0, :, 0, 0].tolist() == [0.0, 2.5, 6.5]
    assert averaged_to(pictures[:, 0], (2, 2)).shape == (1, 2, 2) and averaged_to(pictures, (9, 4, 4)) is pictures
    clip = pictures[:, None].expand(1, 3, 9, 4, 4)
    assert by_frame(lambda each: each.mean(dim=(1, 2, 3)), clip).tolist() == [list(range(9))]
    assert float(middle_frame(clip).mean()) == 4


def reader(picture):
    """The brightness of a picture, (height, width, 3)."""
    assert picture.shape == (HEIGHT * PATCH, WIDTH * PATCH, 3)
    return {"bright": float(picture.mean())}


@pytest.mark.parametrize("form", ["packed picture", "packed clip", "frames first"])
def test_experiments_keep_the_samples_own_shape(form):
    trace, other = trace_of(form), trace_of(form)

    def same(first, second):
        return abs(first - second) < 1e-6

    switched = PromptSwitch(reader, same)(trace, other, [1])
    assert switched.decided.isnull().all()  # nothing is switched between a run and itself
    last = UTurn(reader, lambda a, b: abs(a - b) < 0.5)(trace, [3])
    assert (last.decided == 1).all()
    clones = Clones(reader, same, draws=2)(trace, [3])
    assert clones.decided.item() == 1  # the last step goes to the clean sample without noise


# Refusals.


def test_samples_that_lie_nowhere_on_the_picture_are_refused():
    message = refusal(DFRise(num_masks=8), trace_of("column by column"), [0])
    assert "have no known place on the picture" in message


def test_maps_of_another_form_are_refused():
    clip, picture = trace_of("clip"), trace_of("picture")
    of_clip, of_picture = (Baseline(BASELINES["random"])(trace, [0]).saliency for trace in (clip, picture))
    for measure in (lambda t, m: games(t, m, colours), lambda t, m: infidelities(t, m, Closeness()), resampling):
        assert "frame" in refusal(measure, clip, of_picture) and "dims" in refusal(measure, picture, of_clip)
    assert "same dims" in refusal(localisation, of_clip, region("picture"))
    assert "clip" in refusal(frames_of, clip)


def test_a_network_that_was_changed_since_is_noticed():
    trace = trace_of.__wrapped__("packed picture")
    method = DFRise(num_masks=8)
    method(trace, [1])
    trace.model.denoiser.spread.data = trace.model.denoiser.spread.data * 1.5
    assert "cannot be replayed" in refusal(method, trace, [1], kind=denoscope.errors.ReplayError)
