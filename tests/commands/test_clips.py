"""Runs of clips: their pictures as arrays, what is compared between two, and the jobs that take pictures only."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from clips import FRAMES, clip_method, clip_trace
from PIL import Image

from denoscope.commands.attribution import image_of, pictured, refuse_clip
from denoscope.commands.compare import compared
from denoscope.commands.comparisons import Comparison
from denoscope.commands.requests import Request
from denoscope.errors import InputError
from denoscope.evaluation.diagnosis import diagnose, morans_i
from denoscope.evaluation.distances import distances
from denoscope.results.explanations import Explanation


class ClipTrace:
    """The parts of a trace that its pictures are made of, as decoded arrays in [0, 1]."""

    def __init__(self, pictures: xr.Dataset, image: object):
        self.pictures, self.image = pictures, image

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for step in self.pictures["step"].values:
            at_step = self.pictures.sel(step=step)
            yield SimpleNamespace(
                index=int(step), timestep=float(at_step["timestep"]), log_snr=float(at_step["log_snr"])
            )

    def samples_decoded(self) -> np.ndarray:
        return self.pictures["sample"].values / 255

    def clean_decoded(self) -> np.ndarray:
        return self.pictures["pred_original_sample"].values / 255


def forms() -> dict[str, object]:
    clip = clip_trace()["image"].values
    return {
        "list": [Image.fromarray(frame) for frame in clip],
        "array": clip / 255,
        "arrays": list(clip / 255),
        "tensor": torch.from_numpy(clip / 255).movedim(-1, 1),
    }


@pytest.mark.parametrize("form", forms())
def test_a_clip_in_any_form_becomes_the_same_arrays(form: str):
    expected = clip_trace()
    pictures = pictured(ClipTrace(expected, forms()[form]))
    assert pictures["sample"].dims == ("step", "frame", "row", "column", "channel")
    assert pictures["image"].dims == ("frame", "row", "column", "channel")
    xr.testing.assert_equal(pictures, expected)
    assert Explanation.of(pictures, {"square": clip_method()}, {}).pictures.sizes["frame"] == FRAMES


def test_a_picture_has_no_frames():
    still = clip_trace().isel(frame=2, drop=True)
    pictures = pictured(ClipTrace(still, Image.fromarray(still["image"].values)))
    assert pictures["sample"].dims == ("step", "row", "column", "channel") and "frame" not in pictures.coords
    xr.testing.assert_equal(pictures, still)
    refuse_clip(ClipTrace(still, still["image"].values / 255), "A classifier looks at pictures")


def test_a_job_of_pictures_refuses_a_clip():
    trace = ClipTrace(clip_trace(), forms()["list"])
    assert image_of(trace).shape == clip_trace()["image"].shape
    with pytest.raises(InputError, match=r"A classifier looks at pictures, and this run made a clip of 9 frames\. Use"):
        refuse_clip(trace, "A classifier looks at pictures")


def explained(shift: int) -> Explanation:
    pictures = clip_trace()
    pictures["image"] = pictures["image"].roll(column=shift)
    return Explanation.of(pictures, {"square": clip_method()}, {"model": "tiny", "seconds": {"trace": 1.0}})


def test_two_clips_are_as_far_apart_as_their_frames_are():
    explanations = {"seed-0": explained(0), "seed-1": explained(5)}
    variants = compared(Comparison(Request("a square"), "seed", (0, 1), methods=()), explanations)
    by_frame = []
    for frame in range(FRAMES):
        pictures = {name: each.pictures["image"].values[frame] for name, each in explanations.items()}
        by_frame.append(float(distances(pictures)["mse"].sel(a="seed-0", b="seed-1")))
    (pair,) = variants.record.plain()["distances"]
    assert pair["mse"] == pytest.approx(np.mean(by_frame)) and pair["mse"] > 0


def test_the_signs_of_failure_look_at_the_whole_clip():
    method = clip_method()
    neighbours = diagnose({"square": method}, 0.8)[0].numbers["neighbours"]["A square"]
    values = method["saliency"].sel(step=3).values
    z = values - values.mean()
    pairs = sum(each.size for each in (z[:, 1:], z[:, :, 1:]))
    agreeing = (z[:, 1:] * z[:, :-1]).sum() + (z[:, :, 1:] * z[:, :, :-1]).sum()
    assert neighbours["step 3"] == pytest.approx(z.size * agreeing / (pairs * (z**2).sum()))
    assert neighbours["step 3"] != pytest.approx(morans_i(values).mean())
    assert list(neighbours) == ["step 1", "step 3"]


def test_reliability_may_be_given_frame_by_frame():
    method = clip_method()
    method["reliability"] = (("step", "frame"), np.full((2, 3), 0.5))
    table = diagnose({"square": method}, 0.8)[1].numbers["reliability"]
    assert list(table) == ["A square, frame 0", "A square, frame 1", "A square, frame 2"]
