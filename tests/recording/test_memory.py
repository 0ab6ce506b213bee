"""Memory: how many samples go at once, what happens when it runs out, and gradients in little of it."""

import gc
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from linear import linear_trace
from small import PIPELINES, refusal, stable_diffusion_3

import denoscope
from denoscope import (
    ClassScore,
    DFCam,
    DFRise,
    GradientShap,
    IntegratedGradients,
    Lime,
    Occlusion,
    Relevance,
    memory_limit,
)
from denoscope.attributors import graphs, relevance
from denoscope.errors import InputError, MemoryShortage, ReplayError
from denoscope.recording import batches, memory
from denoscope.recording.batches import MemoryWarning, Portions, call_portions, remembered_portions, samples_at_once
from denoscope.recording.hooks.attention import AttentionCall
from denoscope.recording.hooks.checkpointing import (
    Blocks,
    TooMuchSaved,
    block_by_block,
    blocks_in,
    counting_saved,
    weights_without_gradients,
)
from denoscope.recording.limits import bytes_of
from denoscope.recording.listening import reading_of
from denoscope.timing.commitment import UTurn
from denoscope.vision.classifiers import load_classifier

LACKS = {
    "host": MemoryError("no more"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
}


@pytest.fixture(scope="module")
def pixels():
    """A run of a small U-Net on pixels, 16 × 16."""
    pipeline = PIPELINES["ddim"]()
    pipeline.set_progress_bar_config(disable=True)
    return denoscope.load(pipeline).trace(seed=3, num_inference_steps=3)


@pytest.fixture(scope="module")
def guided():
    """A guided run of a small Stable Diffusion."""
    return denoscope.load(PIPELINES["stable-diffusion"]()).trace("a red circle", seed=1, num_inference_steps=3)


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(1)
    layers = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 3), torch.nn.Tanh()
    module = torch.nn.Sequential(*layers).eval()
    classifier = load_classifier(module, ["one", "two", "three"], size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    return ClassScore(classifier, "two")


@contextmanager
def memory_for(module: torch.nn.Module, rows: int, error: Exception, sizes: list[int] | None = None):
    """While open, a network raises the error for more than so many rows."""

    def refuse(module, args):
        if sizes is not None:
            sizes.append(len(args[0]))
        if len(args[0]) > rows:
            raise error

    handle = module.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def colours(picture):
    return {"red": bool(picture[..., 0].mean() > picture[..., 1].mean())}


METHODS = {
    "df-rise": lambda target: DFRise(64),
    "df-rise, chosen": lambda target: DFRise(64, batch_size=48),
    "occlusion": lambda target: Occlusion(target, (3, 8, 8), (3, 8, 8)),
    "integrated gradients": lambda target: IntegratedGradients(target, n_steps=6),
    "integrated gradients, chosen": lambda target: IntegratedGradients(target, n_steps=6, internal_batch_size=5),
    "gradient shap": lambda target: GradientShap(target, 5),
    "lime": lambda target: Lime(24, kernel_size=1.0, max_dist=2.0),
}


@pytest.mark.filterwarnings("ignore:LIME cannot tell places apart")
@pytest.mark.parametrize(
    ("name", "lack"), [*((name, "cpu") for name in METHODS), ("df-rise", "cuda"), ("lime", "host")]
)
def test_the_portion_is_halved_and_the_map_is_the_same(pixels, target, name, lack):
    method, step = METHODS[name](target), [0, 2]
    truth = method(pixels, step).saliency.values
    with memory_for(pixels.model.denoiser, 1, LACKS[lack]), pytest.warns(MemoryWarning, match="the same") as heard:
        maps = method(pixels, step).saliency.values
    assert len([each for each in heard if each.category is MemoryWarning]) == 1, "for all steps together"
    assert np.ptp(truth) > 0 or name == "lime"
    assert maps == pytest.approx(truth, rel=1e-4, abs=1e-5 * float(np.abs(truth).max()))


def test_the_commitment_goes_on_in_smaller_portions(pixels):
    truth = UTurn(colours, draws=3)(pixels, [0, 1])
    sizes: list[int] = []
    with memory_for(pixels.model.denoiser, 2, LACKS["cpu"], sizes), pytest.warns(MemoryWarning):
        decided = UTurn(colours, draws=3)(pixels, [0, 1])
    assert decided.equals(truth) and max(sizes) > 2 and sizes[-1] <= 2


def test_memory_that_runs_out_for_one_sample_is_refused_in_a_paragraph(pixels, target):
    for method in (DFRise(8), IntegratedGradients(target, n_steps=2)):
        with memory_for(pixels.model.denoiser, 0, LACKS["cpu"]), warnings.catch_warnings():
            warnings.simplefilter("ignore", MemoryWarning)
            pixels[1].forget_check()
            with pytest.raises((MemoryShortage, RuntimeError)):
                method(pixels, [1])

    def never(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    message = refusal(list, Portions(1, 1).over(3, never, torch.device("cpu")), kind=MemoryShortage)
    assert "one sample" in message and "CUDA out of memory" in message


def test_each_sample_is_worked_on_once_and_in_order():
    done: list[int] = []

    def work(part: slice) -> list[int]:
        if part.stop - part.start > 3:
            raise MemoryError
        done.extend(range(part.start, part.stop))
        return done[-(part.stop - part.start) :]

    portions = Portions(16, 16)
    with pytest.warns(MemoryWarning, match="16 samples at once, so 8"):
        results = [number for _, part in portions.over(21, work, torch.device("cpu")) for number in part]
    assert results == done == list(range(21)) and portions.size == 2


def test_another_error_is_not_a_lack_of_memory():
    def work(part: slice) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="do not fit"):
        list(Portions(4, 4).over(8, work, torch.device("cpu")))


# The rule.


def test_the_rule_takes_no_more_than_fits(monkeypatch):
    sample = torch.zeros(1, 4, 16, 16)
    each = batches.BYTES_OF_CALL * 256 * 4
    for free, count in ((None, 64), (10**12, 64), (5 * each, 5), (5 * each - 1, 4), (0, 1)):
        monkeypatch.setattr(batches, "room", lambda device, free=free: free)
        assert samples_at_once(sample) == count
    monkeypatch.setattr(batches, "room", lambda device: 5 * each)
    assert samples_at_once(sample.double()) == 2 and samples_at_once(sample.half()) == 10


def test_the_limit_reaches_the_rule(pixels, monkeypatch):
    monkeypatch.setattr(memory, "used_bytes", lambda device: 10**9)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**12)
    cpu, sample, sizes = torch.device("cpu"), torch.zeros(1, 3, 16, 16), list[int]()
    assert memory.room(cpu) == int(memory.SHARE * 10**12)
    with memory_limit("1.05GB"):
        assert memory.room(cpu) == 50_000_000 and samples_at_once(sample) == 50_000_000 // (2**14 * 256 * 4)
        with memory_for(pixels.model.denoiser, 64, LACKS["cpu"], sizes):
            DFRise(64)(pixels, [1])
        with memory_limit("0.9GB"):
            assert memory.room(cpu) == 0 and samples_at_once(sample) == 1
        with memory_limit(None):
            assert memory.room(cpu) == int(memory.SHARE * 10**12)
    assert max(sizes) == 2 and samples_at_once(sample) == 64


