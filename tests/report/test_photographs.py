"""The page of several photographs: every frame of each, its own label, and the order in which they are recognised."""

import re

import numpy as np
import pytest
import xarray as xr
from pages import LABELS, Page, attribution, data_of, photograph, picture_of, recognised, rising, unpacked

from denoscope.errors import InputError
from denoscope.figures.scales import outlier_scale
from denoscope.report.caveats import warnings
from denoscope.report.photographs import render_photographs
from denoscope.results.explanations import Explanation

RUN = {"classifier": "imagenet", "draws": 5, "kind": "blend", "command": ["denoscope", "recognise", "a b.jpg"]}


def three() -> dict[str, Explanation]:
    """Recognised late, early and never; the last one's maps explain the label that stays low."""
    return {
        "late": recognised(likelihood=rising(middle=40.0)),
        "early": recognised(likelihood=rising(middle=20.0)),
        "a <b>#1</b>": recognised(likelihood=rising(top=0.04), label=LABELS[1], interrupted=True),
    }


def rows_of(page: str) -> list[list[str]]:
    """The cells of the table's rows, as texts."""
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [
        [" ".join(Page(cell).said().split()) for cell in re.split(r"<t[hd][^>]*>", row)[1:]]
        for row in body.split("</tr>")[:-1]
    ]


def test_rows_are_sorted_by_their_onset_and_never_is_last():
    rows, explanations = rows_of(render_photographs(three(), RUN)), three()
    assert [row[:2] for row in rows[-1:]] == [["a <b>#1</b>", "tiger"]] and rows[-1][2] == "never"
    onsets = [np.inf if row[2].startswith("never") else float(row[2].split()[0]) for row in rows]
    assert onsets == sorted(onsets) and len(rows) == 6
    own = {row[0]: row for row in rows if row[1].endswith(", its own")}
    assert {name: row[1] for name, row in own.items()} == {
        "late": "tiger, its own", "early": "tiger, its own", "a <b>#1</b>": f"{LABELS[1]}, its own"
    }  # fmt: skip
    half = explanations["late"].timing["crossing"].sel(label="tiger", level=0.5, quantile="median")
    assert own["late"][3].startswith(f"{float(half):.3g} [")


def test_every_photograph_leads_to_its_page():
    links = [a["href"] for tag, a in Page(render_photographs(three(), RUN)).tags if tag == "a"]
    assert {*links} == {"late/report.html", "early/report.html", "a%20%3Cb%3E%231%3C%2Fb%3E/report.html"}


def test_nothing_else_comes_from_elsewhere():
    page = render_photographs(three(), RUN)
    for tag, attributes in Page(page).tags:
        for name in ("src", "data", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    without_pictures = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    assert "http" not in without_pictures and "@import" not in page and "url(" not in page


def test_one_control_has_every_frame_of_every_photograph():
    explanations = three()
    page = render_photographs(explanations, RUN)
    data = data_of(page)
    (slider,) = [attributes for _, attributes in Page(page).tags if attributes.get("id") == "step"]
    assert slider["max"] == "59" and [step["index"] for step in data["steps"]] == list(range(60))
    for photographed, explanation in zip(data["photographs"], explanations.values(), strict=True):
        for at in (0, 30, 59):
            frame = picture_of(photographed["frames"][at]).astype(float)
            shown = explanation.pictures["sample"].values[at].astype(float)
            assert frame.shape == shown.shape and np.abs((frame - shown) @ [0.299, 0.587, 0.114]).mean() < 12
        bright = [picture_of(frame)[:, 16:].mean() for frame in photographed["frames"]]
        assert np.corrcoef(bright, np.arange(60))[0, 1] > 0.9


def test_every_photograph_has_the_likelihood_of_its_own_label():
    explanations = three()
    for photographed, explanation in zip(
        data_of(render_photographs(explanations, RUN))["photographs"], explanations.values(), strict=True
    ):
        own = explanation.likelihood.sel(label=explanation.run["label"]).median("draw")
        found = [photographed["likelihood"][str(step)]["median"] for step in range(60)]
        np.testing.assert_allclose(found, own, rtol=1e-3)


def test_every_map_of_the_first_method_is_there_in_blocks():
    method = attribution(side=64, draws=2)
    explanation = Explanation.of(
        photograph(side=64), {"first": method, "second": -method}, {"methods": {"first": {}, "second": {}}}, rising()
    )
    (photographed,) = data_of(render_photographs({"cat": explanation}, {}))["photographs"]
    assert set(photographed["maps"]) == {"20", "30", "59"} and photographed["title"] == "Gradients"
    blocks = method["saliency"].values[1].mean(axis=0).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    found = unpacked(photographed["maps"]["30"], photographed["shape"])
    np.testing.assert_allclose(found, blocks, atol=np.abs(blocks).max() / 30000)
    expected = outlier_scale(method["saliency"].mean("draw").values.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)))
    np.testing.assert_allclose(photographed["limits"], [-expected, expected])


