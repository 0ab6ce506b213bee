"""Explaining leaves the user's networks as they are: weights, buffers, modes, gradients asked for, hooks."""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import denoscope
from denoscope import ClassScore
from denoscope.attributors.base import list_methods, method
from denoscope.errors import Interrupted, MemoryShortage
from denoscope.targets import Target
from denoscope.vision.classifiers import at_rest

SIDE = 16
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state_of(*networks: torch.nn.Module) -> list:
    """Return everything of networks that explaining could change."""
    state = []
    for network in networks:
        for name, part in network.named_modules():
            hooks = tuple(len(getattr(part, kind)) for kind in HOOKS)
            state.append((name, type(part), part.training, hooks, part.forward.__func__, sorted(vars(part))))
        for name, weights in network.named_parameters():
            state.append((name, weights.requires_grad, weights.grad is None, weights.detach().numpy().tobytes()))
        for name, buffer in network.named_buffers():
            state.append((name, buffer.numpy().tobytes()))
    return state


class Watchful(torch.nn.Module):
    """A part that is slow, so that threads meet in it, and that notes whether it is at rest meanwhile."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x):
        for pause in (0, 0.002):
            time.sleep(pause * (1 + len(self.seen) % 3))
            self.seen.append((self.training, self.weight.requires_grad, threading.get_ident()))
        return x * self.weight


def in_training() -> torch.nn.Sequential:
    """Return a classifier in training mode, with batch normalisation, dropout and some frozen weights."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), Watchful()
    head = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Dropout(0.5), torch.nn.Flatten(), torch.nn.Linear(96, 3)
    network = torch.nn.Sequential(*layers, *head).train()
    network[0].bias.requires_grad_(False)
    network[2].eval()
    return network


def target_of(network) -> ClassScore:
    return ClassScore(denoscope.load_classifier(network, ["a", "b", "c"], size=SIDE, mean=0.5, std=0.5), "b")


@pytest.fixture
def frames():
    picture = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return denoscope.blend(picture, count=4, draws=2, seed=3)


@pytest.fixture
def threads():
    """Several threads of torch's, so that as many chunks are computed side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


CHEAP = {
    "integrated-gradients": {"n_steps": 6, "internal_batch_size": 2},
    "gradient-shap": {"n_samples": 6, "internal_batch_size": 1},
    "occlusion": {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)},
}


@pytest.mark.parametrize("name", list_methods(needs="label"))
def test_a_classifier_in_training_is_explained_at_rest_and_left_in_training(frames, threads, name):
    """Oracle: the same network in evaluation mode, in one thread."""
    network = in_training()
    explain = method(name, target=target_of(network), **CHEAP[name])
    network[3].seen.clear()
    before = state_of(network)
    maps = explain(frames, [1, 2])
    assert state_of(network) == before
    assert len({thread for _, _, thread in network[3].seen}) > 1, "several threads"
    assert not [seen for seen in network[3].seen if seen[0] or seen[1]]
    torch.set_num_threads(1)
    expected = replace(explain, target=target_of(in_training().eval()))(frames, [1, 2])
    np.testing.assert_allclose(maps.saliency, expected.saliency, rtol=1e-4, atol=1e-6)


def test_a_classifier_called_from_several_threads_is_at_rest_in_all(frames, threads):
    """Without an attribution around them, calls that overlap still keep the network at rest."""
    network = in_training()
    classifier = target_of(network).classifier
    before = state_of(network)
    network[3].seen.clear()
    several = [threading.Thread(target=classifier, args=(frames[1].images,)) for _ in range(6)]
    for thread in several:
        thread.start()
        time.sleep(0.001)
    for thread in several:
        thread.join()
    assert state_of(network) == before and len(network[3].seen) == 12
    assert not [seen for seen in network[3].seen if seen[0] or seen[1]]


@dataclass(frozen=True)
class Breaking(Target):
    """A class score that raises after some calls."""

    score: ClassScore
    error: BaseException
    after: int
    calls: list

    def at(self, step):
        score = self.score.at(step)

        def breaking(samples):
            self.calls.append(1)
            if len(self.calls) > self.after:
                raise self.error
            return score(samples)

        return breaking

    def networks(self):
        return self.score.networks()


@pytest.mark.filterwarnings("ignore::denoscope.recording.batches.MemoryWarning")
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), ZeroDivisionError()])
@pytest.mark.parametrize("name", list_methods(needs="label"))
def test_a_classifier_is_left_in_training_whatever_is_raised(frames, threads, name, error):
    network = in_training()
    score = target_of(network)
    before = state_of(network)
    explain = method(name, target=Breaking(score, error, 2, []), **CHEAP[name])
    with pytest.raises((type(error), Interrupted, MemoryShortage)):
        explain(frames, [1, 2])
    assert state_of(network) == before


def test_rest_is_counted_so_that_no_thread_wakes_another():
    network = in_training()
    before = state_of(network)
    inside, outside = threading.Event(), threading.Event()

    def rest():
        with at_rest(network):
            inside.set()
            outside.wait(10)

    thread = threading.Thread(target=rest)
    thread.start()
    inside.wait(10)
    with at_rest(network), at_rest(network[1]):
        pass
    assert not network[1].training and not network[1].weight.requires_grad
    outside.set()
    thread.join()
    assert state_of(network) == before
    with pytest.raises(KeyboardInterrupt), at_rest(network):
        raise KeyboardInterrupt
    assert state_of(network) == before


OPTIONS = {"lime": {"num_samples": 8}, "concepts": {"concepts": ("blue sky",)}} | {
    f"df-rise{form}": {"num_masks": 8} for form in ("", "-contrast", "-reference")
}


@pytest.mark.parametrize("name", list_methods())
def test_the_pipeline_is_left_as_it_is(trace, name):
    """Its U-Net is in training mode, which changes no output: it has no dropout and no batch normalisation."""
    pipeline = trace.model.pipeline
    parts = pipeline.unet, pipeline.text_encoder, pipeline.vae
    pipeline.unet.train()
    pipeline.unet.conv_in.requires_grad_(False)
    try:
        before, image = state_of(*parts), np.asarray(trace.image).copy()
        explain = method(name, **OPTIONS.get(name, {}))
        explain(trace, [1])
        assert state_of(*parts) == before
        for error in (ZeroDivisionError, KeyboardInterrupt, RuntimeError):

            def fail(done, error=error):
                raise error

            with pytest.raises((error, Interrupted)):
                explain(trace, [1], advance=fail)
            assert state_of(*parts) == before
        assert np.array_equal(np.asarray(trace.image), image)
    finally:
        pipeline.unet.eval()
        pipeline.unet.requires_grad_(True)


def test_through_the_denoiser_everything_is_left_as_it_is(trace, threads):
    network = in_training()
    explain = method("integrated-gradients", target=target_of(network), n_steps=2)
    pipeline = trace.model.pipeline
    parts = network, pipeline.unet, pipeline.text_encoder, pipeline.vae
    before = state_of(*parts)
    explain(trace, [2])
    assert [a for a, b in zip(state_of(*parts), before, strict=True) if a != b] == []
