"""DF-CAM against finite differences, Captum's LayerGradCam and plain loops; guidance; layers; nothing left behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from captum.attr import LayerGradCam
from small import PIPELINES, refusal, stable_diffusion

import denoscope
from denoscope import DFCam
from denoscope.attributors.base import method
from denoscope.attributors.cam import PUBLISHED_LAYERS, combined_of, of_guided_output, responses_of, sum_of_normalised
from denoscope.commands.explain import explain
from denoscope.commands.requests import Request
from denoscope.errors import CaptureError
from denoscope.recording.hooks.mixing import Mixture
from denoscope.recording.hooks.replay import Replay
from denoscope.recording.patterns import layers_of, matching
from denoscope.recording.steps import Step
from denoscope.results.explanations import Explanation

WEIGHT = 4.0
PICTURE = dict(seed=1, num_inference_steps=3, output_type="latent")
PUBLISHED = {
    "down_blocks.0.resnets.0",
    "down_blocks.0.downsamplers.0",
    "down_blocks.1.resnets.0",
    "down_blocks.1.attentions.0",
    "mid_block.resnets.0",
    "mid_block.resnets.1",
    "up_blocks.0.resnets.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.resnets.1",
    "up_blocks.0.attentions.1",
    "up_blocks.0.upsamplers.0",
    "up_blocks.1.resnets.0",
    "up_blocks.1.resnets.1",
}
"""Of the small U-Nets: the middle's attention is not among them."""


@pytest.fixture(scope="module")
def guided():
    """A guided trace in double precision, so that differences are exact."""
    pipeline = stable_diffusion()
    pipeline.unet.double(), pipeline.text_encoder.double(), pipeline.vae.double()
    return denoscope.load(pipeline).trace("a red circle", guidance_scale=WEIGHT, **PICTURE)


@pytest.fixture(scope="module")
def pixels():
    return denoscope.load(PIPELINES["ddpm"]()).trace(seed=1, num_inference_steps=3)


def reweighted(step: Step, weight: float) -> Step:
    """The step as it would be with another guidance."""
    replay = replace(step.replay, mixture=Mixture((1 - weight, weight)))
    return replace(step, direct=replay, model_output=replay(step.sample).detach(), checked=False)


def alone(step: Step, half: int) -> Step:
    """One half of a guided step, as a step without guidance."""
    replay = step.replay.half(half)
    return replace(step, direct=replay, model_output=replay(step.sample).detach(), checked=False)


FORMS = {"paper": DFCam.paper, "reference": DFCam.reference}


def layer_maps(step, form="paper", layers=None):
    return FORMS[form](layers).explain(step, lambda done: None)["layer_saliency"]


def enlarged(values, height, width):
    """Bilinear, with half-pixel centres and the edge carried on, position by position."""
    result = np.empty((height, width))
    for i, j in np.ndindex(height, width):
        at = [np.clip((k + 0.5) * a / b - 0.5, 0, a - 1) for k, a, b in zip((i, j), values.shape, (height, width))]  # noqa: B905
        low = [int(place) for place in at]
        high = [min(place + 1, size - 1) for place, size in zip(low, values.shape, strict=True)]
        rows = [values[row, low[1]] + (at[1] - low[1]) * (values[row, high[1]] - values[row, low[1]]) for row in
                (low[0], high[0])]  # fmt: skip
        result[i, j] = rows[0] + (at[0] - low[0]) * (rows[1] - rows[0])
    return result


def inputs_of(step):
    """What the denoiser is called with: the sample once for each half, and its conditioning."""
    samples = step.replay.single.scale * step.sample.repeat(step.replay.copies, 1, 1, 1)
    kwargs = {name: value for name, value in step.replay.kwargs.items() if name not in ("sample", "return_dict")}
    return samples, step.replay.single.args[1:], kwargs


def captums(step, path):
    """LayerGradCam of the sum of each half's output, (halves, h, w), before ReLU and at the layer's own size."""
    samples, args, kwargs = inputs_of(step)
    total = lambda x: step.replay.denoiser(x, *args, **kwargs, return_dict=False)[0].sum(dim=(1, 2, 3))  # noqa: E731
    found = LayerGradCam(total, step.replay.denoiser.get_submodule(path)).attribute(samples)
    return (found[0] if isinstance(found, tuple) else found)[:, 0].detach().double().numpy()