def test_lines_of_many_photographs_are_told_apart_and_long_labels_wrap():
    page = render_photographs({f"photograph {i}": recognised() for i in range(14)}, RUN)
    curves = [
        attributes["style"] for tag, attributes in Page(page).tags if attributes.get("class") == "curve explained"
    ]
    assert len(curves) == len(set(curves)) == 14
    labels = [attributes for tag, attributes in Page(page).tags if tag == "td" and attributes.get("class") == "long"]
    assert len(labels) == 28 and ".moments .long { white-space: normal;" in page


def test_the_page_opens_where_half_are_recognised():
    explanations = three()
    halves = [float(explanations[name].timing["crossing"].sel(label="tiger", level=0.5, quantile="median"))
              for name in ("late", "early")]  # fmt: skip
    assert data_of(render_photographs(explanations, RUN))["start"] == round(sum(halves) / 2)


def test_names_and_failures_are_text():
    run = {**RUN, "failures": {"<u>bad</u>.jpg": "It is <i>no</i> picture."}, "interrupted": True}
    page = Page(render_photographs(three(), run))
    assert [tag for tag, _ in page.tags].count("script") == 2 and not {"u", "cat"} & {tag for tag, _ in page.tags}
    assert "<u>bad</u>.jpg is not here. It is <i>no</i> picture." in page.said()
    assert "This run was stopped before it was finished." in page.said() and LABELS[1] in page.said()
    assert "denoscope recognise 'a b.jpg'" in page.said()


def test_a_photograph_with_doubts_says_how_many():
    said = Page(render_photographs(three(), RUN)).said()
    number = len(warnings(three()["a <b>#1</b>"]))
    assert number == 2 and f"{number} things to read with care" in said and said.count("to read with care") == 1


def test_the_header_says_what_the_photographs_share():
    said = Page(render_photographs(three(), {})).said()
    for words in ("3 photographs", "60 frames", "classifier imagenet", "draws of the noise: 5", "noising: blend"):
        assert words in said


def test_a_photograph_without_maps_or_likelihood_is_still_there():
    bare = Explanation.of(photograph(), {}, {})
    data = data_of(render_photographs({"late": three()["late"], "bare": bare}, {}))
    assert data["photographs"][1]["maps"] == {} and data["photographs"][1]["likelihood"] == {}
    assert "When is each photograph recognised?" in Page(render_photographs({"bare": bare}, {})).said()


def test_nothing_cannot_be_compared():
    with pytest.raises(InputError, match="at least one photograph"):
        render_photographs({}, RUN)


def test_four_photographs_with_every_frame_explained_are_a_small_page():
    maps = attribution(tuple(range(100)), side=224).astype(np.float32)
    explanation = Explanation.of(photograph(100, 224), {"a": maps}, {}, rising(100))
    assert len(render_photographs(dict.fromkeys("abcd", explanation), {}).encode()) < 4e6


def test_many_photographs_get_smaller_frames_and_maps():
    maps: xr.Dataset = attribution(tuple(range(60)), side=64)
    explanation = Explanation.of(photograph(60, 128), {"a": maps}, {}, rising())
    data = data_of(render_photographs({str(i): explanation for i in range(8)}, {}))
    assert picture_of(data["photographs"][0]["frames"][0]).shape[0] == int(128 * (400 / 480) ** 0.5)
    assert data["photographs"][0]["shape"] == [22, 22]
