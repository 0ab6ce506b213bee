"""The page: everything inline, everything escaped, and what a reader points at is what the array holds."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from test_figures import NUMBER_OF_STEPS, disc_method, disc_trace

from denoscope import report
from denoscope.explanations import Explanation

PROMPT = 'a red disc </script><script>alert("1")</script> & <b>more</b>'
RUN = {
    "command": ["denoscope", "explain", "a red disc"],
    "model": "shapes",
    "prompt": PROMPT,
    "seed": 0,
    "seconds": None,
}


def explained(method: xr.Dataset | None = None, **run: object) -> Explanation:
    return Explanation.of(disc_trace(), {"bump": disc_method() if method is None else method}, {**RUN, **run})


class Page(HTMLParser):
    """Every tag with its attributes, and the text inside each."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def said(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("script", "style")).split())


def data_of(explanation: Explanation) -> dict:
    return json.loads(report.payload(explanation))


def picture_of(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def test_nothing_comes_from_elsewhere():
    page = report.render(explained())
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "data", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    without_pictures = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    assert "http" not in without_pictures and "@import" not in page and "url(" not in page


def test_what_a_run_says_is_text_and_never_markup():
    method = disc_method(title="<i>t</i>", reading='"><script>alert(2)</script>')
    page = Page(report.render(explained(method)))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not {"b", "i"} & {tag for tag, attributes in page.tags if not attributes} - {"b"}
    assert PROMPT in page.said() and "<i>t</i>" in page.said() and '"><script>alert(2)</script>' in page.said()


def test_the_data_cannot_leave_its_script():
    explanation = explained(disc_method().assign({"<script> & more": ("step", [1.0, 2.0, 3.0])}))
    assert not {"<", "&"} & set(report.payload(explanation))
    assert data_of(explanation)["methods"]["bump"]["numbers"]["1"][1] == ["<script> & more", "1"]


def test_every_step_has_its_pictures_and_numbers():
    explanation = explained()
    trace, steps, strip = explanation.trace, data_of(explanation)["steps"], Page(report.render(explanation)).tags
    thumbnails = [
        attributes["src"]
        for tag, attributes in strip
        if (attributes.get("alt") or "").startswith("Clean prediction at s")
    ]
    assert [step["index"] for step in steps] == list(range(NUMBER_OF_STEPS)) and len(thumbnails) == NUMBER_OF_STEPS
    for i, step in enumerate(steps):
        np.testing.assert_array_equal(picture_of(step["sample"]), trace["sample"][i])
        np.testing.assert_array_equal(picture_of(str(thumbnails[i])), trace["pred_original_sample"][i])
    assert steps[0]["timestep"] == "999" and steps[0]["log_snr"] == "−9"


def test_hovering_reads_the_array():
    method = disc_method()
    bump = data_of(explained(method))["methods"]["bump"]
    assert set(bump["layers"][0]) == {"1", "3", "4"}
    for step, content in bump["layers"][0].items():
        here = method.sel(step=int(step))
        for key, name in (("values", "saliency"), ("errors", "standard_error")):
            values = np.array(content[key]).reshape(bump["shape"])
            np.testing.assert_allclose(values, here[name], rtol=5e-4)
    assert bump["limits"] == [-bump["limits"][1], float(f"{float(method.saliency.max()):.4g}")]


def test_transposed_results_are_read_the_same():
    method = disc_method(height=3, width=5)
    turned = method.transpose("x", "y", "step")
    assert data_of(explained(turned))["methods"] == data_of(explained(method))["methods"]


def test_missing_values_are_null_and_unfinished_steps_are_absent():
    method = disc_method()
    method["saliency"][0, 2, 3] = np.nan
    method["saliency"][1] = np.nan
    bump = data_of(explained(method))["methods"]["bump"]
    assert set(bump["layers"][0]) == {"1", "4"}
    missing = [i for i, value in enumerate(bump["layers"][0]["1"]["values"]) if value is None]
    assert missing == [2 * 8 + 3]


def test_the_page_opens_on_an_explained_step():
    assert data_of(explained())["start"] == 3
    assert data_of(Explanation.of(disc_trace(), {}, RUN))["start"] == NUMBER_OF_STEPS - 1


def test_every_further_entry_has_its_maps():
    words = xr.concat([disc_method(), disc_method() * 2], xr.Variable("token", ["red", "disc"]))
    words["saliency"] = words["saliency"].transpose("step", "token", "y", "x")
    explanation = explained(words[["saliency"]].assign_attrs(title="Words"))
    first, second = data_of(explanation)["methods"]["bump"]["layers"]
    np.testing.assert_allclose(np.array(second["3"]["values"]), 2 * np.array(first["3"]["values"]), rtol=1e-3)
    assert [text for tag, text in Page(report.render(explanation)).texts if tag == "option" and text.strip()] == [
        "red",
        "disc",
    ]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda method: method, "not reliable at step 1 (0.7)"),
        (lambda method: method * 0, "flat at steps 1, 3 and 4"),
        (lambda method: method.where(method.step != 3), "no map for step 3"),
        (lambda method: method.where(method.saliency < 1), "cells without a value at steps 1, 3 and 4"),
    ],
)
def test_doubts_are_said(change, said: str):
    method = change(disc_method()).assign_attrs(disc_method().attrs)
    assert (
        f"A bump {'is' if 'at' in said and 'cells' not in said else 'has'} {said}"
        in Page(report.render(explained(method))).said()
    )


