"""Traces that last: stored and loaded, they give the same numbers bit for bit; whole or not at all; another model."""

import json
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import small
import torch
from families.every import FAMILIES
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import denoscope
from denoscope import ClassScore, Trace
from denoscope.errors import InputError, ModelError, OutputError, ReplayError
from denoscope.recording import digests, models, packing, storing, traces
from denoscope.recording import stored as reading
from denoscope.recording.digests import weights_of
from denoscope.recording.hooks.trees import map_tensors, tensors_of
from denoscope.recording.keeping import Keeper

PROMPT = "a large striped red circle on a white background"


@pytest.fixture(scope="module")
def shapes():
    return denoscope.load("shapes")


@pytest.fixture(scope="module")
def circle(shapes):
    """A short run of the bundled model."""
    return shapes.trace(PROMPT, seed=0, num_inference_steps=4)


@pytest.fixture(scope="module")
def stored(circle, tmp_path_factory):
    """The folder of that run."""
    return circle.save(tmp_path_factory.mktemp("stored") / "circle")


def family(name):
    pipe = FAMILIES[name].build()
    pipe.set_progress_bar_config(disable=True)
    return denoscope.load(pipe), FAMILIES[name].call()


def refuse_difference(a, b):
    """Traces of the same steps: recorded tensors, and answers to another sample of each step, bit for bit."""
    assert len(a) == len(b) and a.pictures == b.pictures
    generator = torch.Generator().manual_seed(5)
    for one, other in zip(a, b, strict=True):
        for name in ("sample", "model_output", "prev_sample"):
            mine, yours = getattr(one, name), getattr(other, name)
            assert torch.equal(mine, yours) and mine.dtype == yours.dtype and mine.stride() == yours.stride()
        assert one.timestep == other.timestep and one.noise == other.noise and one.next_level == other.next_level
        noise = torch.randn(one.sample.shape, generator=generator).to(one.sample)
        assert torch.equal(one.predict(one.sample + noise), other.predict(one.sample + noise))
        assert one.engine == other.engine
    assert torch.equal(a.decode(a[-1].sample + noise), b.decode(a[-1].sample + noise))
    assert a[0].layout == b[0].layout


# The same numbers.

MAPS = """
import sys
import denoscope

def asked(trace, name):
    if name == "quick":
        yield denoscope.DFRise(num_masks=8)(trace, steps=[1])
        yield denoscope.Words()(trace, steps=[1])
        yield denoscope.Relevance()(trace, steps=[2])
    else:
        yield denoscope.Concepts(("circle", "square"))(trace, steps=[1])
        yield denoscope.DFCam()(trace, steps=[0])

def maps_of(trace, name):
    return {f"{i} {key}": each.values for i, maps in enumerate(asked(trace, name)) for key, each in maps.items()}
"""
ASKED = """
import numpy, torch
torch.set_num_threads(int(sys.argv[4]))
trace = denoscope.Trace.load(sys.argv[1], denoscope.load("shapes"))
numpy.savez(sys.argv[2], **maps_of(trace, sys.argv[3]))
"""


@pytest.mark.parametrize("name", ["quick", pytest.param("others", marks=pytest.mark.slow)])
def test_maps_in_a_new_process(circle, stored, tmp_path, name):
    command = [
        sys.executable,
        "-c",
        MAPS + ASKED,
        str(stored),
        str(tmp_path / "maps.npz"),
        name,
        str(torch.get_num_threads()),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    scope = {}
    exec(MAPS, scope)
    here = scope["maps_of"](circle, name)
    with np.load(tmp_path / "maps.npz") as there:
        assert set(there) == set(here) and len(here) > 3
        for key, values in here.items():
            assert values.dtype == there[key].dtype and values.shape == there[key].shape, key
            assert values.tobytes() == there[key].tobytes(), key


def test_a_target_with_a_classifier(circle, shapes, stored):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 3))
    score = ClassScore(denoscope.load_classifier(module, ["a", "b", "c"], size=32, mean=0.5, std=0.5), "a")
    back = Trace.load(stored, shapes)
    for attributor in (
        denoscope.IntegratedGradients(score, n_steps=2),
        denoscope.Occlusion(score, sliding_window_shapes=(4, 8, 8), strides=(4, 8, 8)),
    ):
        assert attributor(circle, steps=[2]).identical(attributor(back, steps=[2]))


