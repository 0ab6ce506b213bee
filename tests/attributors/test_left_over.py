"""What ended in raw exceptions, or in a map of something else: guidance that ends, checkpointing, words, text."""

import numpy as np
import pytest
import torch
import xarray as xr
from families.every import FAMILIES
from small import flux, refusal, stable_diffusion, stable_diffusion_3

import denoscope

CALL = dict(seed=1, num_inference_steps=3)


def ending_guidance(pipe, index, timestep, tensors):
    """Guidance is off behind the first step, in the way that diffusers' documentation shows."""
    if index == 0:
        pipe._guidance_scale = 1.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
    return tensors


def test_relevance_where_a_callback_ends_guidance():
    """Oracle: a run without guidance, asked about the very sample of the step behind the end."""
    model = denoscope.load(stable_diffusion())
    tensors = ["latents", "prompt_embeds"]
    trace = model.trace(
        "a red circle",
        callback_on_step_end=ending_guidance,
        callback_on_step_end_tensor_inputs=tensors,
        guidance_scale=5.0,
        **CALL,
    )
    assert [step.replay.copies for step in trace] == [2, 1, 1]
    maps = denoscope.Relevance.paper()(trace, [0, 2])
    plain = model.trace("a red circle", guidance_scale=1.0, **CALL)
    same = plain.with_steps([plain[2].with_sample(trace[2].sample)])
    expected = denoscope.Relevance.paper()(same, [2])
    np.testing.assert_allclose(maps.saliency.sel(step=[2]), expected.saliency, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("explain", [denoscope.DFCam(), denoscope.Relevance.paper()], ids=["df-cam", "relevance"])
def test_gradient_checkpointing_in_training_changes_nothing(explain):
    """Oracle: the same network without it."""
    model = denoscope.load(stable_diffusion())
    trace = model.trace("a red circle", **CALL)
    expected, unet = explain(trace, [1]), model.pipeline.unet
    unet.enable_gradient_checkpointing()
    unet.train()
    xr.testing.assert_allclose(explain(trace, [1]), expected, rtol=1e-5)
    assert unet.training and unet.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore:The prompt is longer")
def test_words_behind_what_the_denoiser_reads_are_cut_off():
    """Kandinsky 3 hands its denoiser fewer tokens than its tokenizer pads to."""
    pipeline, call = FAMILIES["kandinsky-3"].build(), FAMILIES["kandinsky-3"].call()
    pipeline.set_progress_bar_config(disable=True)
    long = {**call, "prompt": "a large red circle left of " * 30 + "a square"}
    trace = denoscope.load(pipeline).trace(**long, seed=1)
    assert "was cut off" in refusal(denoscope.Words(phrases=("square",)), trace, [0])
    assert denoscope.Words(phrases=("circle",))(trace, [0]).saliency.shape[:2] == (1, 1)


def test_text_as_long_as_the_picture_is_not_taken_for_it():
    """Flux's blocks give (text, picture): 16 tokens of text and 4 × 4 positions cannot be told apart, 4 × 6 can."""
    pipeline = flux()
    pipeline.set_progress_bar_config(disable=True)
    model, call = denoscope.load(pipeline), dict(max_sequence_length=16, **CALL)
    alike = model.trace("a red circle", height=32, width=32, **call)
    assert "cannot be told apart" in refusal(denoscope.DFCam(), alike, [1])
    other = model.trace("a red circle", height=32, width=48, **call)
    assert float(denoscope.DFCam()(other, [1]).saliency.std()) > 0


def test_a_block_with_text_as_long_as_the_picture_is_left_out():
    """SD3's last block drops the text, so it alone has a map; the first gives 48 tokens of text and 6 × 8 positions."""
    pipeline = stable_diffusion_3()
    pipeline.set_progress_bar_config(disable=True)
    trace = denoscope.load(pipeline).trace("a red circle", height=24, width=32, max_sequence_length=16, **CALL)
    assert trace[0].replay.single.kwargs["encoder_hidden_states"].shape[1] == trace[0].layout.positions == 48
    assert denoscope.DFCam()(trace, [1]).layer.values.tolist() == ["transformer_blocks.1"]


def test_layers_that_read_no_sample_have_no_map():
    """Z-Image refines its text in blocks of their own, in front of the picture's."""
    family = FAMILIES["z-image"]
    pipeline = family.build()
    pipeline.set_progress_bar_config(disable=True)
    maps = denoscope.DFCam()(denoscope.load(pipeline).trace(seed=1, **family.call()), [1])
    assert not [path for path in maps.layer.values if path.startswith("context_refiner")]
    assert torch.isfinite(torch.from_numpy(maps.saliency.values)).all()


def test_a_class_through_a_denoiser_in_half_precision():
    """Oracle: the same resized in single precision. The map is near that of single precision throughout."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 3))
    classifier = denoscope.load_classifier(module, ["tiger", "cat", "dog"], size=24, mean=0.5, std=0.5)
    pictures = torch.rand(1, 3, 32, 32).bfloat16()
    assert classifier.normalise(pictures).dtype == torch.bfloat16
    torch.testing.assert_close(
        classifier.normalise(pictures).float(), classifier.normalise(pictures.float()), atol=0.02, rtol=0.02
    )
    pipeline = stable_diffusion_3()
    pipeline.set_progress_bar_config(disable=True)
    model = denoscope.load(pipeline.to(torch.bfloat16))
    trace = model.trace("a red circle", height=32, width=32, max_sequence_length=16, **CALL)
    maps = denoscope.Occlusion(denoscope.ClassScore(classifier, "tiger"))(trace, [1])
    assert np.isfinite(maps.saliency).all() and float(maps.saliency.std()) > 0
