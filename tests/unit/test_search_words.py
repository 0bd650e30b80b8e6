"""Text is found without accents, by the beginnings of its words, and a phone by any run of its digits."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.search_words import NO_TERMS, asked, asked_of_name, contact_terms, digits, protocol_terms, words

MARIA = contact_terms("Maria José da Conceição", ["+55 (11) 98765-4321"], ["maria.ze@example.com"])
MARIA += protocol_terms("2026-000123")


def holds(query: str, terms: list[str]) -> bool:
    """As PostgreSQL does, for what we ask of it."""

    def is_there(found: re.Match[str]) -> str:
        term, prefix = found.groups()
        return str(any(each.startswith(term) if prefix else each == term for each in terms))

    expression = re.sub(r"'([^']*)'(:\*)?", is_there, query).replace("&", " and ").replace("|", " or ")
    return bool(query) and bool(eval(expression))


def finds(text: str, terms: list[str]) -> bool:
    index, exact = asked(text)
    assert holds(index, terms) or not holds(exact, terms), "the index does not find what is to be found"
    return holds(exact, terms)


@pytest.mark.parametrize(
    "text",
    [
        *("maria", "MARÍA", "mar", "conceicao", "Conceição", "jose con", "con mar", "da con", "d j m", "maria.ze@exam"),
        *("zé@", "example", "example.com", "98765", "987654321", "8765-43", "(11) 98765-4321", "+55 11 98765 4321"),
        *("4321", "2026-000123", "000123", "2026 0001", "maria maria"),
    ],
)
def test_a_contact_is_found_by(text: str) -> None:
    assert finds(text, MARIA)


@pytest.mark.parametrize(
    "text", ["aria", "mario", "maria ana", "maria 2026", "98766", "43210", "example maria", "!!", "", " ", "\u3042"]
)
def test_a_contact_is_not_found_by(text: str) -> None:
    assert not finds(text, MARIA)


def test_words_are_told_apart_by_what_is_no_letter_and_no_digit() -> None:
    assert words("Ação-rápida_x2, ÉÀ\u0301!") == ["acao", "rapida", "x2", "ea"]
    assert words("Straße ﬁm İzmir") == ["strasse", "fim", "izmir"]
    assert digits("+55 (11) ٩٨٧") == "5511987"


@given(st.text(max_size=80))
def test_any_text_is_found_by_itself_and_gives_a_query_that_holds_no_syntax(text: str) -> None:
    for terms in (contact_terms(text, [], []), contact_terms(None, [], [text]), protocol_terms(text)):
        assert all(term.isalnum() or re.fullmatch(r"d(\*|\w+\.\w+)", term) for term in terms)
        assert finds(text, terms) or not words(text)
    for query in asked(text):
        assert query is NO_TERMS.lookup or not re.sub(r"'[pcned]\w*(\.\w+|\*)?'(:\*)?|[ ()&|]", "", query)


NAMES = st.lists(
    st.sampled_from(["ana", "anabela", "mar", "maria", "marta", "de", "sá", "souza", "sousa", "x", "ze", "zefa"]),
    max_size=14,
)


@given(NAMES, st.data())
def test_a_name_is_found_by_the_beginnings_of_its_words_in_any_order(name: list[str], data: st.DataObject) -> None:
    terms = contact_terms(" ".join(name), [], [])
    some = data.draw(st.permutations(name))[:4]
    begun = " ".join(word[: data.draw(st.integers(1, len(word)))] for word in some)
    assert finds(begun, terms) or not some
    assert not finds(f"{begun} quem", terms)


@given(NAMES.filter(bool), st.data())
def test_the_index_knows_a_name_by_any_part_of_it(name: list[str], data: st.DataObject) -> None:
    whole = " ".join(name)
    start = data.draw(st.integers(0, len(whole) - 1))
    first, *others = words(whole[start : data.draw(st.integers(start + 1, len(whole)))]) or [""]
    query = asked_of_name(others, ending=first).lookup
    assert not query or holds(query, contact_terms(whole, [], []))


@given(st.from_regex(r"\+?[0-9][0-9 ().-]{2,31}", fullmatch=True), st.data())
def test_a_phone_is_found_by_any_run_of_three_digits_or_more(phone: str, data: st.DataObject) -> None:
    number = digits(phone)
    start = data.draw(st.integers(0, max(0, len(number) - 3)))
    run = number[start : data.draw(st.integers(min(start + 3, len(number)), len(number)))]
    assert finds(run, contact_terms(None, [phone], []))