def test_portions_of_one_question_are_remembered(monkeypatch):
    sample = torch.zeros(1, 4, 16, 16)
    with remembered_portions():
        first = call_portions(sample)
        assert call_portions(sample) is first and call_portions(sample.double()) is not first
        assert call_portions(sample, 3).size == 3
    assert call_portions(sample) is not first


def test_sizes_of_memory():
    assert [bytes_of(size) for size in ("8GB", "500 mb", "0.5 GiB", 2**21, "1048576")] == [
        8 * 10**9,
        5 * 10**8,
        2**29,
        2**21,
        2**20,
    ]
    for wrong in ("8", "eight", "8 XB", "-8GB", "", True, 0, "nan"):
        assert "8GB" in refusal(bytes_of, wrong)
    with pytest.raises(InputError, match="memory is 'much'"):
        denoscope.Request("a red circle", memory="much")
    with pytest.raises(InputError, match="memory is"):
        denoscope.Study(photographs=("cat.png",), memory="1")
    request = denoscope.Request("a red circle", memory="8GB")
    assert "--memory 8GB" in request.command()


def test_a_command_keeps_the_limit_while_it_explains(pixels, monkeypatch):
    from denoscope.commands.explain import explain
    from denoscope.recording.limits import limit_in_effect

    heard = []
    monkeypatch.setattr(
        DFRise,
        "explain",
        lambda self, step, advance: heard.append(limit_in_effect()) or {"saliency": np.zeros((16, 16))},
    )
    request = denoscope.Request(None, steps=2, at=(1,), methods=("df-rise",), masks=4, memory="2GB")
    explain(request, model=pixels.model)
    assert heard == [2 * 10**9] and limit_in_effect() is None