@pytest.mark.parametrize(
    "name", ["sdxl-text", "sd-rescale", "sd-inpaint", "sd-controlnet", "flux", "qwen-image", "wan", "sd-semantic"]
)
def test_families(name, tmp_path):
    model, call = family(name)
    trace = model.trace(**call, seed=1)
    refuse_difference(trace, Trace.load(trace.save(tmp_path / "trace"), model))


@pytest.mark.parametrize("name", ["sd-inpaint", "sd-controlnet"])
def test_pictures_of_the_call(name, tmp_path):
    model, call = family(name)
    trace = model.trace(**call, seed=1)
    back = Trace.load(trace.save(tmp_path / "trace"), model)
    given = {key: value for key, value in trace.call.items() if isinstance(value, Image.Image)}
    assert given
    for key, value in given.items():
        assert back.call[key].mode == value.mode and np.array_equal(np.array(back.call[key]), np.array(value))


@pytest.mark.slow
def test_other_calls(stable_diffusion, tmp_path):
    """A schedule, another scheduler, a batch with a generator for each, one picture of it, and half precision."""
    model = denoscope.load(stable_diffusion)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    calls = {
        "late": dict(prompt="a red circle", seed=2, schedule="late", num_inference_steps=3),
        "swapped": dict(prompt="a red circle", seed=2, scheduler="euler", num_inference_steps=3),
        "batch": dict(prompt=["a red circle", "a square"], generator=generators, num_inference_steps=2),
        "arrays": dict(prompt="a circle", seed=1, num_inference_steps=2, output_type="np"),
        "tuple": dict(prompt="a circle", seed=1, num_inference_steps=2, return_dict=False),
        "latent": dict(prompt="a circle", seed=1, num_inference_steps=2, output_type="latent"),
    }
    for name, call in calls.items():
        trace = model.trace(**call)
        back = Trace.load(trace.save(tmp_path / name), model)
        refuse_difference(trace, back)
        assert {key: value for key, value in back.call.items() if key != "generator"} == trace.call
        if name == "batch":
            refuse_difference(trace.picture(1), back.picture(1))
            one = trace.picture(1)
            refuse_difference(one, Trace.load(one.save(tmp_path / "one"), model))
            assert one.image.tobytes() == Trace.load(tmp_path / "one").image.tobytes()
    half = denoscope.load(stable_diffusion.to(torch.bfloat16))
    trace = half.trace("a circle", seed=1, num_inference_steps=2)
    back = Trace.load(trace.save(tmp_path / "half"), half)
    stable_diffusion.to(torch.float32)
    assert back[0].sample.dtype == torch.bfloat16 and torch.equal(back[1].model_output, trace[1].model_output)
    with pytest.raises(ModelError, match=r"pipe\.vae is in float32, and the recorded one was in bfloat16"):
        Trace.load(tmp_path / "half", denoscope.load(stable_diffusion))


def test_what_steps_share_is_stored_once(shapes, tmp_path):
    sizes = []
    for steps in (4, 8):
        trace = shapes.trace(PROMPT, seed=0, num_inference_steps=steps)
        back = Trace.load(trace.save(tmp_path / str(steps)), shapes)
        assert back.nbytes == trace.nbytes
        assert all(a.prev_sample is b.sample for a, b in pairwise(back))
        sizes.append(sum(file.stat().st_size for file in (tmp_path / str(steps)).rglob("*.safetensors")))
        whole_size = sum(file.stat().st_size for file in (tmp_path / str(steps)).rglob("*") if file.is_file())
        assert abs(whole_size - trace.stored_nbytes) < 0.1 * whole_size + 8192, "the size is told before"
    sample = trace[0].sample.nbytes
    assert sizes[1] - sizes[0] < 4 * (2 * sample + 1500), "a further step is a prediction and a sample"


def test_a_loaded_trace_is_stored_again(circle, shapes, stored, tmp_path):
    again = Trace.load(stored, shapes).save(tmp_path / "again")
    refuse_difference(circle, Trace.load(again, shapes))


