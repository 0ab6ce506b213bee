"""Frames are the formulas they say they are, and a photograph of any kind arrives as the right RGB values."""

import io
import math
import operator
import warnings
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from small import SCHEDULERS

import denoscope
from denoscope import frames
from denoscope.errors import InputError
from denoscope.frames import AnimatedPhotographWarning, blend, ddpm, draw_noise, frames_of, load_photograph
from denoscope.noise import noise_level

CLEAN = torch.linspace(-2, 2.5, 3 * 6 * 5).reshape(3, 6, 5)


def refusal(call, *args, **kwargs) -> str:
    """The one paragraph that an input is refused with."""
    with pytest.raises(InputError) as refused:
        call(*args, **kwargs)
    message = str(refused.value)
    assert "\n" not in message and message.endswith((".", "!", "?")), message
    return message


# The noise.


def test_a_draw_is_the_same_whatever_the_number_of_draws():
    five = draw_noise((3, 8, 8), 5, seed=7)
    for draws in (1, 2, 4):
        assert torch.equal(draw_noise((3, 8, 8), draws, seed=7), five[:draws])
    assert torch.corrcoef(five.flatten(1)).fill_diagonal_(0).abs().max() < 0.3  # 192 values: 4 standard errors


def test_neighbouring_seeds_share_no_draw():
    draws = torch.cat([draw_noise((3, 8, 8), 3, seed=seed) for seed in range(4)])
    assert len(draws.unique(dim=0)) == 12


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    noise = draw_noise((3, 64, 64), 4, seed=0).flatten().double()
    assert torch.equal(torch.get_rng_state(), before)
    n = len(noise)
    assert noise.mean().abs() < 4 / math.sqrt(n) and (noise.var() - 1).abs() < 4 * math.sqrt(2 / n)
    assert ((noise.abs() < 1).double().mean() - math.erf(1 / math.sqrt(2))).abs() < 0.01


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, None, "0", True])
def test_what_is_no_seed(seed):
    assert "The seed is" in refusal(draw_noise, (3, 2, 2), 1, seed)


# The blend.


@pytest.mark.parametrize("count, draws", [(1, 1), (7, 3), (100, 2)])
def test_blend_is_the_formula(count, draws):
    """Oracle: the published line, in float64, element by element."""
    noise = draw_noise(CLEAN.shape, draws, seed=3).double()
    made = blend(CLEAN, count, draws, seed=3)
    assert (len(made), made.draws, made.kind, made.space) == (count, draws, "blend", "input")
    assert torch.equal(made.clean, CLEAN) and torch.equal(made[0].images, noise.float())
    for i, frame in enumerate(made):
        tau = (count - i) / count
        assert frame.images.shape == (draws, *CLEAN.shape)
        torch.testing.assert_close(frame.images.double(), (1 - tau) * CLEAN + tau * noise, atol=1e-6, rtol=0)
        assert (frame.index, frame.timestep, frame.space) == (i, count - i, "input")
        expected = 2 * math.log(i / (count - i)) if i else -math.inf
        assert frame.log_snr == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("make", [blend, ddpm], ids=["blend", "ddpm"])
def test_one_noise_per_draw_is_reused_at_every_frame(make):
    """Identity: any two frames, solved for the picture and the noise, give the same two back."""
    made = make(CLEAN.double(), count=20, draws=2, seed=5)
    noise = draw_noise(CLEAN.shape, 2, seed=5).double()
    for i, j in [(0, 10), (3, 4), (12, 19)]:
        first, second = made[i], made[j]
        determinant = first.a * second.b - first.b * second.a
        torch.testing.assert_close(
            (first.a * second.images - second.a * first.images) / determinant, noise, atol=1e-9, rtol=0
        )
        clean = (second.b * first.images - first.b * second.images) / determinant
        torch.testing.assert_close(clean, CLEAN.double().expand(2, 3, 6, 5), atol=1e-9, rtol=0)