# Gradients block by block.


def state_of(networks):
    """Modes, gradients, hooks and own attributes of all modules."""
    parts = [part for network in networks for part in network.modules()]
    modes = [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]
    names = [sorted(vars(part)) for part in parts]
    flags = [vars(part).get("gradient_checkpointing") for part in parts]
    return modes, names, flags, [weight.requires_grad for network in networks for weight in network.parameters()]


def gradient(step, samples):
    x = samples.clone().requires_grad_()
    y = step.clean(step.as_samples(x)).square().sum()
    return y.detach(), torch.autograd.grad(y, x)[0]


def test_blocks_are_the_small_parts_of_a_network(guided):
    unet, kinds = guided.model.denoiser, []
    for block in blocks_in(unet):
        kinds.append(type(block).__name__)
    assert {"ResnetBlock2D", "BasicTransformerBlock", "Upsample2D", "Downsample2D"} == set(kinds)
    assert len({id(block) for block in blocks_in(unet)}) == len(kinds)
    decoder = {type(block).__name__ for block in blocks_in(guided.model.pipeline.vae.decoder)}
    assert {"ResnetBlock2D", "Attention"} <= decoder and "Linear" not in decoder
    transformer = blocks_in(stable_diffusion_3().transformer)
    assert {type(block).__name__ for block in transformer} == {"JointTransformerBlock"}


@pytest.mark.parametrize("resumed", [False, True])
def test_block_by_block_the_gradient_is_the_same_in_less_memory(guided, resumed):
    step = guided[1]
    samples = step.as_maps(step.sample)
    if resumed:
        samples = samples.clone()
        step = guided[1].picture(0)
        object.__setattr__(step, "direct", None)
    networks = step.networks
    assert {type(network).__name__ for network in networks} >= {"UNet2DConditionModel", "AutoencoderKL"}
    gradient(step, samples)
    before = state_of(networks)
    with counting_saved(networks) as plain:
        value, truth = gradient(step, samples)
    with weights_without_gradients(networks):
        with counting_saved(networks) as frozen:
            again = gradient(step, samples)
        with counting_saved(networks) as little, block_by_block(networks):
            blocks = gradient(step, samples)
    assert torch.equal(again[1], truth) and torch.equal(blocks[0], value)
    assert torch.equal(blocks[1], truth), "the arithmetic is the same"
    assert frozen.bytes < plain.bytes and little.bytes < 0.5 * frozen.bytes
    assert step.engine == ("direct" if not resumed else step.engine) and state_of(networks) == before


def test_a_network_is_as_it_was_after_a_failure(guided, target):
    networks = guided[0].networks
    guided.model.denoiser.enable_gradient_checkpointing()
    guided.model.denoiser.mid_block.train()
    before = state_of(networks)
    try:
        for block in (False, True):
            method = IntegratedGradients(target, n_steps=2)
            with memory_limit("1MB" if block else None):
                method(guided, [1])
            assert state_of(networks) == before
            last = guided.model.denoiser.up_blocks[-1].resnets[-1]
            handle = last.register_forward_pre_hook(lambda *args: 1 / 0)
            with memory_limit("1MB" if block else None), pytest.raises((ZeroDivisionError, ReplayError)):
                method(guided, [1])
            handle.remove()
            assert state_of(networks) == before
    finally:
        guided.model.denoiser.disable_gradient_checkpointing()
        guided.model.denoiser.eval()


