"""How text is made searchable without accents, by the beginnings of its words and by a phone's digits.

Invariant: what is stored and what is asked for pass through the same functions; every term is letters and digits only.
"""

import re
import unicodedata
from collections.abc import Iterable

MAX_TERM = 64
MIN_PHONE_DIGITS = 3
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_LIKE_A_PHONE = re.compile(r"[\d\s()+./-]+", re.ASCII)


def words(text: str) -> list[str]:
    """The words of a text, in order: lower case, without accents, cut to `MAX_TERM` characters."""
    apart = unicodedata.normalize("NFKD", text)
    bare = "".join(character for character in apart if not unicodedata.combining(character)).casefold()
    return [word[:MAX_TERM] for word in _BETWEEN_WORDS.split(bare) if word]


def digits(text: str) -> str:
    """The decimal digits of a text, as 0-9, with nothing between them."""
    return "".join(str(unicodedata.decimal(character)) for character in text if character.isdecimal())


def search_terms(
    name: str | None, phones: Iterable[str], emails: Iterable[str], extra: Iterable[str] = ()
) -> list[str]:
    """The terms to store for a contact, sorted, each once; ``extra`` is other text, such as a protocol number.

    A phone is stored with all its endings, so that any run of its digits is the beginning of a term; other text that
    is written like a phone is stored joined as well, because `asked_terms` joins it.
    """
    terms: set[str] = set()
    for text in (name or "", *emails, *extra):
        terms.update(words(text))
        if len(_joined(text)) >= MIN_PHONE_DIGITS:
            terms.add(_joined(text))
    for phone in phones:
        number = digits(phone)[:MAX_TERM]
        terms.update(number[start:] for start in range(max(1, len(number) - MIN_PHONE_DIGITS + 1)) if number)
    return sorted(terms)


def asked_terms(text: str) -> list[str]:
    """The terms that a search asks for: a row matches if each of them is the beginning of one of its terms."""
    joined = _joined(text)
    return [joined] if len(joined) >= MIN_PHONE_DIGITS else words(text)


def prefix_query(terms: Iterable[str]) -> str:
    """The `tsquery` for terms of `asked_terms`: each the beginning of a lexeme. No terms: the empty query."""
    return " & ".join(f"'{term}':*" for term in terms)


def _joined(text: str) -> str:
    """The digits of a text that is written like a phone number, else nothing."""
    return digits(text)[:MAX_TERM] if _LIKE_A_PHONE.fullmatch(text) else ""
