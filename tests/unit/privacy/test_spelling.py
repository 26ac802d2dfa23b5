"""One spelling for texts that a reader takes for the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyc_pipeline.privacy.spelling import fold, fold_name

INVISIBLE = ("\u200b", "\u00ad", "\u2060", "\ufeff", "\u034f", "\ufe0f")


@pytest.mark.parametrize("invisible", INVISIBLE)
@pytest.mark.parametrize("accented", ["Jos\u00e9", "Jose\u0301"])
def test_an_invisible_character_anywhere_makes_no_difference(accented: str, invisible: str) -> None:
    for place in range(len("Jose\u0301") + 1):
        assert fold("Jose\u0301"[:place] + invisible + "Jose\u0301"[place:]) == fold(accented)


@pytest.mark.parametrize(
    "typed",
    [
        "o\u2019brien\u22129999",
        "O\u02bcBrien\u20139999",
        "O\uff07Brien-\uff19\uff19\uff19\uff19",
        "O'Brien-\u0669\u0669\u0669\u0669",
        "O'Brien\u207b9999",
        "\u2800O'Brien-9999\u2800",
    ],
)
def test_apostrophes_digits_and_minus_signs_are_one(typed: str) -> None:
    assert fold(typed) == fold("O'Brien-9999") == "o'brien-9999"


def test_letters_that_only_look_alike_differ() -> None:
    assert fold("\u0410nna") != fold("Anna")


@given(st.text())
def test_a_folded_text_stays_as_it_is(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    assert fold_name(fold_name(text)) == fold_name(text)
