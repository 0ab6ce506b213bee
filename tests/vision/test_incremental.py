"""Incremental inference gives what the whole network gives, and computes less."""

import itertools

import pytest
import torch

import denoscope
from denoscope.attributors.occlusion import Occlusion
from denoscope.errors import InputError, NumericsError
from denoscope.targets import ClassScore, Target
from denoscope.vision import incremental
from denoscope.vision.incremental import Chain, Reach, Stage


def stage(read: int, write: int, kernel: int, stride: int) -> Stage:
    """A convolution padded as TensorFlow's "same", with something nonlinear and something per cell behind it."""
    around = kernel - stride
    padding = torch.nn.ZeroPad2d((around // 2, around - around // 2) * 2)
    convolution = torch.nn.Conv2d(read, write, kernel, stride)
    module = torch.nn.Sequential(padding, convolution, torch.nn.ReLU6(), torch.nn.Conv2d(write, write, 1))
    return Stage(module, kernel, stride, around // 2)


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    stages = stage(3, 4, 3, 2), stage(4, 5, 3, 1), stage(5, 6, 5, 2), stage(6, 4, 5, 1), stage(4, 3, 2, 2)
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 4, 7))
    return Chain(stages, head).double().eval()


@pytest.fixture
def known() -> torch.Tensor:
    return torch.randn(2, 3, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def covered(known: torch.Tensor, height: int, width: int, tops, lefts) -> torch.Tensor:
    pictures = []
    for top, left in itertools.product(tops, lefts):
        picture = known.clone()
        picture[:, :, top : top + height, left : left + width] = 0
        pictures.append(picture)
    return torch.cat(pictures)


@pytest.mark.parametrize("most", [0.1, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("window", [(1, 1), (5, 3), (8, 32), (64, 2), (64, 32)])
def test_near_is_the_network(chain, known, monkeypatch, most, window):
    monkeypatch.setattr(incremental, "LARGEST_SHARE", most)
    tops, lefts = range(0, 65 - window[0], 3), range(0, 33 - window[1], 3)
    pictures = covered(known, *window, tops, lefts)
    with torch.no_grad():
        assert chain.near(known)(pictures) == pytest.approx(chain(pictures), abs=1e-12)


def test_windows_of_many_sizes_and_none_go_together(chain, known):
    parts = [covered(known, *size, [2], [11]) for size in ((9, 2), (3, 17), (1, 1))]
    pictures = torch.cat([known, *parts, known])
    with torch.no_grad():
        assert chain.near(known)(pictures) == pytest.approx(chain(pictures), abs=1e-12)


def test_it_computes_less(chain, known):
    near, sizes = chain.near(known), []
    for part in chain.stages:
        part.register_forward_hook(lambda part, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    near(covered(known, 4, 4, [20], [8]))
    assert sizes == [(8, 8), (7, 7), (32, 16), (16, 8), (16, 8)]


@pytest.mark.parametrize("kernel, stride, padding", [(3, 1, 1), (3, 2, 0), (5, 2, 1), (5, 1, 2), (2, 2, 0), (7, 2, 2)])
def test_reach_against_all_cells(kernel, stride, padding):
    whole = 24
    reach = Reach(kernel, stride, padding, whole)
    reads = [set(range(stride * j - padding, stride * j - padding + kernel)) for j in range(whole // stride)]
    for start, length in itertools.combinations(range(whole), 2):
        length = min(length, whole - start)
        first, number = reach.changed(start, length)
        chosen = range(first, first + number)
        assert {j for j, cells in enumerate(reads) if cells & set(range(start, start + length))} <= set(chosen)
        begin, span = reach.read(first, number)
        assert begin % stride == span % stride == 0 and begin >= 0 and begin + span <= whole
        assert set().union(*(reads[j] for j in chosen)) & set(range(whole)) <= set(range(begin, begin + span))
        assert number == reach.changed(0, length)[1] and span == reach.read(0, number)[1]


@pytest.fixture(scope="module")
def imagenet():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra imagenet")
    return denoscope.load_classifier("imagenet")


def test_the_offline_network_near_a_picture(imagenet):
    known = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    pictures = covered(known, 15, 15, [0, 96, 209], [0, 101, 209])
    with torch.no_grad():
        whole = imagenet(pictures)
    assert imagenet.near(known)(pictures) == pytest.approx(whole, abs=2e-5)
    assert (whole - imagenet(known).detach().repeat(9, 1)).abs().max() > 0.01  # the windows matter


def test_near_refuses_what_the_classifier_refuses(imagenet):
    known = torch.zeros(1, 3, 224, 224)
    near = imagenet.near(known)
    with pytest.raises(InputError, match="inputs"):
        near(torch.zeros(1, 3, 32, 32))
    with pytest.raises(NumericsError, match="already"):
        near(torch.full((1, 3, 224, 224), torch.nan))


class Whole(ClassScore):
    """The same score, with no sooner way to it."""

    near = Target.near


def test_occlusion_is_the_same_either_way(imagenet):
    pictures = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(4))
    frames = denoscope.blend(pictures, count=3, draws=2)
    maps = [
        Occlusion(target(imagenet, 285), (3, 60, 60), (3, 41, 60))(frames, [1, 2]).saliency.values
        for target in (ClassScore, Whole)
    ]
    assert maps[0] == pytest.approx(maps[1], abs=1e-5 * float(abs(maps[1]).max()))