@pytest.mark.parametrize("layer", ["down_blocks.0.downsamplers.0", "mid_block.resnets.0", "up_blocks.0.attentions.1"])
def test_gradients_are_finite_differences_of_the_output_sum(guided, layer):
    """∂(Σ guided output) / ∂A at some cells of each half, by pushing the layer's output there up and down."""
    step, h = guided[1], 1e-4
    heard = responses_of(step, (layer,))[layer]
    module = step.replay.denoiser.get_submodule(layer)

    def pushed(cell, by):
        def push(module, args, output):
            (output[0] if isinstance(output, tuple) else output)[cell] += by
            return output

        handle = module.register_forward_hook(push)
        try:
            with torch.no_grad():
                return float(step.predict(step.sample).sum())
        finally:
            handle.remove()

    step.predict(step.sample)
    for cell in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 5, 1, 2), (1, 5, 1, 2), (1, 31, 3, 3)]:
        cell = (cell[0], cell[1] % heard.gradient.shape[1], *cell[2:])
        slope = (pushed(cell, h) - pushed(cell, -h)) / (2 * h)
        assert float((heard.shares * heard.gradient)[cell]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["guided", "pixels"])
def test_every_published_layer_is_captums(name, request):
    """Oracle: the paper's map is u + w (c − u) of the two halves' own maps, each of which Captum gives."""
    step = request.getfixturevalue(name)[1]
    maps = layer_maps(step)
    assert set(maps.layer.values) == PUBLISHED
    for path in maps.layer.values:
        halves = captums(step, path)
        raw = halves[0] if len(halves) == 1 else halves[0] + WEIGHT * (halves[1] - halves[0])
        expected = enlarged(np.maximum(raw, 0), *step.sample.shape[-2:])
        assert np.allclose(maps.sel(layer=path), expected, rtol=1e-3, atol=1e-5 * np.abs(raw).max()), path


