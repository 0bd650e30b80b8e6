"""Which language somebody is spoken to in, and that what is said in it is there."""

import pytest

from api.languages import LANGUAGES, language_of, translations


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        (None, "pt"),
        ("", "pt"),
        ("fr", "pt"),
        ("en-US,en;q=0.9", "en"),
        ("pt-BR,pt;q=0.9,en;q=0.8", "pt"),
        ("en;q=0.5,pt-PT", "pt"),
        ("de,en;q=0.5", "en"),
        ("en;q=0", "pt"),
        ("en;q=much", "pt"),
        ("\x00,;;=,", "pt"),
    ],
)
def test_the_browser_says_which_language_and_portuguese_is_the_default(accepted: str | None, language: str) -> None:
    assert language_of(accepted) == language


def test_a_text_is_said_in_each_language_and_one_that_nobody_translated_in_english() -> None:
    assert [translations(language).gettext("Conversations") for language in LANGUAGES] == ["Conversas", "Conversations"]
    assert translations("pt").gettext("Nobody translated this") == "Nobody translated this"
