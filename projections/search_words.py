"""How text is made searchable without accents, by the beginnings of its words and by a phone's digits.

A protocol or an e-mail is found by what it is from the beginning of one of its words on, whatever stands between them;
a phone by any run of its digits; a name by the beginnings of its words, in any order.

Beginnings are costly to look up in an index where many rows have them. So a name is also stored by its pairs of words,
three letters of each: a search for several words looks the pairs up, and compares what is found.

Invariant: what is stored and what is asked for pass through the same functions; every term is letters and digits only.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

MAX_TERM = 64
MIN_PHONE_DIGITS = 3
PROTOCOL, CONTACT, NAME, ENDING, PAIR = "p", "c", "n", "e", "d"
"""What a term is of: the protocol; a phone or e-mail; a word of the name, its end, or two of them."""
_BEGINNING = 3
"""Letters of a word that stand for it in a pair."""
_MOST_PAIRED, _UNPAIRED = 12, f"{PAIR}*"
"""A name of more words has no pairs, but this."""
_MOST_WORDS = 32
_BETWEEN_WORDS = re.compile(r"[\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, in order: lower case, without accents, cut to `MAX_TERM` characters."""
    apart = unicodedata.normalize("NFKD", text)
    bare = "".join(character for character in apart if not unicodedata.combining(character)).casefold()
    return [word[:MAX_TERM] for word in _BETWEEN_WORDS.split(bare) if word]


def digits(text: str) -> str:
    """The decimal digits of a text, as 0-9, with nothing between them."""
    return "".join(str(unicodedata.decimal(character)) for character in text if character.isdecimal())


def joined(text: str) -> str:
    """The words of a text with nothing between them."""
    return "".join(words(text))[:MAX_TERM]


def protocol_terms(protocol: str) -> list[str]:
    """The terms to store for a protocol number."""
    return [PROTOCOL + term for term in _from_each_word(protocol)]


def contact_terms(name: str | None, phones: Iterable[str], emails: Iterable[str]) -> list[str]:
    """The terms to store for a contact, sorted, each once."""
    found = {term for email in emails for term in _from_each_word(email)}
    for phone in phones:
        number = digits(phone)[:MAX_TERM]
        found.update(number[start:] for start in range(max(1, len(number) - MIN_PHONE_DIGITS + 1)) if number)
    terms = {CONTACT + term for term in found}
    of_name = words(name or "")
    for word in of_name:
        terms.add(NAME + word)
        terms.update(ENDING + word[start:] for start in range(1, len(word) - _BEGINNING + 1))
    return sorted(terms.union(_pairs(of_name) if len(of_name) <= _MOST_PAIRED else [_UNPAIRED]))


def _from_each_word(text: str) -> list[str]:
    found = words(text)[:_MOST_WORDS]
    return ["".join(found[start:])[:MAX_TERM] for start in range(len(found))]


def _pairs(of_name: Iterable[str]) -> list[str]:
    """Two words with different beginnings stand for two different words of a name that both are in."""
    beginnings = sorted({word[:_BEGINNING] for word in of_name if len(word) >= _BEGINNING})
    return [f"{PAIR}{one}.{other}" for one, other in combinations(beginnings, 2)]


class Query(NamedTuple):
    """Two `tsquery`: what to look up in an index, and what has to hold for a row that it finds."""

    lookup: str
    exact: str


NO_TERMS = Query("", "")


def asked(text: str, *, of_contact: bool = True, of_protocol: bool = True) -> Query:
    """The query for what is found by ``text``; `NO_TERMS` for nothing."""
    found = joined(text)
    if not found:
        return NO_TERMS
    either = [f"'{PROTOCOL}{found}':*"] * of_protocol
    if not of_contact:
        return Query(either[0], either[0])
    either.append(f"'{CONTACT}{found}':*")
    name = asked_of_name(words(text))
    return Query(" | ".join((*either, f"({name.lookup})")), " | ".join((*either, f"({name.exact})")))


def asked_of_name(beginnings: Sequence[str], ending: str = "") -> Query:
    """The query for names with words that begin so, and with one that goes on like ``ending`` somewhere within."""
    begin = [f"'{NAME}{word}':*" for word in beginnings]
    exact, pairs = " & ".join(begin), _pairs_of(beginnings)
    if len(ending) >= _BEGINNING:
        exact = " & ".join((*begin, f"('{NAME}{ending}':* | '{ENDING}{ending}':*)"))
        if also := _pairs_of([ending, *beginnings]):  # it begins a word, or is within one
            pairs = f"{also} | ({pairs or ' & '.join(begin)} & '{ENDING}{ending}':*)"
    return Query(f"{pairs} | '{_UNPAIRED}'" if pairs else exact, exact)


def _pairs_of(beginnings: Sequence[str]) -> str:
    """The query for the pairs of words that begin so; nothing where there are none."""
    return " & ".join(f"'{pair}'" for pair in _pairs(beginnings[:_MOST_PAIRED]))
