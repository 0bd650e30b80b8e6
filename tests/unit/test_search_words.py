"""Text is found without accents, by the beginnings of its words, and a phone by any run of its digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.search_words import asked_terms, digits, prefix_query, search_terms, words

MARIA = search_terms("Maria José da Conceição", ["+55 (11) 98765-4321"], ["maria.ze@example.com"], ["2026-000123"])


def finds(asked: str, terms: list[str]) -> bool:
    """As PostgreSQL does: each term asked for is the beginning of one that is stored; nothing asked, nothing found."""
    wanted = asked_terms(asked)
    return bool(wanted) and all(any(term.startswith(start) for term in terms) for start in wanted)


@pytest.mark.parametrize(
    "asked",
    [
        *("maria", "MARÍA", "mar", "conceicao", "Conceição", "jose con", "con mar", "maria.ze@exam", "zé@", "example"),
        *("98765", "987654321", "8765-43", "(11) 98765-4321", "+55 11 98765 4321", "4321", "2026-000123", "000123"),
    ],
)
def test_a_contact_is_found_by(asked: str) -> None:
    assert finds(asked, MARIA)


@pytest.mark.parametrize("asked", ["aria", "mario", "maria ana", "98766", "43210", "!!", "", " ", "\u3042"])
def test_a_contact_is_not_found_by(asked: str) -> None:
    assert not finds(asked, MARIA)


def test_words_are_told_apart_by_what_is_no_letter_and_no_digit() -> None:
    assert words("Ação-rápida_x2, ÉÀ\u0301!") == ["acao", "rapida", "x2", "ea"]
    assert words("Straße ﬁm İzmir") == ["strasse", "fim", "izmir"]
    assert digits("+55 (11) ٩٨٧") == "5511987"


@given(st.text(max_size=80))
def test_any_text_is_found_by_itself_and_gives_a_query_that_holds_no_syntax(text: str) -> None:
    terms = search_terms(text, [], [])
    assert all(term.isalnum() and len(term) <= 64 for term in terms)
    assert finds(text, terms) or not words(text)
    assert prefix_query(asked_terms(text)).count("'") == 2 * len(asked_terms(text))


@given(st.from_regex(r"\+?[0-9][0-9 ().-]{2,31}", fullmatch=True), st.data())
def test_a_phone_is_found_by_any_run_of_three_digits_or_more(phone: str, data: st.DataObject) -> None:
    number = digits(phone)
    start = data.draw(st.integers(0, max(0, len(number) - 3)))
    run = number[start : data.draw(st.integers(min(start + 3, len(number)), len(number)))]
    assert finds(run, search_terms(None, [phone], []))