def test_reference_is_the_published_arithmetic(guided):
    """Gradient and activation guided each on its own, by plain hooks, one channel and one position at a time."""
    step, path = guided[1], "up_blocks.0.resnets.1"
    samples, args, kwargs = inputs_of(step)
    kept = []
    handle = step.replay.denoiser.get_submodule(path).register_forward_hook(lambda m, a, out: kept.append(out))
    output = step.replay.denoiser(samples, *args, **kwargs, return_dict=False)[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(output.sum(), kept[0])
    a, g = ((part[0] + WEIGHT * (part[1] - part[0])).detach().numpy() for part in (kept[0], gradient))
    raw = np.zeros(a.shape[1:])
    for k in range(len(a)):
        raw += sum(g[k].ravel()) / g[k].size * a[k]
    expected = enlarged(np.maximum(raw, 0), *step.sample.shape[-2:])
    assert np.allclose(layer_maps(step, "reference", (path,)).sel(layer=path), expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(layer_maps(step, "paper", (path,)).sel(layer=path), expected, rtol=1e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight, half", [(0.0, 0), (1.0, 1)], ids=["w = 0", "w = 1"])
def test_guidance_of_0_and_1_is_one_half_alone(guided, form, weight, half):
    ours, theirs = layer_maps(reweighted(guided[1], weight), form), layer_maps(alone(guided[1], half), form)
    assert float(theirs.max()) > 0
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_papers_map_is_guided_as_the_prediction_is(guided):
    """Before ReLU, the map at w is u + w (c − u) of the maps at 0 and at 1."""
    raw = {
        w: {
            path: of_guided_output(heard)
            for path, heard in responses_of(reweighted(guided[1], w), PUBLISHED_LAYERS).items()
        }
        for w in (0.0, 1.0, 7.5)
    }
    for path, guided_map in raw[7.5].items():
        u, c = raw[0.0][path], raw[1.0][path]
        assert torch.allclose(guided_map, u + 7.5 * (c - u), rtol=1e-4, atol=1e-5 * float(guided_map.abs().max()))


def test_saliency_is_the_sum_of_layers_from_0_to_1(guided):
    result = DFCam()(guided, [0, 2])
    assert result.layer_saliency.dims == ("step", "layer", "y", "x") and float(result.layer_saliency.min()) == 0
    for step in result.step.values:
        total = np.zeros((8, 8))
        for values in result.layer_saliency.sel(step=step).values:
            total += (values - values.min()) / (values.max() - values.min()) if np.ptp(values) else 0
        assert np.allclose(result.saliency.sel(step=step), total, atol=1e-5)
    flat = np.full((2, 3, 3), 4.0)
    flat[1, 0, 0] = 6
    assert sum_of_normalised(flat).sum() == 1


def test_layers_are_those_of_the_whole_alone_and_in_running_order(guided):
    whole = layer_maps(guided[0])
    order = list(whole.layer.values)
    assert (
        order.index("down_blocks.1.resnets.0")
        < order.index("down_blocks.1.attentions.0")
        < order.index("mid_block.resnets.0")
    )
    some = layer_maps(guided[0], layers=("up_blocks.*.resnets.*", "mid_block.attentions.0", "!**.resnets.0"))
    assert list(some.layer.values) == ["mid_block.attentions.0", "up_blocks.0.resnets.1", "up_blocks.1.resnets.1"]
    assert np.array_equal(some.sel(layer="up_blocks.0.resnets.1"), whole.sel(layer="up_blocks.0.resnets.1"))


def test_positions_are_laid_out_on_a_grid_that_is_not_square(stable_diffusion):
    """A transformer block's positions are rows of the picture: against its neighbour in maps, by Captum."""
    step = denoscope.load(stable_diffusion).trace("a circle", height=40, width=64, guidance_scale=1, **PICTURE)[1]
    path = "down_blocks.1.attentions.0.transformer_blocks.0"
    maps = layer_maps(step, layers=(path,)).sel(layer=path)
    samples, args, kwargs = inputs_of(step)
    kept = []
    handle = step.replay.denoiser.get_submodule(path).register_forward_hook(lambda m, a, out: kept.append(out))
    output = step.replay.denoiser(samples, *args, **kwargs, return_dict=False)[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(output.sum(), kept[0])
    raw = (gradient.mean(dim=1, keepdim=True) * kept[0]).sum(dim=2).detach().numpy().reshape(5, 8)
    assert maps.shape == (10, 16)
    assert np.allclose(maps, enlarged(np.maximum(raw, 0), 10, 16), rtol=1e-3, atol=1e-5)


def test_one_denoiser_call_a_step_and_no_gradients_of_weights(stable_diffusion):
    unet, calls = stable_diffusion.unet, []
    trace = denoscope.load(stable_diffusion).trace("a red circle", **PICTURE)
    assert {step.engine for step in trace} == {"direct"}  # checked here, so that no call of a check is counted
    learning = lambda *heard: calls.append(any(weights.requires_grad for weights in unet.parameters()))  # noqa: E731
    handle = unet.register_forward_hook(learning)
    DFCam()(trace)
    handle.remove()
    assert calls == [False] * len(trace)


def test_nothing_is_left_behind(stable_diffusion):
    trace = denoscope.load(stable_diffusion).trace("a red circle", **PICTURE)
    unet = stable_diffusion.unet
    before = [weights.requires_grad for weights in unet.parameters()]

    def untouched():
        hooks = [module for module in unet.modules() if module._forward_hooks or module._forward_pre_hooks]
        learning = [weights.requires_grad for weights in unet.parameters()]
        return not hooks and learning == before and all(weights.grad is None for weights in unet.parameters())

    first = DFCam()(trace)
    assert untouched() and first.identical(DFCam()(trace))
    refusal(DFCam(layers=("time_embedding",)), trace)
    assert untouched()
    refusal(DFCam(layers=("down_blocks.0.resnets.0.conv_shortcut", "mid_block.resnets.0.nonlinearity")), trace)
    assert untouched()
    with torch.no_grad():
        assert first.identical(DFCam()(trace))
    again = denoscope.load(stable_diffusion).trace("a red circle", **PICTURE)
    assert torch.equal(again[-1].prev_sample, trace[-1].prev_sample)


def test_what_cannot_be_explained_is_refused(stable_diffusion, guided):
    trace = guided
    near = refusal(DFCam(layers=("down_blocks.0.resnet.0",)), trace)
    assert (
        "Near misses: down_blocks.0.resnets.0" in near and "UNet2DConditionModel" in near and "model.layers()" in near
    )
    assert "no layer of" in refusal(DFCam(layers=("mid_block.**", "!**")), trace)
    assert "braces" in refusal(DFCam(layers=("mid_block.{resnets",)), trace)
    assert "(2, 64)" in refusal(DFCam(layers=("time_embedding",)), trace)
    assert "not maps" in refusal(DFCam(layers=("**.attn2.to_k",)), trace)
    assert "several times" in refusal(DFCam(layers=("**.resnets.0.nonlinearity",)), trace)
    assert "leave it out" in refusal(DFCam, layers="conv_in") and "leave it out" in refusal(DFCam, layers=())
    unused = torch.nn.Conv2d(1, 1, 1)
    trace[0].replay.denoiser.add_module("unused", unused)
    try:
        assert "unused" in refusal(DFCam(layers=("unused",)), trace, kind=CaptureError)
    finally:
        del trace[0].replay.denoiser.unused
    rescaled = denoscope.load(stable_diffusion).trace("a circle", guidance_rescale=0.7, **PICTURE)
    assert float(DFCam()(rescaled).saliency.max()) > 0
    assert "guides in another way" in refusal(DFCam.reference(), rescaled)


def test_model_names_its_layers(guided, pixels):
    for trace in (guided, pixels):
        model = trace.model
        every = model.layers()
        assert set(layers_of(model.denoiser, PUBLISHED_LAYERS)) == PUBLISHED
        assert "mid_block.attentions.0" in every and "down_blocks" not in every and "" not in every
        assert all(dict(model.denoiser.named_modules())[path] is not None for path in every)
        assert model.layers("mid_block.resnets.*") == ("mid_block.resnets.0", "mid_block.resnets.1")
    assert "Near misses: conv_in" in refusal(pixels.model.layers, "conv_inn")


def test_patterns():
    paths = ["a", "a.b", "a.b.c", "x.a.c", "x-a"]
    found = {
        "a": ["a"],
        "*": ["a", "x-a"],
        "a.*": ["a.b"],
        "a.**": ["a.b", "a.b.c"],
        "**": paths,
        "**.c": ["a.b.c", "x.a.c"],
        "**.a": ["a"],
        "**.{b,a}.*": ["a.b", "a.b.c", "x.a.c"],
        "x.**.c": ["x.a.c"],
        "a.**.c": ["a.b.c"],
    }
    for pattern, expected in found.items():
        assert matching(paths, [pattern], "it") == tuple(expected), pattern
    assert matching(paths, ["a.**", "a", "!a.b"], "it") == ("a", "a.b.c")


def test_a_run_with_layers_is_reported_and_read_again(stable_diffusion, tmp_path):
    """The `layer` dim is in the file, and the page shows the combined map alone."""
    asked = Request("a red circle", steps=3, at=(0, 2), methods=("df-cam", "df-cam-reference"))
    explained = explain(asked, model=denoscope.load(stable_diffusion))
    again = Explanation.load(explained.save(tmp_path / "out")).methods()
    assert list(again) == ["df_cam", "df_cam_reference"]
    for name, result in explained.methods().items():
        assert again[name].layer_saliency.equals(result.layer_saliency)
        assert set(again[name].layer.values) == PUBLISHED
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "DF-CAM, paper" in page and "up_blocks.0.resnets.1" not in page


def test_methods_by_name():
    assert method("df-cam") == DFCam() and method("df-cam-reference") == DFCam.reference()
    options = DFCam(layers=("conv_in",)).options()
    assert options == {"layers": ("conv_in",), "combine": "of_guided_output", "form": "paper"}


def test_shares_are_the_guidance(guided):
    replay: Replay = guided[0].replay
    assert replay.shares == pytest.approx((1 - WEIGHT, WEIGHT)) and alone(guided[0], 1).replay.shares == (1.0,)


def test_an_activation_in_place_behind_a_layer_changes_nothing(trace):
    """Oracle: the same network with activations that make tensors of their own."""
    unet, cam = trace.model.pipeline.unet, DFCam(layers=("conv_norm_out",))
    expected = cam(trace, [1])
    own = unet.conv_act
    unet.conv_act = torch.nn.SiLU(inplace=True)
    try:
        xr.testing.assert_identical(cam(trace, [1]), expected)
    finally:
        unet.conv_act = own
    assert float(expected.layer_saliency.max()) > 0


def test_a_layer_is_reduced_before_the_gradients_of_earlier_ones_come(guided):
    """The last layer's response comes first, and is not kept: one layer's gradient is there at a time."""
    order: list[tuple[int, ...]] = []
    combined = combined_of(guided[1], PUBLISHED_LAYERS, lambda response: order.append(response.activation.shape))
    truth = [response.activation.shape for response in responses_of(guided[1], PUBLISHED_LAYERS).values()]
    assert len(combined) == len(order) == len(truth) and order == truth[::-1]