def test_gradients_are_computed_block_by_block_where_one_sample_does_not_fit(guided, target):
    methods = [IntegratedGradients(target, n_steps=3), GradientShap(target, 3)]
    truths = [method(guided, [1]).saliency.values for method in methods]
    calls: list[int] = []
    block = guided.model.denoiser.up_blocks[0].resnets[0].norm1
    handle = block.register_forward_hook(lambda *args: calls.append(1))
    try:
        for method, truth in zip(methods, truths, strict=True):
            with memory_limit("1MB"):
                maps = method(guided, [1]).saliency.values
            assert maps == pytest.approx(truth, rel=1e-4, abs=1e-5 * float(np.abs(truth).max()))
    finally:
        handle.remove()
    assert len(calls) > 12, "inside a block layers run twice"


def test_what_autograd_saves_is_counted_once_and_bounded():
    weight = torch.nn.Linear(8, 8)
    x = torch.ones(4, 8, requires_grad=True)
    with counting_saved([weight]) as saved:
        hidden = weight(x).exp()
        ((hidden * hidden).sum()).backward()
    assert saved.bytes == 2 * 4 * 8 * 4, "the input and the exponential; a weight is there anyway"
    with pytest.raises(TooMuchSaved), counting_saved([weight], most=130):
        weight(x).exp().square()
    with counting_saved(), pytest.raises(RuntimeError, match="inplace operation"):
        hidden = x * 2
        y = hidden.square()
        hidden.add_(1)
        y.sum().backward()


class Drifting(torch.nn.Module):
    """Layers in a list, of which each gives something else every time."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Counting()])

    def forward(self, x):
        return self.layers[0](x)


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.times = torch.nn.Linear(4, 4), 0

    def forward(self, x):
        self.times += 1
        return self.linear(x).exp() * self.times


def test_a_block_with_a_state_is_refused():
    network, x = Drifting(), torch.ones(2, 4, requires_grad=True)
    another = pytest.raises(ReplayError, match=r"block of the network \(Counting\) gave another output")
    with another, block_by_block([network]):
        torch.autograd.grad(network(x).sum(), x)
    assert "forward" not in vars(network.layers[0])


def test_pictures_are_decoded_in_portions(guided):
    step = guided[1]
    samples = torch.cat([step.sample] * 5)
    truth = step.decode(samples).detach()
    sizes: list[int] = []
    decoder = guided.model.pipeline.vae.decoder
    with memory_for(decoder, 2, LACKS["cpu"], sizes), pytest.warns(MemoryWarning):
        pictures = step.decode(samples)
    assert sizes[0] == 5 and max(sizes[1:]) == 2 and pictures.detach().numpy() == pytest.approx(truth.numpy(), abs=1e-6)


def test_linear_samples_are_no_reason_to_measure():
    """A step without decoder blocks has gradients in portions too."""
    trace = linear_trace()
    assert trace[1].networks and blocks_in(trace.model.denoiser) == []


@contextmanager
def counting_calls(module: torch.nn.Module):
    """While open, the number of a module's calls is in the list's only entry."""
    calls = [0]

    def count(*args):
        calls[0] += 1

    handle = module.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def of_kind(kind: str):
    """A run, its denoiser, and a layer inside of one of the denoiser's blocks."""
    pipeline = stable_diffusion_3() if kind == "joint attention" else PIPELINES["stable-diffusion"]()
    more = {"guidance_rescale": 0.7} if kind == "resumed" else {}
    pipeline.set_progress_bar_config(disable=True)
    trace = denoscope.load(pipeline).trace("a red circle", seed=1, num_inference_steps=3, **more)
    denoiser = trace.model.denoiser
    return trace, denoiser, next(module for name, module in denoiser.named_modules() if name.endswith("to_q"))