def test_as_many_masks_are_advised_as_spearman_and_brown_ask_for():
    (doubt,) = report.warnings(explained())
    advised = int(re.search(r"about (\d+)", doubt.text).group(1))
    stepped_up = lambda k: k * 0.7 / (1 + (k - 1) * 0.7)  # noqa: E731
    assert stepped_up(advised / 500) >= 0.8 > stepped_up((advised - 100) / 500)


def test_a_reliable_whole_run_warns_of_nothing():
    method = disc_method()
    assert report.warnings(explained(method.assign(reliability=method.reliability * 0 + 0.9))) == []


def test_an_interrupted_run_says_so():
    titles = [warning.title for warning in report.warnings(explained(interrupted=True))]
    assert titles[0] == "This run was stopped before it was finished."


def test_a_run_without_a_method_still_has_a_page():
    page = Page(report.render(Explanation.of(disc_trace(), {}, {}))).said()
    assert "Nothing was explained." in page and "What matters at this step" not in page


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_the_chart_leaves_out_what_is_not_finite(value: float):
    trace = disc_trace()
    trace["log_snr"] = ("step", [*trace["log_snr"].values[:-1], value])
    chart = report._chart(trace, {})
    assert len(chart["snr"]["points"]) == NUMBER_OF_STEPS - 1 and "nan" not in chart["snr"]["path"]
    assert "NaN" not in report.payload(Explanation.of(trace, {}, RUN))


def test_the_chart_is_the_series():
    trace = disc_trace()
    low, high = report._span(trace["log_snr"].values)
    x, y = np.array(report._chart(trace, {})["snr"]["points"]).T
    np.testing.assert_allclose(x, 100 * (np.arange(NUMBER_OF_STEPS) + 0.5) / NUMBER_OF_STEPS)
    np.testing.assert_allclose(high - y / 100 * (high - low), trace["log_snr"])


def test_large_pictures_shrink_and_small_ones_are_exact():
    large = np.random.default_rng(0).integers(0, 255, (600, 1024, 3), dtype=np.uint8)
    assert picture_of(report.picture_uri(large)).shape == (300, 512, 3)
    np.testing.assert_array_equal(picture_of(report.picture_uri(large[:64, :128])), large[:64, :128])


def test_a_usual_report_is_small():
    methods = {name: disc_method(steps=(2, 8, 16, 28), height=16, width=16) for name in ("a", "b")}
    explanation = Explanation.of(disc_trace(64, 64, steps=30), methods, RUN)
    assert len(report.render(explanation)) < 3e6


def test_the_command_is_a_line_for_a_shell():
    assert "denoscope explain 'a red disc'" in Page(report.render(explained())).said()


def test_the_numbers_of_a_step_are_named():
    numbers = data_of(explained(disc_method().assign(masks_used=("step", [500, 400, 300]))))["methods"]["bump"][
        "numbers"
    ]
    assert numbers["3"] == [["reliability", "0.825"], ["masks used", "400"]]
