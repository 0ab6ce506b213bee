"""Subjects of trials: scenes, lines of a file of prompts, and masks that fit."""

import numpy as np
import pytest
from PIL import Image
from small import refusal

from denoscope.commands.subjects import TrialSubject, bundled_subject, read_mask, read_subjects
from denoscope.recording.prompts import numbered


def test_a_bundled_subject_names_its_things():
    one, two = bundled_subject(0), bundled_subject(1)
    assert (one.scene, two.scene) == (1, 2) and one.seed + 1 == two.seed
    assert set(two.phrase) <= set(numbered(two.prompt.split())) and two.label in two.labels


def test_a_subject_comes_back_from_json():
    for subject in (bundled_subject(1), TrialSubject("name", "a cross", 3, mask="m.png", digest="1f")):
        assert TrialSubject.from_json(subject.to_json()) == subject


def test_lines_are_prompts_with_names_and_phrases(own_model):
    first, second, third = read_subjects(own_model / "prompts.txt", own_model / "masks", seed=5)
    assert (first.name, first.phrase, first.seed) == ("first", ("red", "circle"), 5)
    assert second.phrase is None and second.mask.endswith("second.png") and third.mask is None
    (own_model / "plain.txt").write_text("a red circle\n\na cross\n")
    assert [subject.name for subject in read_subjects(own_model / "plain.txt", None)] == ["0001", "0002"]


@pytest.mark.parametrize(
    "text, message",
    [("", "empty"), ("a\tx\na\ty", "twice"), ("../a\tx", "Line 1"), ("a\ta red cross\tblue", '"blue" is not in')],
)
def test_bad_lines_are_refused(own_model, text, message):
    (own_model / "prompts.txt").write_text(text)
    assert message in refusal(read_subjects, own_model / "prompts.txt", None)


def test_masks_that_belong_to_no_line_are_refused(own_model):
    (own_model / "prompts.txt").write_text("a cross\na circle")
    assert "0001.png" in refusal(read_subjects, own_model / "prompts.txt", own_model / "masks")
    assert "not a folder of masks" in refusal(read_subjects, own_model / "prompts.txt", own_model / "nowhere")


def test_a_mask_of_another_size_or_without_an_object_is_refused(own_model):
    mask = own_model / "masks" / "first.png"
    assert read_mask(mask, (32, 32)).sum() == 144
    assert "32 × 32 and its picture 64 × 64" in refusal(read_mask, mask, (64, 64))
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
    assert "is empty" in refusal(read_mask, mask, (32, 32))
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(mask)
    assert "bright everywhere" in refusal(read_mask, mask, (32, 32))


def test_a_mask_of_zeros_and_ones_is_read_by_value(tmp_path):
    values = np.zeros((8, 8), np.uint8)
    values[2:5, 2:5] = 1
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", (8, 8)), values == 1)