@pytest.mark.parametrize("kind", ["stable-diffusion", "joint attention", "resumed"])
def test_relevance_is_computed_block_by_block_where_its_graph_does_not_fit(kind):
    """The same arithmetic, one block's attention at a time."""
    trace, denoiser, inner = of_kind(kind)
    trace[1].predict(trace[1].sample)
    truth, before = Relevance()(trace, [1]), state_of([denoiser])
    with warnings.catch_warnings(), counting_calls(inner) as whole:
        warnings.simplefilter("error")
        Relevance()(trace, [1])
    with warnings.catch_warnings(), counting_calls(inner) as blocks, memory_limit("1MB"):
        warnings.simplefilter("error")
        little = Relevance()(trace, [1])
    assert blocks[0] > whole[0], "a block runs twice"
    np.testing.assert_allclose(little.saliency.values, truth.saliency.values, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(little.relevance.values, truth.relevance.values, rtol=1e-5)
    assert state_of([denoiser]) == before


def test_relevance_lets_go_of_attention_on_the_way(guided):
    """Bytes that autograd saves outside of the blocks, which are computed again one by one."""
    step, reading, most = guided[1], reading_of(guided[1]), []
    with torch.enable_grad(), weights_without_gradients(step.networks):
        for contexts in ((), (step.denoiser,)):
            with counting_saved(step.networks) as saved, block_by_block(contexts) as blocks:
                relevance._heard(step, reading, relevance._alone(step, reading), blocks)
            most.append(saved.bytes)
    assert most[1] < 0.3 * most[0]


@pytest.mark.parametrize("kind", ["stable-diffusion", "joint attention", "resumed"])
def test_activation_maps_are_computed_block_by_block_where_their_graph_does_not_fit(kind):
    trace, denoiser, inner = of_kind(kind)
    for method in (DFCam(), DFCam.reference()) if kind == "stable-diffusion" else (DFCam(),):
        truth, before = method(trace, [1]), state_of([denoiser])
        with warnings.catch_warnings(), counting_calls(inner) as whole:
            warnings.simplefilter("error")
            method(trace, [1])
        with warnings.catch_warnings(), counting_calls(inner) as blocks, memory_limit("1MB"):
            warnings.simplefilter("error")
            little = method(trace, [1])
        assert blocks[0] > whole[0], "a block runs twice"
        for name in ("saliency", "layer_saliency"):
            np.testing.assert_allclose(little[name].values, truth[name].values, rtol=1e-4, atol=1e-6)
        assert state_of([denoiser]) == before


def test_a_layer_inside_of_a_block_has_its_map_without_dividing_the_graph(guided):
    method = DFCam(layers=("**.attn1.to_q",))
    truth = method(guided, [1])
    with memory_limit("1MB"):
        little = method(guided, [1])
    np.testing.assert_array_equal(little.saliency.values, truth.saliency.values)


def test_no_attention_is_held_between_the_ways_there_and_back(guided, monkeypatch):
    """But the first, which the gradient is taken to."""
    step, reading, held = guided[1], reading_of(guided[1]), []
    grad = torch.autograd.grad

    def number() -> int:
        gc.collect()
        calls = [each for each in gc.get_objects() if type(each) is AttentionCall]
        return sum(call.taken is not None or call.query is not None for call in calls)

    def seen(y, inputs, **options):
        held.append(number())
        return grad(y, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", seen)
    before = number()
    relevance.heard(step, reading)
    with memory_limit("1MB"):
        relevance.heard(step, reading)
    assert held[0] > before + 4 and held[1] == before


def test_what_was_tried_in_vain_is_let_go_of(guided, monkeypatch):
    """Half of the graph fits: attention of the first layers is there when memory is found to be too little."""
    step, reading, held = guided[1], reading_of(guided[1]), []
    with torch.enable_grad(), weights_without_gradients(step.networks), counting_saved(step.networks) as saved:
        relevance._heard(step, reading, relevance._alone(step, reading), Blocks())
    inner = relevance._heard

    def number() -> int:
        gc.collect()
        return sum(type(each) is AttentionCall and each.taken is not None for each in gc.get_objects())

    def counted(*args):
        held.append(number())
        return inner(*args)

    monkeypatch.setattr(relevance, "_heard", counted)
    monkeypatch.setattr(graphs, "room_for_saved", lambda device, beyond: saved.bytes // 2)
    relevance.heard(step, reading)
    assert len(held) == 2 and held[1] == held[0]