def test_channels_last_stays(tmp_path):
    """The order of numbers in memory is kept, as sums may depend on it; so is what is no whole tensor."""
    packer = packing.Packer({}, {})
    tensors = [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6).t(),
        torch.randn(4, 6)[:, ::2],
        torch.randn(3, 1).expand(3, 5),
        torch.randn(3, 2, dtype=torch.complex64),
        torch.tensor(3.0, dtype=torch.float64),
        torch.zeros(0, 4),
        torch.randn(3).bfloat16(),
        torch.tensor([True, False]),
    ]
    node = packer.pack(tensors)
    about = storing._write_tensors(tmp_path, packer)
    files = reading._Files(tmp_path, {"tensors": about, "pictures": []})
    cpu = torch.device("cpu")
    back = packing.Unpacker(
        lambda i: packing.brought_back(files.tensor(i), about[i], cpu), None, None, lambda name: cpu
    ).unpack(json.loads(json.dumps(node)))
    for one, other in zip(tensors, back, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    assert [each.stride() for each in back[:2]] == [each.stride() for each in tensors[:2]]


def test_large_tensors_lie_in_several_files(circle, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "LARGEST_FILE", 20_000)
    place = circle.save(tmp_path / "trace")
    assert len(list(place.glob("tensors-*.safetensors"))) > 2
    refuse_difference(circle, Trace.load(place, shapes))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"])
def test_modes_of_pictures(mode):
    numbers = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    picture = Image.fromarray(numbers, "RGBA").convert("RGB").convert(mode if mode != "I;16" else "I")
    picture = picture if mode != "I;16" else picture.convert("I;16")
    end, content = packing.file_of(picture)
    back = packing.picture_of(f"0000.{end}", content)
    assert back.mode == picture.mode == mode and back.size == picture.size
    assert np.array_equal(
        np.array(back.convert("RGB") if mode == "P" else back),
        np.array(picture.convert("RGB") if mode == "P" else picture),
    )


def test_values_come_back():
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    torch.rand(2, generator=generator)
    values = [
        None, True, 3, 0.1, float("inf"), "ü", (1, (2, [3])), {1: "a", "b": {"c": (4,)}}, {"x", "y"}, range(2, 9, 3),
        torch.float16, torch.device("cpu"), torch.Size([2, 3]), np.float32(0.3), packing.Missing("function"),
        ReplayError("why"),
    ]  # fmt: skip
    packer = packing.Packer({}, {id(generator): (generator.device, state)})
    node = json.loads(json.dumps(packer.pack([values, [generator, generator]])))
    unpacker = packing.Unpacker(lambda i: packer.tensors[i].tensor, None, None, torch.device)
    back, (first, second) = unpacker.unpack(node)
    assert back[:-1] == values[:-1] and type(back[13]) is np.float32
    assert type(back[-1]) is ReplayError and str(back[-1]) == "why"
    assert first is second and torch.equal(first.get_state(), state), "as it was before the call"
    with pytest.raises(ValueError, match="unknown kind"):
        unpacker.unpack({"objects": 1})
    with pytest.raises(InputError, match="another package"):
        unpacker.unpack({"output": "os:system", "fields": {}})


# Without the model.


def test_without_the_model(circle, stored):
    alone = Trace.load(stored)
    assert alone.image.tobytes() == circle.image.tobytes() and alone.pictures == 1
    for one, other in zip(circle, alone, strict=True):
        assert torch.equal(one.sample, other.sample) and torch.equal(one.model_output, other.model_output)
        assert torch.equal(one.pred_original_sample, other.pred_original_sample)
        assert one.log_snr == other.log_snr and one.timestep == other.timestep and one.layout == other.layout
    assert alone.guidance_in_effect(7.5) == circle.guidance_in_effect(7.5)
    assert alone.model.name == "shapes" and "AbsentModel" in repr(alone.model)
    assert alone.nbytes == circle.nbytes
    sample = alone[1].sample
    for ask in (
        lambda: alone[1].predict(sample),
        lambda: alone[1].half(0),
        lambda: alone[1].again(),
        lambda: alone[1].repeat(),
        lambda: alone[1].with_sample(sample),
        lambda: alone[1].denoiser,
        lambda: alone[1].engine,
        lambda: alone[1].clean(),
        lambda: alone.decode(sample),
        lambda: alone.samples_decoded(),
        lambda: alone.model.layers(),
        lambda: denoscope.DFRise(num_masks=4)(alone, steps=[1]),
        lambda: denoscope.DFCam()(alone, steps=[1]),
        lambda: denoscope.Words()(alone),
        lambda: denoscope.Relevance()(alone, steps=[1]),
        lambda: denoscope.Concepts(("circle", "square"))(alone, steps=[1]),
    ):
        with pytest.raises(ModelError, match=r"without its model, \"shapes\".*Trace\.load\(.*, model\)"):
            ask()
    with pytest.raises(InputError, match="Copy the folder"):
        alone.save(stored.parent / "again")


# Another model.


def test_another_model(stored, circle, shapes, stable_diffusion):
    with pytest.raises(ModelError, match=r"is another: its pipe\.|is another: other weights|is another: it "):
        Trace.load(stored, denoscope.load(stable_diffusion))
    weight = shapes.denoiser.conv_in.weight
    before = weight.data.clone()
    try:
        weight.data[0, 0, 0, 0] += 1e-3  # what merging a LoRA writes to has the same address and counter
        with pytest.raises(ModelError, match=r"other weights are in pipe\.unet \(by their SHA-256; the same are"):
            Trace.load(stored, shapes)
    finally:
        weight.data.copy_(before)
    Trace.load(stored, shapes)
    with pytest.raises(InputError, match="Give the model itself"):
        Trace.load(stored, shapes.pipeline)


def test_another_setting(stable_diffusion, tmp_path):
    model = denoscope.load(stable_diffusion)
    place = model.trace("a circle", seed=0, num_inference_steps=2).save(tmp_path / "trace")
    factor = stable_diffusion.vae.config.scaling_factor
    stable_diffusion.vae.register_to_config(scaling_factor=2 * factor)
    try:
        with pytest.raises(ModelError, match=r"setting vae\.scaling_factor"):
            Trace.load(place, model)
    finally:
        stable_diffusion.vae.register_to_config(scaling_factor=factor)


def test_another_scheduler_now(stable_diffusion, tmp_path):
    """The pipeline has another scheduler by now: the recorded one is made again."""
    model = denoscope.load(stable_diffusion)
    trace = model.trace("a circle", seed=0, num_inference_steps=3, guidance_rescale=0.7)
    place = trace.save(tmp_path / "trace")
    own = stable_diffusion.scheduler
    stable_diffusion.scheduler = small.SCHEDULERS["euler"]()
    back = Trace.load(place, model)
    assert back[1].engine == "resumed in batches"
    refuse_difference(trace, back)
    assert type(stable_diffusion.scheduler) is diffusers.EulerDiscreteScheduler
    stable_diffusion.scheduler = own


def test_digests(stable_diffusion, monkeypatch):
    """Against a slow definition; remembered until a weight changes."""
    import hashlib

    unet = stable_diffusion.unet
    lines = []
    for name, tensor in sorted(unet.state_dict().items()):
        content = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}")
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert weights_of(stable_diffusion)["unet"]["sha256"] == expected
    hashed = []
    line = digests._line
    monkeypatch.setattr(digests, "_line", lambda entry: hashed.append(entry) or line(entry))
    weights_of(stable_diffusion)
    assert not hashed
    with torch.no_grad():
        unet.conv_in.bias += 1
    assert weights_of(stable_diffusion)["unet"]["sha256"] != expected and hashed
    with torch.no_grad():
        unet.conv_in.bias -= 1


