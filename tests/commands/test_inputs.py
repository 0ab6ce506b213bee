"""Pictures, other pipelines, layers and further arguments, on the command line and in a request."""

import hashlib
import json
import math
import re
import shlex
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import xarray as xr
from from_pictures import controlnet, image_variation, img2img, inpaint, left_half, photograph, unclip_img2img
from pages import Page
from PIL import Image
from small import PIPELINES, refusal, stable_diffusion

import denoscope
from denoscope import cli
from denoscope.commands.compare import compare
from denoscope.commands.comparisons import Comparison
from denoscope.commands.explain import call_of, explain, model_for
from denoscope.commands.inputs import InputPicture
from denoscope.commands.literals import kept_pairs, read_pairs, read_value, written_pair
from denoscope.commands.requests import Request
from denoscope.errors import ModelError
from denoscope.recording.tasks import TASKS, for_task
from denoscope.results.explanations import Explanation

PROMPT = "a red circle"
SHORT = ("--steps", 6, "--at", "0,1", "--masks", 4)
BUILDERS = {
    "text": stable_diffusion,
    "img2img": img2img,
    "inpaint": inpaint,
    "controlnet": controlnet,
    "variation": image_variation,
    "unclip": unclip_img2img,
    "pixels": PIPELINES["ddpm"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Small pipelines as folders, and the folder of the pictures `cat.png`, `edges.png` and `mask.png`."""
    root = tmp_path_factory.mktemp("ways")
    for name, build in BUILDERS.items():
        build().save_pretrained(root / name)
    photograph(64).save(root / "cat.png")
    photograph(64, seed=1).save(root / "edges.png")
    left_half(64).save(root / "mask.png")
    Image.new("L", (64, 64), 1).save(root / "ones.png")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, folders):
    """Run a command line in this process; {name} stands for a folder or file."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["denoscope", *(str(word).format(**_by_stem(folders)) for word in words)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


def _by_stem(folders) -> dict[str, Path]:
    return {Path(name).stem: path for name, path in folders.items()}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# The command line.

LINES = {
    "img2img": (["--model", "{img2img}", "--image", "{cat}", "--strength", 0.5], "StableDiffusionImg2ImgPipeline"),
    "made of text2img": (
        ["--model", "{text}", "--pipeline", "img2img", "--image", "{cat}", "--negative-prompt", "a blue square"],
        "StableDiffusionImg2ImgPipeline",
    ),
    "inpaint": (
        ["--model", "{text}", "--pipeline", "inpaint", "--image", "{cat}", "--mask-image", "{mask}", "--height", 64,
         "--width", 64, "--call", "padding_mask_crop=null"],
        "StableDiffusionInpaintPipeline",
    ),
    "text2img": (["--model", "{inpaint}", "--pipeline", "text2img", "--call", "eta=0.5"], "StableDiffusionPipeline"),
}  # fmt: skip


@pytest.mark.parametrize("words, pipeline", LINES.values(), ids=LINES)
def test_a_run_is_whole_and_its_command_makes_it_again(run, tmp_path, words, pipeline):
    methods = ("--methods", "df-rise-contrast,df-cam", "--layers", "mid_block", "--layers", "up_blocks.*.resnets.*")
    status, _, err = run("explain", PROMPT, *words, *SHORT, *methods, "--out", "one")
    assert status == 0, err
    record = record_of(tmp_path / "one")
    assert record["pipeline"] == pipeline and record["methods"]["df_cam"]["layers"][0] == "mid_block"
    assert run(*shlex.split(record["command"])[1:], "--out", "two")[0] == 0
    assert record_of(tmp_path / "two")["command"] == record["command"]
    one, two = (xr.open_datatree(tmp_path / name / "explanation.zarr", engine="zarr") for name in ("one", "two"))
    for name in ("df_rise_contrast", "df_cam"):
        assert np.array_equal(one[name]["saliency"], two[name]["saliency"])
    assert one["trace"].to_dataset().identical(two["trace"].to_dataset())


def test_the_picture_is_that_of_the_pipeline_alone(run, tmp_path, folders):
    """Oracle: diffusers, called by hand with the same file."""
    words = ("--model", "{inpaint}", "--image", "{cat}", "--mask-image", "{mask}", "--strength", 0.7)
    assert run("explain", PROMPT, *words, *SHORT, "--methods", "df-rise", "--call", "height=64")[0] == 2  # an option
    assert run("explain", PROMPT, *words, *SHORT, "--methods", "df-rise")[0] == 0
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folders["inpaint"], safety_checker=None)
    pictures = {"image": Image.open(folders["cat.png"]), "mask_image": Image.open(folders["mask.png"])}
    import torch

    call = dict(strength=0.7, num_inference_steps=6, generator=torch.Generator().manual_seed(0))
    by_hand = pipe(PROMPT, **pictures, **call).images[0]
    made = Image.open(tmp_path / "denoscope-out" / "image.png")
    assert np.array_equal(np.asarray(made), np.asarray(by_hand))


def test_everything_given_is_in_the_record_and_on_the_page(run, tmp_path, folders):
    words = ("--model", "{img2img}", "--image", "{cat}", "--negative-prompt", "a blue square", "--call", "eta=0.25")
    assert run("explain", PROMPT, *words, *SHORT, "--methods", "df-rise")[0] == 0
    record = record_of(tmp_path / "denoscope-out")
    digest = hashlib.sha256(folders["cat.png"].read_bytes()).hexdigest()
    assert record["image"] == {"file": str(folders["cat.png"]), "sha256": digest}
    assert (record["negative_prompt"], record["strength"], record["call"]) == ("a blue square", 0.8, {"eta": 0.25})
    said = Page((tmp_path / "denoscope-out" / "report.html").read_text()).said()
    for text in (digest, "a blue square", "eta 0.25", "--call eta=0.25", f"--image {folders['cat.png']}"):
        assert text in said
    plain = record_of_plain(run, tmp_path)
    assert not plain.keys() & {"image", "mask_image", "control_image", "strength", "task", "call", "negative_prompt"}


def record_of_plain(run, tmp_path) -> dict:
    assert run("explain", PROMPT, "--model", "{text}", *SHORT, "--methods", "df-rise", "--out", "plain")[0] == 0
    return record_of(tmp_path / "plain")


@pytest.mark.parametrize("model", ["variation", "unclip"])
def test_a_picture_alone_is_enough_where_the_pipeline_says_so(run, tmp_path, model):
    status, _, err = run("explain", "--model", f"{{{model}}}", "--image", "{cat}", *SHORT, "--methods", "df-cam")
    assert status == 0, err
    assert record_of(tmp_path / "denoscope-out")["prompt"] is None


def test_a_comparison_takes_the_same(run, tmp_path):
    words = ("--model", "{text}", "--pipeline", "img2img", "--image", "{cat}", "--strength", 0.5, "--call", "eta=0.1")
    layers = ("--layers", "mid_block", "--methods", "df-cam")
    status, _, err = run("compare", PROMPT, *words, *SHORT, *layers, "--seeds", "0,1", "--out", "one")
    assert status == 0, err
    told = record_of(tmp_path / "one")
    assert told["failures"] == {} and run(*shlex.split(told["command"])[1:], "--out", "two")[0] == 0
    for name in ("seed-0", "seed-1"):
        one, two = (Explanation.load(tmp_path / place / name) for place in ("one", "two"))
        assert one.pictures.equals(two.pictures) and one.methods()["df_cam"].equals(two.methods()["df_cam"])
        assert one.run["image"]["sha256"] == two.run["image"]["sha256"] and one.run["methods"]["df_cam"]["layers"]


REFUSED = {
    "no image": (["--model", "{text}", "--image", "{cat}"], 'no option "--image"'),
    "the way to one": (["--model", "{text}", "--strength", 0.5], "--pipeline 'img2img'"),
    "no picture at all": (["--model", "{pixels}", "--image", "{cat}"], 'DDPMPipeline has no option "--image"'),
    "no mask": (["--model", "{img2img}", "--image", "{cat}", "--mask-image", "{mask}"], 'no option "--mask-image"'),
    "no control": (["--model", "{text}", "--control-image", "{cat}"], 'no option "--control-image"'),
    "one place": (["--model", "{img2img}", "--image", "{cat}", "--control-image", "{cat}"], "takes one picture"),
    "no strength": (["--model", "{controlnet}", "--control-image", "{cat}", "--strength", 1], 'no option "--strength"'),
    "no height": (["--model", "{img2img}", "--image", "{cat}", "--height", 64], 'no option "--height"'),
    "slip": (["--model", "{text}", "--call", "clip_skipp=1"], 'Did you mean "clip_skip"?'),
    "swallowed": (["--model", "{text}", "--call", "size=1"], 'no option "size"'),
    "no such file": (["--model", "{text}", "--image", "cta.png"], 'The file "cta.png" does not exist'),
    "no picture file": (["--model", "{text}", "--image", __file__], "cannot be read as a photograph"),
    "dark mask": (["--model", "{inpaint}", "--image", "{cat}", "--mask-image", "{ones}"], "0 and 255"),
    "strength": (["--model", "{img2img}", "--image", "{cat}", "--strength", 1.5], "--strength is 1.5"),
    "strength nan": (["--model", "{img2img}", "--image", "{cat}", "--strength", "nan"], "--strength is nan"),
    "said twice": (["--model", "{img2img}", "--strength", 0.5, "--call", "strength=0.3"], 'option "--strength"'),
    "steps twice": (["--model", "{text}", "--call", "num_inference_steps=3"], 'option "--steps"'),
    "seed twice": (["--model", "{text}", "--call", "generator=3"], 'option "--seed"'),
    "file as text": (["--model", "{img2img}", "--call", "image=cat.png"], 'option "--image"'),
    "argument twice": (["--model", "{text}", "--call", "eta=1", "--call", "eta=0"], "eta twice, 1 and 0"),
    "no value": (["--model", "{text}", "--call", "eta"], '"eta" is not NAME=VALUE'),
    "no name": (["--model", "{text}", "--call", "=3"], '"=3" is not NAME=VALUE'),
    "no page": (["--model", "{text}", "--call", "output_type=latent"], "a page shows one picture"),
    "many": (["--model", "{text}", "--call", "num_images_per_prompt=2"], "a page shows one picture"),
    "task": (["--model", "{text}", "--pipeline", "img2image"], 'Did you mean "img2img"?'),
    "no such task": (["--model", "{pixels}", "--pipeline", "inpaint"], "cannot be made into a pipeline for inpaint"),
    "layer": (["--model", "{text}", "--layers", "upblocks", "--methods", "df-cam"], 'There is no layer "upblocks"'),
    "layers of no method": (["--model", "{text}", "--layers", "mid_block"], "Add df-cam or df-cam-reference"),
}
NEED_NO_MODEL = {
    "no such file", "no picture file", "dark mask", "strength", "strength nan", "said twice", "steps twice",
    "seed twice", "file as text", "argument twice", "no value", "no name", "no page", "many", "task",
    "layers of no method",
}  # fmt: skip


OF_COMPARISONS = (
    "no image",
    "swallowed",
    "no such file",
    "dark mask",
    "said twice",
    "task",
    "layer",
    "layers of no method",
)
BY_COMMAND = [("explain", name) for name in REFUSED] + [("compare", name) for name in OF_COMPARISONS]


@pytest.mark.parametrize("command, name", BY_COMMAND)
def test_refusals_come_before_anything_is_computed(run, tmp_path, monkeypatch, command, name):
    words, said = REFUSED[name]
    monkeypatch.setattr(diffusers.DiffusionPipeline, "progress_bar", lambda *_, **__: pytest.fail("it ran"))
    if name in NEED_NO_MODEL:
        monkeypatch.setattr("denoscope.commands.explain.load", lambda *_, **__: pytest.fail("a model was loaded"))
    prompt = [] if "{pixels}" in words else [PROMPT]
    methods = [] if "--methods" in words else ["--methods", "df-rise"]
    several = ["--seeds", "0,1"] if command == "compare" else []
    status, out, err = run(command, *prompt, *several, *words, *SHORT, *methods)
    assert (status, out, list(tmp_path.iterdir())) == (2, "", []), err
    (line,) = [line for line in err.splitlines() if line.startswith("denoscope: ")]
    assert said in line and "Traceback" not in err


def test_steps_are_refused_early_where_their_number_is_known(run, tmp_path):
    """A strength leaves out some steps and adds none; time steps of one's own are as many as they are."""
    words = ("--model", "{img2img}", "--image", "{cat}", "--methods", "df-rise", "--masks", 4)
    status, _, err = run("explain", PROMPT, *words, "--steps", 6, "--at", 6)
    assert status == 2 and "Step 6" in err and "Generating" not in err
    status, _, err = run("explain", PROMPT, *words, "--steps", 6, "--at", 3, "--strength", 0.5)
    assert status == 2 and "this run has 3 steps" in err
    grid = ("--model", "{text}", "--methods", "df-rise", "--masks", 4, "--call", "timesteps=[900, 600, 300, 100]")
    assert run("explain", PROMPT, *grid, "--steps", 2, "--at", 3)[0] == 0
    assert record_of(tmp_path / "denoscope-out")["timesteps"] == [900, 600, 300, 100]


def test_no_prompt_and_an_empty_one(run, tmp_path):
    """An empty prompt needs a picture to start from."""
    words = ("--model", "{img2img}", "--image", "{cat}", *SHORT, "--methods", "df-rise", "--overwrite")
    assert run("explain", "", *words)[0] == 0
    status, _, err = run("explain", *words)
    assert status == 2 and "No prompt was given" in err
    status, _, err = run("explain", PROMPT, *words[:2], *words[4:])
    assert status == 2 and "no image was given" in err


# Python.


def asked(folders, **settings) -> Request:
    return Request(PROMPT, "small", **{"steps": 6, "masks": 4, "methods": ("df-rise",), "at": (0,), **settings})


def test_a_control_picture_goes_where_the_call_has_a_place_for_it(folders):
    cat, edges = str(folders["cat.png"]), str(folders["edges.png"])
    for kind, request, names in (
        (None, asked(folders, control_image=edges), {"image": edges}),
        ("ControlNetImg2Img", asked(folders, control_image=edges, image=cat), {"image": cat, "control_image": edges}),
    ):
        pipeline = controlnet() if kind is None else controlnet(getattr(diffusers, f"StableDiffusion{kind}Pipeline"))
        call = call_of(denoscope.load(pipeline), request)
        for name in ("image", "control_image"):
            assert (name in call) == (name in names)
        for name, file in names.items():
            assert np.array_equal(np.asarray(call[name]), np.asarray(Image.open(file)))


def test_a_controlnet_is_recorded_and_has_a_page(folders, tmp_path):
    """Oracle: the pipeline by hand. A comparison without methods shows the runs."""
    pipe = controlnet()
    pipe.set_progress_bar_config(disable=True)
    request = asked(folders, control_image=folders["edges.png"], call={"controlnet_conditioning_scale": 0.5})
    result = compare(Comparison(request, "seed", (0, 1), methods=()), models={"small": denoscope.load(pipe)})
    import torch

    by_hand = pipe(
        PROMPT,
        image=Image.open(folders["edges.png"]),
        controlnet_conditioning_scale=0.5,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert np.array_equal(result.explanations["seed-1"].pictures["image"], np.asarray(by_hand))
    result.save(tmp_path / "out")
    page = Page((tmp_path / "out" / "seed-1" / "report.html").read_text()).said()
    assert "controlnet conditioning scale 0.5" in page and "edges.png" in page


def test_a_picture_for_a_video_is_its_only_frame(folders):
    class Filmed(diffusers.DDPMPipeline):
        def __call__(self, video, generator=None, num_inference_steps=3):
            raise NotImplementedError

    request = Request(None, image=folders["cat.png"], methods=("df-rise",))
    (frame,) = call_of(denoscope.load(Filmed(**PIPELINES["ddpm"]().components)), request)["video"]
    assert frame.size == (64, 64)


def test_a_seed_is_the_pictures_where_the_pipeline_has_another(folders):
    class Seeded(diffusers.DDPMPipeline):
        def __call__(self, generator=None, num_inference_steps=3, seed=None):
            return super().__call__(1, generator, num_inference_steps)

    parts = PIPELINES["ddpm"]().components
    request = Request(None, "small", seed=5, steps=3, methods=("df-rise",), masks=4, at=(0,))
    made, same = (explain(request, model=denoscope.load(kind(**parts))) for kind in (Seeded, diffusers.DDPMPipeline))
    assert np.array_equal(made.pictures["image"], same.pictures["image"])


def test_a_picture_is_read_upright_in_rgb_and_a_mask_in_grey(tmp_path):
    """Ground truth: EXIF orientation 6 turns by 90 degrees, transparent is white."""
    turned, exif = Image.new("RGB", (4, 2), "red"), Image.Exif()
    turned.putpixel((0, 0), (0, 0, 255))
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    picture = InputPicture.read("image", tmp_path / "turned.png").picture
    assert (picture.mode, picture.size, picture.getpixel((1, 0))) == ("RGB", (2, 4), (0, 0, 255))
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert InputPicture.read("image", tmp_path / "clear.png").picture.getpixel((0, 0)) == (255, 255, 255)
    Image.new("1", (2, 2), 1).save(tmp_path / "mask.png")
    mask = InputPicture.read("mask_image", tmp_path / "mask.png").picture
    assert (mask.mode, mask.getextrema()) == ("L", (255, 255))


def test_a_request_holds_arguments_of_its_own():
    sizes = [1, 2]
    request = Request(PROMPT, call={"sizes": sizes, "eta": 0.5})
    sizes.append(3)
    assert request.call == (("sizes", [1, 2]), ("eta", 0.5)) and request == Request(PROMPT, call=request.call)
    for value in (math.nan, math.inf, np.float64(0.5), object(), print):
        assert "cannot be written into a record" in refusal(lambda value=value: Request(PROMPT, call={"eta": value}))
    assert "layers is 'mid_block'" in refusal(Request, PROMPT, layers="mid_block")
    assert "looks into layers" in refusal(Comparison, Request(PROMPT, layers=("mid_block",)), "seed", (0, 1))


VALUES = [
    "a cat", "3", "'3'", "true", "True", "None", "null", "1e3", "", " x", "[1, 2]", "{'a': 1}", '{"a": true}', "NaN",
    "inf", "2024-01-01", "(1,", "1is", "a=b", "-1", "\\d", '"', "'a\" b'", "1_000", "()",
]  # fmt: skip


@pytest.mark.parametrize("typed", VALUES)
def test_values_are_written_as_they_are_read(typed):
    """Identity: reading, writing and reading again."""
    ((name, value),) = read_pairs([f"some-name={typed}"])
    assert name == "some_name" and read_pairs([written_pair(name, value)]) == ((name, value),)
    assert kept_pairs({name: value}) == ((name, value),)
    words = shlex.split(Request(PROMPT, call={name: value}).command())
    assert read_pairs([words[words.index("--call") + 1]]) == ((name, value),)


def test_values_of_either_language():
    expected = {"true": True, "True": True, "null": None, "None": None, "0.5": 0.5, '{"a": true}': {"a": True}}
    assert {typed: read_value(typed) for typed in expected} == expected
    assert read_value("NaN") == "NaN" and read_value("'3'") == "3" and read_value("a cat") == "a cat"


# Pipelines of the same parts.


@pytest.mark.parametrize("name", TASKS)
def test_a_pipeline_for_a_task_shares_the_parts_and_leaves_the_first_as_it_is(name):
    pipeline = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    before = dict(pipeline.config)
    other = for_task(pipeline, name)
    assert re.sub("StableDiffusion|Pipeline", "", type(other).__name__).lower() == name.removeprefix("text2img")
    assert other.unet is pipeline.unet and other._progress_bar_config == {"disable": True}
    assert type(pipeline) is diffusers.StableDiffusionPipeline and dict(pipeline.config) == before
    assert for_task(pipeline, None) is pipeline


def test_a_model_that_is_handed_over_is_made_into_the_pipeline_too(folders):
    model = denoscope.load(stable_diffusion())
    request = asked(folders, pipeline="img2img", image=folders["cat.png"], strength=0.5)
    assert type(model_for(request, model).pipeline) is diffusers.StableDiffusionImg2ImgPipeline
    assert len(explain(request, model=model).pictures["step"]) == 3
    assert type(model.pipeline) is diffusers.StableDiffusionPipeline
    assert 'no pipeline "inpainting"' in refusal(Request, PROMPT, pipeline="inpainting", kind=ModelError)
