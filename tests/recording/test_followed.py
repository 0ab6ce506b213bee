"""Tokens that are followed by their vectors: where they lie, and where that cannot be said."""

import pytest
import torch

from denoscope.recording.followed import tokens_by_vectors

VECTORS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
PATH = ("kwargs", "encoder_hidden_states")


def followed(argument: torch.Tensor, disturbed: torch.Tensor, vectors: torch.Tensor = VECTORS):
    return tokens_by_vectors([{PATH: argument}], [{PATH: disturbed}], [vectors])


def held(rows: int = 2, length: int = 4, features: int = 6, *, row: int = 1, start: int = 0, feature: int = 0):
    """An argument that holds the vectors somewhere in one row, and the same under all tokens disturbed."""
    argument = torch.randn(rows, length, features, generator=torch.Generator().manual_seed(1))
    argument[row, start : start + 4, feature : feature + 6] = VECTORS
    disturbed = argument.clone()
    disturbed[row, start : start + 4, feature : feature + 6] += 1
    return argument, disturbed


@pytest.mark.parametrize(
    "place",
    [{}, {"row": 0}, {"features": 10, "feature": 3}, {"length": 9}, {"length": 9, "start": 5, "features": 7}],
    ids=["alone", "first row", "features beside", "first of a longer text", "behind another text"],
)
def test_vectors_are_found_number_by_number(place):
    tokens = followed(*held(**place))[0][PATH]
    expected = torch.full((2, place.get("length", 4)), -1)
    start = place.get("start", 0)
    expected[place.get("row", 1), start : start + 4] = torch.arange(4)
    assert torch.equal(tokens, expected)


def test_other_orders_and_other_values_are_not_followed():
    argument, disturbed = held()
    assert followed(argument[:, [1, 0, 2, 3]], disturbed[:, [1, 0, 2, 3]]) is None, "two tokens changed places"
    assert followed(2 * argument, 2 * disturbed) is None, "weighted"
    assert followed(argument + 1e-6, disturbed + 1e-6) is None
    other = disturbed.clone()
    other[0, 2] += 1
    assert followed(argument, other) is None, "a row that holds no vectors of it is reached too"
    longer, changed = held(length=9)
    changed[1, 7] += 1
    assert followed(longer, changed) is None, "a position behind the text is reached too"
    assert followed(argument, argument) is None, "nothing is reached"


def test_equal_vectors_could_have_changed_places():
    twice = VECTORS.clone()
    twice[2] = twice[1]
    argument, disturbed = held()
    argument[1], disturbed[1] = twice, twice + 1
    assert followed(argument, disturbed, twice) is None


def test_positions_that_the_pipeline_blanks_hold_no_token():
    argument, disturbed = held()
    disturbed[1, 3] = argument[1, 3]  # not reached, such as padding behind a mask
    assert followed(argument, disturbed)[0][PATH][1].tolist() == [0, 1, 2, -1]


def test_half_precision_is_compared_in_its_own_numbers():
    argument, disturbed = (tensor.bfloat16() for tensor in held())
    assert followed(argument, disturbed)[0][PATH][1].tolist() == [0, 1, 2, 3]