def test_more_draws_extend_fewer():
    one, five = blend(CLEAN, 4, 1, seed=2), blend(CLEAN, 4, 5, seed=2)
    assert all(torch.equal(a.images, b.images[:1]) for a, b in zip(one, five, strict=True))


@pytest.mark.parametrize("make", [blend, ddpm], ids=["blend", "ddpm"])
def test_frames_hold_the_picture_and_the_noise_once(make):
    clean = torch.rand(3, 64, 64)
    made = make(clean, count=100, draws=5)
    held = [value for frame in made for value in vars(frame).values() if isinstance(value, torch.Tensor)]
    held += [value for value in vars(made).values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    assert sum(storages.values()) == (1 + 5) * clean.nbytes
    assert clean.untyped_storage().data_ptr() in storages
    before = clean.clone()
    made[1].images.zero_()
    assert torch.equal(made.clean, before) and made[1].images.abs().sum() > 0


def test_frames_are_a_sequence():
    made = blend(CLEAN, 10, 2)
    assert made[-1] is made[9] and made[2:4] == (made[2], made[3]) and list(made) == [made[i] for i in range(10)]
    assert repr(made) == (
        'Frames "blend": 10, time steps 10 to 1, log-SNR -inf to 4.39, 2 draw(s) of (3, 6, 5), space "input"'
    )
    assert made.options == dict(kind="blend", count=10, draws=2, seed=0)
    assert "tensor" not in repr(made[3])


def test_a_picture_that_asks_for_gradients_gives_frames_that_do_not():
    made = blend(CLEAN.clone().requires_grad_(), 3)
    assert not made[1].images.requires_grad


@pytest.mark.parametrize("make", [blend, ddpm], ids=["blend", "ddpm"])
@pytest.mark.parametrize(
    "options, said",
    [
        (dict(count=0), "count of frames is 0"),
        (dict(count=-5), "count of frames is -5"),
        (dict(count=2.5), "count of frames is 2.5"),
        (dict(count=True), "count of frames is True"),
        (dict(count=np.zeros((9, 9))), "count of frames is array"),
        (dict(draws=0), "number of draws is 0"),
        (dict(draws="two"), "number of draws is 'two'"),
        (dict(seed=-1), "seed is -1"),
    ],
)
def test_what_cannot_be_asked_for(make, options, said):
    assert said in refusal(make, CLEAN, **options)


@pytest.mark.parametrize(
    "clean, said",
    [
        (CLEAN[None], "shape (1, 3, 6, 5)"),
        (CLEAN[:1], "shape (1, 6, 5)"),
        (CLEAN.to(torch.int64), "int64"),
        (CLEAN[:, :0], "empty"),
        (CLEAN / 0, "NaN or infinite"),
        (CLEAN.numpy(), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_noised(clean, said):
    assert said in refusal(blend, clean)


def test_numpy_integers_are_integers():
    made = blend(CLEAN, np.int64(3), np.int32(2), np.uint8(1))
    assert len(made) == 3 and all(type(made.options[key]) is int for key in ("count", "draws", "seed"))


# Schedulers.


def on_a_grid(scheduler, timesteps):
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


def same(scheduler, timesteps):
    return scheduler


BETAS = {name: (lambda name=name: diffusers.DDPMScheduler(beta_schedule=name)) for name in frames.BETA_SCHEDULES}
PLACED = {name: (make, same) for name, make in BETAS.items()} | {
    "ddpm": (SCHEDULERS["ddpm"], same),
    "ddim": (SCHEDULERS["ddim"], same),
    "pndm": (SCHEDULERS["pndm"], same),
    "euler": (SCHEDULERS["euler"], on_a_grid),
    "dpm-solver++": (SCHEDULERS["dpm-solver++"], on_a_grid),
}
"""A scheduler, and how one gets it to take free time steps in add_noise."""


@pytest.mark.parametrize("count", [7, 100])
@pytest.mark.parametrize("name", PLACED)
def test_ddpm_is_the_schedulers_own_add_noise(name, count):
    """Oracle: another instance of the same scheduler, asked with the picture and the noise."""
    make, place = PLACED[name]
    made = ddpm(CLEAN, make(), count, draws=2, seed=4)
    timesteps = [round(frame.timestep) for frame in made]
    reference, noise = place(make(), timesteps), draw_noise(CLEAN.shape, 2, seed=4)
    for frame, timestep in zip(made, timesteps, strict=True):
        expected = reference.add_noise(CLEAN.expand(2, 3, 6, 5), noise, torch.tensor([timestep, timestep]))
        torch.testing.assert_close(frame.images, expected, atol=1e-6, rtol=1e-6)


WALKERS = {
    **SCHEDULERS,
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "single step": diffusers.DPMSolverSinglestepScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "karras": lambda: SCHEDULERS["dpm-solver++"](use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"),
    "karras euler": lambda: SCHEDULERS["euler"](use_karras_sigmas=True),
}


@pytest.mark.parametrize("name", WALKERS)
def test_log_snr_is_the_noise_level_of_the_time_step(name):
    """Oracle: ᾱ of the training schedule, read by `noise_level` as in a trace; closed form log(ᾱ / (1 − ᾱ))."""
    scheduler = WALKERS[name]()
    made = ddpm(CLEAN, scheduler, 40)
    reference = diffusers.DDPMScheduler(
        **{key: scheduler.config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    )
    for frame in made:
        level = noise_level(reference, frame.timestep, None, 1.0)
        assert frame.log_snr == pytest.approx(level.log_snr, abs=1e-5)
        product = float(reference.alphas_cumprod[int(frame.timestep)])
        assert frame.log_snr == pytest.approx(math.log(product / (1 - product)), abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 48, 80, 100, 999, 1000])
def test_time_steps_are_even_and_fall(count):
    timesteps = [frame.timestep for frame in ddpm(CLEAN, count=count)]
    assert timesteps[0] == 999 and all(a > b for a, b in pairwise(timesteps)) and timesteps[-1] >= 0
    for i, timestep in enumerate(timesteps):
        exact = (1 - i / count) * 1000
        assert abs(timestep - max(exact - 1, 0)) <= 0.5 + 1e-9
        if abs(exact % 1 - 0.5) > 1e-6:
            assert timestep == max(round(exact) - 1, 0)


def test_a_name_is_a_ddpm_scheduler():
    for name in frames.BETA_SCHEDULES:
        named, given = ddpm(CLEAN, name, 5), ddpm(CLEAN, BETAS[name](), 5)
        assert all(torch.equal(a.images, b.images) for a, b in zip(named, given, strict=True))
        assert named.options["scheduler"] == "DDPMScheduler" and named.options["scheduler_beta_schedule"] == name
    assert ddpm(CLEAN, None, 5).options == ddpm(CLEAN, "linear", 5).options


def test_the_scheduler_is_left_as_it_is():
    """In the middle of a run, on a grid of its own."""
    scheduler = SCHEDULERS["euler"](use_karras_sigmas=True)
    scheduler.set_timesteps(7)
    scheduler.set_begin_index(3)
    timesteps, sigmas = scheduler.timesteps.clone(), scheduler.sigmas.clone()
    used, fresh = ddpm(CLEAN, scheduler, 10), ddpm(CLEAN, SCHEDULERS["euler"](), 10)
    assert all(torch.equal(a.images, b.images) for a, b in zip(used, fresh, strict=True))
    assert torch.equal(scheduler.timesteps, timesteps) and torch.equal(scheduler.sigmas, sigmas)
    assert scheduler.begin_index == 3 and scheduler.config.use_karras_sigmas


class Broken(diffusers.DDPMScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        raise RuntimeError("no\nnoise here")


class Curved(diffusers.DDPMScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, timesteps) + original_samples * noise


class Level(diffusers.DDPMScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, torch.full_like(timesteps, 500))


@pytest.mark.parametrize(
    "scheduler, said",
    [
        ("liner", 'Did you mean "linear"'),
        ("", "Allowed: linear, scaled_linear, squaredcos_cap_v2"),
        (5, "int cannot noise"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "use the blend"),
        (SimpleNamespace(add_noise=max), "SimpleNamespace cannot noise"),
        (SimpleNamespace(add_noise=max, config=SimpleNamespace(num_train_timesteps=200)), "add_noise failed"),
        (diffusers.RePaintScheduler(), "add_noise failed, NotImplementedError"),
        (Broken(), "add_noise failed, RuntimeError: no noise here"),
        (Curved(), "not a x + b ε"),
        (Level(), "does not fall"),
        (diffusers.DDPMScheduler(num_train_timesteps=50), "a count from 1 to 50"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_scheduler(scheduler, said):
    assert said in refusal(ddpm, CLEAN, scheduler)


# A trace.


@pytest.fixture(scope="module")
def two_pictures(stable_diffusion):
    """One recording for this file: three steps, two pictures."""
    stable_diffusion.scheduler = SCHEDULERS["dpm-solver++"]()
    return denoscope.load(stable_diffusion).trace(["a circle", "a square"], seed=0, num_inference_steps=3)


@pytest.fixture
def trace(two_pictures):
    return two_pictures.picture(0)


def test_clean_frames_are_the_steps_clean_predictions(trace):
    made = frames_of(trace)
    assert (made.kind, made.space, made.draws, made.options) == ("clean", "image", 1, {"kind": "clean"})
    for frame, step in zip(made, trace, strict=True):
        assert torch.equal(frame.images, step.clean()) and not frame.images.requires_grad
        assert (frame.index, frame.timestep, frame.log_snr) == (step.index, step.timestep, step.log_snr)
        assert frame.space == "image" and frame.images.min() >= 0 and frame.images.max() <= 1


def test_sample_frames_are_the_decoded_samples(trace):
    made = frames_of(trace, "sample")
    decoded = torch.from_numpy(trace.samples_decoded()).movedim(-1, 1)
    assert torch.equal(torch.cat([frame.images for frame in made]), decoded)
    finished = np.asarray(trace.image, dtype=np.float32) / 255
    assert np.abs(made.clean.movedim(0, -1).numpy() - finished).max() <= 0.5 / 255 + 1e-4


def test_frames_of_a_trace_are_decoded_when_asked_for(trace, monkeypatch):
    decoded = []
    original = type(trace.model).decode
    monkeypatch.setattr(type(trace.model), "decode", lambda self, x: decoded.append(1) or original(self, x))
    made = frames_of(trace)
    assert len(decoded) == 1  # the finished picture
    assert torch.equal(made[2].images, made[2].images) and len(decoded) == 3


def test_a_grey_sample_is_shown_in_three_channels(trace, monkeypatch):
    monkeypatch.setattr(type(trace.model), "decode", lambda self, x: x[:, :1].sigmoid())
    made = frames_of(trace, "sample")
    assert torch.equal(made[0].images, trace[0].sample[:, :1].sigmoid().repeat(1, 3, 1, 1))
    assert made.clean.shape == (3, *trace[0].sample.shape[2:])


def test_frames_are_of_one_picture(two_pictures):
    assert "frames_of(trace.picture(0))" in refusal(frames_of, two_pictures)
    second = frames_of(two_pictures.picture(1))[1].images
    assert torch.equal(second, two_pictures[1].picture(1).clean())
    assert not torch.equal(second, frames_of(two_pictures.picture(0))[1].images)


def test_what_a_trace_does_not_show(trace):
    assert 'Did you mean "sample"' in refusal(frames_of, trace, "samples")


# Photographs: expected values by hand.

ORANGE, HALF = (200, 100, 50), (228, 178, 153)
"""A colour, and the same at alpha 127/255 on white: 255 − (255 − c) 127 / 255."""


CONVERTED = {"YCbCr", "LAB", "RGBa", "La"}
"""Pillow's own conversion of these may be one off."""


def palette(transparency=None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 10, 20, 30])
    image.putdata([0, 1])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def keyed(image: Image.Image, transparent) -> Image.Image:
    image.info["transparency"] = transparent
    return image


def sixteen(mode: str, value: int) -> Image.Image:
    order = ">u2" if mode.endswith("B") else "<u2"
    return Image.frombytes(mode, (1, 1), np.array([value], order).tobytes())


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("1", (1, 1), 1), [(255,) * 3]),
        (Image.new("L", (1, 1), 77), [(77,) * 3]),
        (Image.new("RGB", (1, 1), ORANGE), [ORANGE]),
        (Image.new("RGBX", (1, 1), (*ORANGE, 0)), [ORANGE]),
        (Image.new("YCbCr", (1, 1), (76, 85, 255)), [(254, 0, 0)]),
        (Image.new("HSV", (1, 1), (0, 255, 200)), [(200, 0, 0)]),
        (Image.new("LAB", (1, 1), (255, 128, 128)), [(255, 255, 255)]),
        (Image.new("CMYK", (1, 1), (55, 155, 205, 0)), [ORANGE]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), [(0, 0, 0)]),
        (Image.new("RGBA", (1, 1), (*ORANGE, 255)), [ORANGE]),
        (Image.new("RGBA", (1, 1), (*ORANGE, 127)), [HALF]),
        (Image.new("RGBA", (1, 1), (*ORANGE, 0)), [(255,) * 3]),
        (Image.new("RGBa", (1, 1), (100, 50, 25, 127)), [HALF]),
        (Image.new("LA", (1, 1), (77, 0)), [(255,) * 3]),
        (Image.new("LA", (1, 1), (100, 127)), [(178,) * 3]),
        (Image.new("La", (1, 1), (50, 127)), [(178,) * 3]),
        (palette(), [ORANGE, (10, 20, 30)]),
        (palette(0), [(255,) * 3, (10, 20, 30)]),
        (palette(bytes([127, 255])), [HALF, (10, 20, 30)]),
        (palette().convert("PA"), [ORANGE, (10, 20, 30)]),
        (keyed(Image.new("L", (1, 1), 5), 5), [(255,) * 3]),
        (keyed(Image.new("RGB", (1, 1), ORANGE), ORANGE), [(255,) * 3]),
        (keyed(sixteen("I;16", 300), 300), [(255,) * 3]),
        (sixteen("I;16", 65535), [(255,) * 3]),
        (sixteen("I;16", 0), [(0,) * 3]),
        (sixteen("I;16", 128 * 257), [(128,) * 3]),
        (sixteen("I;16", 128 * 257 + 129), [(129,) * 3]),
        (sixteen("I;16L", 100 * 257), [(100,) * 3]),
        (sixteen("I;16B", 100 * 257), [(100,) * 3]),
        (Image.new("I", (1, 1), 65535), [(255,) * 3]),
        (Image.new("I", (1, 1), 100 * 257), [(100,) * 3]),
        (Image.new("F", (1, 1), 0.4), [(102,) * 3]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_arrives_as_rgb(image, expected):
    before = image.tobytes()
    photograph = load_photograph(image)
    assert (photograph.mode, photograph.size) == ("RGB", image.size)
    pixels = np.asarray(photograph).reshape(-1, 3).astype(int)
    assert np.abs(pixels - np.array(expected)).max() <= (image.mode in CONVERTED)
    assert image.tobytes() == before and photograph is not image


def test_modes_are_all_of_pillows():
    """Whatever mode Pillow adds, a white-ish or black picture of it is read."""
    for mode in [*Image.MODES, "I;16", "I;16L", "I;16B", "I;16N", "La", "RGBX", "RGBa", "PA"]:
        assert load_photograph(Image.new(mode, (2, 3))).size == (2, 3)


@pytest.mark.parametrize(
    "kind, options, image",
    [
        ("PNG", {}, Image.new("RGB", (3, 2), ORANGE)),
        ("PNG", {}, Image.new("RGB", (1, 1), ORANGE)),
        ("TIFF", {}, Image.new("RGB", (3, 2), ORANGE)),
        ("WEBP", dict(lossless=True), Image.new("RGB", (3, 2), ORANGE)),
        ("BMP", {}, Image.new("RGB", (3, 2), ORANGE)),
        ("GIF", {}, palette()),
        ("PNG", dict(transparency=1), palette()),
        ("TIFF", {}, Image.new("CMYK", (3, 2), (55, 155, 205, 0))),
        ("PNG", {}, Image.fromarray(np.full((2, 3), 65535, np.uint16))),
        ("TIFF", {}, Image.fromarray(np.full((2, 3), 65535, np.uint16))),
    ],
    ids=operator.attrgetter("__class__.__name__"),
)
def test_files_arrive_as_rgb(tmp_path, kind, options, image):
    path = tmp_path / f"a photo ü.{kind.lower()}"
    image.save(path, kind, **options)
    for source in (path, str(path)):
        photograph = load_photograph(source)
        assert (photograph.mode, photograph.size) == ("RGB", image.size)
        sixteen_bits = image.mode.startswith("I")
        assert photograph.getpixel((0, 0)) == ((255, 255, 255) if sixteen_bits else ORANGE)
    if options.get("transparency"):
        assert photograph.getpixel((1, 0)) == (255, 255, 255)


def quarters() -> Image.Image:
    """64 × 32: red, green over blue, white."""
    colours = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
    return Image.fromarray(colours.repeat(16, 0).repeat(32, 1))


def corners(image: Image.Image) -> list[tuple[bool, ...]]:
    w, h = image.size
    return [tuple(c > 127 for c in image.getpixel(at)) for at in [(2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3)]]


RED, GREEN, BLUE, WHITE = (True, False, False), (False, True, False), (False, False, True), (True, True, True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(
    "orientation, size, expected",
    [
        (1, (64, 32), [RED, GREEN, BLUE, WHITE]),
        (3, (64, 32), [WHITE, BLUE, GREEN, RED]),
        (6, (32, 64), [BLUE, RED, WHITE, GREEN]),
        (8, (32, 64), [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_exif_orientation_is_applied(tmp_path, kind, orientation, size, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().save(tmp_path / "turned", kind, exif=exif, **(dict(quality=95) if kind == "JPEG" else {}))
    photograph = load_photograph(tmp_path / "turned")
    assert photograph.size == size and corners(photograph) == expected
    assert corners(load_photograph(photograph)) == expected  # and not applied again


def film(kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    shots = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    shots[0].save(file, kind, save_all=True, append_images=shots[1:], **options)
    return file


@pytest.mark.parametrize("kind, options", [("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", dict(lossless=True))])
def test_of_several_pictures_the_first_is_used(tmp_path, kind, options):
    path = tmp_path / "film"
    path.write_bytes(film(kind, **options).getvalue())
    with pytest.warns(AnimatedPhotographWarning, match="only the first") as warned:
        photograph = load_photograph(path)
    assert photograph.getpixel((1, 1)) == (255, 0, 0) and warned[0].filename == __file__


def test_an_open_film_is_used_where_it_stands_and_stays_open(tmp_path):
    (tmp_path / "film.gif").write_bytes(film("GIF").getvalue())
    with Image.open(tmp_path / "film.gif") as image:
        image.seek(2)
        with pytest.warns(AnimatedPhotographWarning, match="number 2"):
            assert load_photograph(image).getpixel((1, 1)) == (0, 0, 255)
        assert image.tell() == 2
        image.seek(1)
        assert image.convert("RGB").getpixel((1, 1)) == (0, 255, 0)


def test_a_stereo_jpeg_is_one_photograph(tmp_path):
    path = tmp_path / "stereo.mpo"
    path.write_bytes(film("MPO").getvalue())
    red, _, _ = load_photograph(path).getpixel((1, 1))
    assert red > 250


@pytest.mark.parametrize("side, decoded", [(6000, 1500), (2047, 2047), (2048, 1024)])
def test_a_large_jpeg_is_decoded_reduced(tmp_path, side, decoded):
    Image.new("RGB", (side, side), ORANGE).save(tmp_path / "large.jpg", quality=95)
    photograph = load_photograph(tmp_path / "large.jpg")
    assert photograph.size == (decoded, decoded)
    assert np.abs(np.subtract(photograph.getpixel((decoded // 2, 7)), ORANGE)).max() <= 2


def test_the_limit_is_pillows(tmp_path, monkeypatch):
    """A JPEG that fits when decoded reduced is read without a warning; the rest is refused and says the numbers."""
    png, jpeg = tmp_path / "large.png", tmp_path / "large.jpg"
    Image.new("1", (2048, 2100)).save(png)
    Image.new("L", (2048, 2100), 90).save(jpeg)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2048 * 1500)
    message = refusal(load_photograph, png)
    assert "2048 × 2100 is 4300800 pixels" in message and "at most 3072000" in message and "Shrink it" in message
    assert load_photograph(jpeg).size == (1024, 1050)
    assert "2048 × 2100" in refusal(load_photograph, Image.new("L", (2048, 2100)))
    assert "2048 × 2100" in refusal(load_photograph, np.zeros((2100, 2048), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "4300800 pixels" in refusal(load_photograph, jpeg)  # Pillow's own error, at twice its limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_photograph(png).size == (2048, 2100)


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((2, 3), 77, np.uint8), (77,) * 3),
        (np.full((2, 3, 1), 77, np.uint8), (77,) * 3),
        (np.full((2, 3, 3), ORANGE, np.uint8), ORANGE),
        (np.full((2, 3, 4), (*ORANGE, 127), np.uint8), HALF),
        (np.full((2, 3), 65535, np.uint16), (255,) * 3),
        (np.full((2, 3, 3), np.multiply(ORANGE, 257), np.uint16), ORANGE),
        (np.full((2, 3), 100 * 257, ">u2"), (100,) * 3),
        (np.full((2, 3), True), (255,) * 3),
        (np.full((2, 3, 3), (True, False, True)), (255, 0, 255)),
        (np.full((2, 3, 3), np.divide(ORANGE, 255)), ORANGE),
        (np.full((2, 3, 3), np.divide(ORANGE, 255), np.float16), ORANGE),
        (np.full((2, 3), 1.0, np.float32), (255,) * 3),
        (np.full((4, 3, 3), ORANGE, np.uint8)[::2], ORANGE),
        (np.full((1, 1), 0.0), (0,) * 3),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_arrays_arrive_as_rgb(array, expected):
    before = array.copy()
    photograph = load_photograph(array)
    assert photograph.mode == "RGB" and photograph.size == array.shape[1::-1]
    assert np.abs(np.subtract(np.asarray(photograph).astype(int), expected)).max() <= (1 if expected == HALF else 0)
    assert np.array_equal(array, before)
    array[...] = 0
    assert np.abs(np.subtract(photograph.getpixel((0, 0)), expected)).max() <= 1  # a picture of its own


def test_sixteen_bits_and_floats_are_rounded():
    """Oracle: exact arithmetic, for all 16-bit values."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    exact = (2 * values.astype(np.int64) + 257) // 514  # round(v / 257), no ties as 257 is odd
    assert np.array_equal(np.asarray(load_photograph(values))[..., 1], exact)
    assert np.array_equal(np.asarray(load_photograph(values / 65535))[..., 1], exact)


NAN = np.array([[0.5, np.nan]])


@pytest.mark.parametrize(
    "source, said",
    [
        (np.zeros((0, 5), np.uint8), "at least one pixel"),
        (np.zeros((5,), np.uint8), "must be (h, w)"),
        (np.zeros((3, 5, 6), np.uint8), "channels last"),
        (np.zeros((1, 5, 6, 3), np.uint8), "(1, 5, 6, 3)"),
        (np.zeros((5, 6), np.int64), "array.astype(np.uint8)"),
        (np.zeros((5, 6), np.uint32), "uint32"),
        (np.zeros((5, 6), complex), "complex128"),
        (np.zeros((5, 6), object), "object"),
        (NAN, "nan to nan"),
        (NAN * np.inf, "without NaN"),
        (np.full((2, 2), np.inf), "inf"),
        (np.full((2, 2), 1.5), "from 1.5 to 1.5"),
        (np.full((2, 2), -0.1), "from -0.1"),
        (np.full((2, 2), 255.0), "divide those up to 255 by 255"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("I", (2, 2), 70000), "70000"),
        (Image.new("I", (2, 2), -1), "from -1"),
        (Image.new("F", (2, 2), 200.0), "200"),
        (torch.zeros(3, 4, 4), "(Tensor) is not a photograph"),
        (None, "None (NoneType)"),
        (7, "7 (int)"),
        (b"photo.jpg", "(bytes)"),
        ("", "the folder you are in"),
        ("photo\0.jpg", "The file"),
        ("~nobody-of-that-name/photo.jpg", "The file"),
        ("no\nsuch\nphoto.jpg", 'The file "no such photo.jpg" does not exist'),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_photograph(source, said):
    assert said in refusal(load_photograph, source)


def saved(kind: str, size=(64, 64), **options) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "cannot identify"),
        (b"not a picture at all", "cannot identify"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "HEIC, SVG"),
        (saved("JPEG")[:-300], "truncated"),
        (saved("PNG")[:-300], "truncated"),
        (saved("TIFF")[:-3000], "cannot be read"),
        (saved("GIF")[:300], "cannot be read"),
        (saved("WEBP")[:300], "cannot be read"),
        (saved("PNG")[:30], "cannot be read"),
        (saved("JPEG")[:30], "cannot be read"),
    ],
    ids="empty text svg JPEG PNG TIFF GIF WEBP PNG-head JPEG-head".split(),
)
def test_a_broken_file_is_refused(tmp_path, content, said):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some before it fails
        message = refusal(load_photograph, path)
    assert said in message and "photo.jpg" in message


def test_a_missing_file_and_a_folder(tmp_path):
    (tmp_path / "tiger.jpg").write_bytes(saved("JPEG"))
    assert 'Did you mean "tiger.jpg"' in refusal(load_photograph, tmp_path / "tigre.jpg")
    assert "does not exist" in refusal(load_photograph, tmp_path / "nowhere" / "tiger.jpg")
    assert "not a file but a folder" in refusal(load_photograph, tmp_path)


def test_a_closed_picture_is_refused(tmp_path):
    (tmp_path / "photo.png").write_bytes(saved("PNG"))
    with Image.open(tmp_path / "photo.png") as image:
        pass
    assert "cannot be read" in refusal(load_photograph, image)


def test_an_open_picture_stays_open(tmp_path):
    (tmp_path / "photo.png").write_bytes(saved("PNG"))
    with Image.open(tmp_path / "photo.png") as image:
        first, second = load_photograph(image), load_photograph(image)
        assert first.tobytes() == second.tobytes() and image.mode == "L"
        image.getpixel((0, 0))


def test_pillow_is_left_as_it_was(tmp_path):
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    (tmp_path / "photo.jpg").write_bytes(saved("JPEG"))
    load_photograph(tmp_path / "photo.jpg")
    refusal(load_photograph, tmp_path / "no.jpg")
    assert limit == Image.MAX_IMAGE_PIXELS and list(warnings.filters) == filters