def test_other_versions(stored, shapes, tmp_path):
    place = shutil.copytree(stored, tmp_path / "trace")
    record = json.loads((place / "trace.json").read_text())
    record["versions"] |= {"torch": "1.0", "diffusers": "0.1"}
    (place / "trace.json").write_text(json.dumps(record))
    with pytest.warns(reading.VersionWarning, match=r"torch 1\.0 \(here .*and diffusers 0\.1") as heard:
        Trace.load(place, shapes)
    assert len(heard) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trace.load(place)


# What cannot be stored.


def test_a_callback_is_told(stable_diffusion, tmp_path):
    """With it the call cannot be made again: the denoiser alone can be asked, and the rest refuses."""
    model = denoscope.load(stable_diffusion)

    def callback(pipe, index, timestep, tensors):
        return tensors

    trace = model.trace("a circle", seed=0, num_inference_steps=3, callback_on_step_end=callback)
    with pytest.warns(storing.IncompleteTraceWarning, match=r"callback_on_step_end of the call \(a function\)"):
        trace.save(tmp_path / "direct")
    back = Trace.load(tmp_path / "direct", model)
    assert back[1].engine == trace[1].engine == "direct" and repr(back.call["callback_on_step_end"]) == (
        "<not stored: a function>"
    )
    refuse_difference(trace, back)
    rescaled = model.trace(
        "a circle", seed=0, num_inference_steps=3, callback_on_step_end=callback, guidance_rescale=0.7
    )
    with pytest.warns(storing.IncompleteTraceWarning):
        rescaled.save(tmp_path / "resumed")
    back = Trace.load(tmp_path / "resumed", model)
    with pytest.raises(ReplayError, match="callback_on_step_end of the call"):
        back[1].predict(back[1].sample)
    assert back.image.tobytes() == rescaled.image.tobytes()


