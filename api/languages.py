"""The languages that people are spoken to in: which one, its translations, its dates and numbers.

Texts in the code are English and stand for themselves; every `.po` file in `api/translations/pt/LC_MESSAGES` says them
in Portuguese. They are read as they are, when first needed: nothing is compiled beforehand.

Invariant: a text without a translation is shown in English, never left out.
"""

from datetime import datetime, tzinfo
from functools import cache
from gettext import NullTranslations
from io import BytesIO
from pathlib import Path
from typing import Literal

from babel import Locale
from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import Translations

Language = Literal["pt", "en"]
LANGUAGES: tuple[Language, ...] = ("pt", "en")
"""The default first."""
LOCALES: dict[Language, Locale] = {"pt": Locale("pt", "BR"), "en": Locale("en", "US")}
_CATALOGUES = Path(__file__).parent / "translations"


@cache
def translations(language: Language) -> NullTranslations:
    """What gives texts in ``language``: `gettext`, `ngettext`, `pgettext`."""
    found = Translations()
    for path in sorted((_CATALOGUES / language / "LC_MESSAGES").glob("*.po")):
        compiled = BytesIO()
        with path.open("rb") as file:
            write_mo(compiled, read_po(file, locale=language))
        compiled.seek(0)
        found.merge(Translations(compiled))
    return found


def in_zone(moment: datetime, zone: tzinfo) -> datetime:
    """``moment`` as clocks in ``zone`` show it; as it is where the calendar has no such day there."""
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return moment


def language_of(accepted: str | None) -> Language:
    """The first of our languages that a header `Accept-Language` asks for; else Portuguese."""
    asked = []
    for part in (accepted or "").split(",")[:20]:
        tag, _, quality = part.strip().partition(";q=")
        try:
            asked.append((-float(quality or 1), tag.strip()))
        except ValueError:
            continue
    wanted = [tag for quality, tag in sorted(asked, key=lambda each: each[0]) if quality < 0]
    found = negotiate_locale(wanted, LANGUAGES, sep="-")
    return next((language for language in LANGUAGES if language == found), LANGUAGES[0])