def test_what_cannot_be_stored(circle, tmp_path):
    odd = Trace(circle.steps, (object(),), circle.call, circle.model)
    with pytest.raises(InputError, match=r"trace\.result, holds a object"):
        odd.save(tmp_path / "odd")
    with pytest.raises(InputError, match="belongs to no recorded run"):
        Trace([replace(circle[0], run=None)], circle.result, {}, circle.model).save(tmp_path / "odd")
    assert not list(tmp_path.iterdir())


# Whole or not at all.


def test_places(circle, tmp_path):
    place = circle.save(tmp_path / "a" / "trace")
    with pytest.raises(InputError, match=r"a trace is there.*overwrite=True"):
        circle.save(place)
    circle.save(place, overwrite=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"files that no trace has \(notes\.txt\)"):
        circle.save(place, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is a file"):
        circle.save(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    with pytest.raises(InputError, match=r"holds no trace \(it holds x"):
        circle.save(tmp_path / "other", overwrite=True)
    (tmp_path / "empty").mkdir()
    circle.save(tmp_path / "empty")
    for folder in (tmp_path / "none", tmp_path / "other"):
        with pytest.raises(InputError, match="No trace could be read"):
            Trace.load(folder)


def test_too_little_room(circle, tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "free_bytes_at", lambda place: circle.stored_nbytes - 1)
    with pytest.raises(OutputError, match=r"it takes 0\.\d MB, and 0\.\d MB are free there\. Nothing was written"):
        circle.save(tmp_path / "trace")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(circle, tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storing, "save_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        circle.save(tmp_path / "trace")
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, time
import denoscope
from denoscope.recording import storing
def stopped(tensors, path):
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
storing.save_file = stopped
model = denoscope.load("shapes")
model.pipeline.set_progress_bar_config(disable=True)
model.trace("a red circle", seed=0, num_inference_steps=1).save(sys.argv[1])
"""


def test_killed_while_saving(circle, tmp_path):
    place = tmp_path / "trace"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        with pytest.raises(InputError, match="another run is writing there now"):
            circle.save(place)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not place.exists() and any(each.suffix == ".partial" for each in tmp_path.iterdir())
    with pytest.raises(InputError, match="No trace could be read"):
        Trace.load(place)
    circle.save(place)
    assert [each.name for each in tmp_path.iterdir()] == ["trace"], "what the killed process left is removed"


@pytest.mark.parametrize("damage", ["tensors-0000.safetensors", "pictures/0000.png", "trace.json"])
def test_a_damaged_folder(stored, shapes, tmp_path, damage):
    place = shutil.copytree(stored, tmp_path / "trace")
    content = (place / damage).read_bytes()
    (place / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot be read|No trace could be read"):
        Trace.load(place, shapes)
    (place / damage).unlink()
    with pytest.raises(InputError, match=r"cannot be read|No trace could be read"):
        Trace.load(place)


def test_a_later_format(stored, tmp_path):
    place = shutil.copytree(stored, tmp_path / "trace")
    record = json.loads((place / "trace.json").read_text())
    (place / "trace.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(InputError, match="has the format 99"):
        Trace.load(place)


# Elsewhere.


class Elsewhere(torch.Tensor):
    """A tensor on a stand-in for a second device, which says that it is on "meta" and has its numbers in `numbers`.

    Operations of such tensors alone give such tensors; with an ordinary one they fail, as on two real devices.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="meta"
        )
        made.numbers = inner
        return made

    def data_ptr(self):
        return self.numbers.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = tensors_of((args, kwargs))
        if any(not isinstance(each, Elsewhere) and each.ndim for each in tensors):
            raise RuntimeError(f"{function} of tensors on two devices")
        args, kwargs = map_tensors(lambda each: getattr(each, "numbers", each), (args, kwargs))
        comes_home = kwargs.get("device") == torch.device("cpu")
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        result = function(*args, **kwargs)
        return result if comes_home else map_tensors(lambda each: Elsewhere(each), result)


class Moving(TorchDispatchMode):
    """While open, what is moved to "meta" becomes a tensor `Elsewhere`; `moves` counts."""

    def __init__(self):
        super().__init__()
        self.moves = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("meta"):
            self.moves += 1
            tensor = args[0].numbers if isinstance(args[0], Elsewhere) else args[0]
            return Elsewhere(tensor.detach().clone())
        return function(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("recorded_there", [False, True])
@pytest.mark.parametrize("name", ["sd-text", "sd-rescale"])
def test_kept_elsewhere(name, recorded_there, monkeypatch):
    """On a stand-in for the host: tensors lie there, come home when they are asked for, and the maps are the same."""
    for module in (traces, models):
        monkeypatch.setattr(module, "device_of", lambda device: None if device is None else torch.device(device))
    model, call = family(name)
    here = model.trace(**call, seed=1)
    with Moving():
        there = model.trace(**call, seed=1, keep="meta") if recorded_there else here.to("meta")
        tensors = [each for step in there for each in (step.sample, step.model_output, step.prev_sample)]
        for step in there:
            tensors += tensors_of([(one.args, one.kwargs) for one in step.direct.calls] if step.direct else [])
        tensors += [each.sample for each in there[0].run.resumption.steps]
        assert all(isinstance(each, Elsewhere) for each in tensors)
        pairs = [(a.prev_sample.data_ptr(), b.sample.data_ptr()) for a, b in pairwise(there)]
        assert all(a == b for a, b in pairs), "shared there as well"
        for one, other in zip(here, there, strict=True):
            assert other.home == torch.device("cpu") and torch.equal(one.sample, other.sample.numbers)
            noise = torch.randn(one.sample.shape, generator=torch.Generator().manual_seed(2))
            assert torch.equal(one.predict(one.sample + noise), other.predict(one.sample + noise))
            answer = other.predict(other.sample)
            assert isinstance(answer, Elsewhere) and torch.equal(answer.numbers, one.predict(one.sample))
            assert one.engine == other.engine
            assert torch.equal(one.again(), other.again())
        assert isinstance(there.decode(there[-1].prev_sample), Elsewhere)
        assert torch.equal(here.decode(here[-1].prev_sample), there[-1].brought().decode(here[-1].prev_sample))
        rise = denoscope.DFRise(num_masks=4)
        assert rise(here, steps=[1]).identical(rise(there, steps=[1]))
        assert denoscope.Words()(here).identical(denoscope.Words()(there))
        back = there.to("cpu")
        refuse_difference(here, back)


def test_moved_to_where_it_is(circle):
    refuse_difference(circle, circle.to("cpu"))
    with pytest.raises(ModelError, match="meta"):
        circle.to("meta")
    keeper = Keeper(torch.device("cpu"))
    tensor = torch.zeros(3)
    assert keeper(tensor) is tensor


def test_keep_is_a_word_of_the_recording(shapes, circle, stable_diffusion):
    kept = shapes.trace(PROMPT, seed=0, num_inference_steps=4, keep="cpu")
    refuse_difference(circle, kept)
    assert kept.call == {**circle.call, "keep": "cpu"}

    class Keeping(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt=None, keep=None, **kwargs):
            return super().__call__(prompt, **kwargs)

    own = denoscope.load(Keeping(**stable_diffusion.components, requires_safety_checker=False))
    with pytest.raises(InputError, match="keep='cpu' was given, and Keeping has an argument keep of its own"):
        own.trace("a circle", keep="cpu")
