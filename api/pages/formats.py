"""Times, numbers and durations as people of a language and a time zone read them.

Invariant: a moment is shown in the zone that the page was asked for; the exact one stands beside it, for machines.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cached_property, lru_cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from babel import Locale
from babel.dates import format_date, format_datetime, format_time, get_datetime_format
from babel.numbers import format_compact_decimal, format_decimal

from api.languages import LOCALES, Language, in_zone, translations

DEFAULT_ZONE = "America/Sao_Paulo"
_ZONES = frozenset(available_timezones())
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


_remembered = lru_cache(maxsize=10_000)
"""A listing shows the same days, minutes and small numbers again and again; to put one into words takes long."""


@_remembered
def _time(at: time, length: str, locale: Locale) -> str:
    return format_time(at, length, locale=locale)


@_remembered
def _date(day: date, locale: Locale) -> str:
    return format_date(day, "medium", locale)


@_remembered
def _day_and_month(day: date, locale: Locale) -> str:
    pattern = "d MMM" if locale.language == "pt" else "MMM d"
    return format_datetime(datetime.combine(day, time()), pattern, locale=locale).replace(" de ", " ")


@_remembered
def _number(value: float, locale: Locale) -> str:
    return format_decimal(value, locale=locale)


def zone_named(name: str | None) -> ZoneInfo:
    """The time zone called ``name`` in the IANA database; that of São Paulo where there is none."""
    return ZoneInfo(name if name in _ZONES else DEFAULT_ZONE)


def moment_of(value: Any) -> datetime | None:
    """A time as the API tells it."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Formats:
    """How to show what the API tells, in one language and zone."""

    language: Language
    zone: ZoneInfo

    @cached_property
    def now(self) -> datetime:
        """The present moment, the same all over a page."""
        return datetime.now(UTC)

    def number(self, value: float) -> str:
        """A number with its thousands apart."""
        return _number(value, LOCALES[self.language])

    def compact(self, value: float) -> str:
        """A large number in short."""
        return format_compact_decimal(value, locale=LOCALES[self.language], fraction_digits=1)

    def exactly(self, value: Any) -> str:
        """A moment in full."""
        at = moment_of(value)
        if at is None:
            return ""
        locale, there = LOCALES[self.language], in_zone(at, self.zone)
        clock = _time(there.time().replace(microsecond=0), "medium", locale)
        both = str(get_datetime_format("medium", locale)).replace("'", "")
        return both.replace("{0}", clock).replace("{1}", _date(there.date(), locale))

    def date(self, value: Any) -> str:
        """The day of a moment."""
        at = moment_of(value)
        return "" if at is None else _date(in_zone(at, self.zone).date(), LOCALES[self.language])

    def moment(self, value: Any) -> str:
        """A moment in short: the time only if it is today's, the day with it otherwise."""
        at = moment_of(value)
        if at is None:
            return ""
        locale, there, here = LOCALES[self.language], in_zone(at, self.zone), self.now.astimezone(self.zone)
        clock = _time(there.time().replace(second=0, microsecond=0), "short", locale)
        if there.date() == here.date():
            return clock
        if there.year == here.year:
            return f"{_day_and_month(there.date(), locale)}, {clock}"
        return _date(there.date(), locale)

    def duration(self, value: float | None) -> str:
        """Seconds, in the two largest units that say something."""
        if value is None:
            return ""
        seconds, gettext = int(value), translations(self.language).gettext
        if seconds < _MINUTE:
            return gettext("%(n)s s") % {"n": seconds}
        if seconds < _HOUR:
            return gettext("%(n)s min") % {"n": seconds // _MINUTE}
        if seconds < _DAY:
            hours, minutes = divmod(seconds // _MINUTE, 60)
            return gettext("%(h)s h %(m)s min") % {"h": hours, "m": minutes} if minutes else f"{hours} h"
        days, rest = divmod(seconds, _DAY)
        return gettext("%(d)s d %(h)s h") % {"d": self.number(days), "h": rest // _HOUR}

    def seconds_since(self, value: Any) -> float:
        """How many seconds ago a moment was."""
        at = moment_of(value)
        return 0.0 if at is None else max(0.0, (self.now - at).total_seconds())

    def since(self, value: Any) -> str:
        """How long ago a moment was."""
        return "" if value is None else self.duration(self.seconds_since(value))

    def local(self, value: Any) -> str:
        """A moment as it is typed, or picked, into a field."""
        at = moment_of(value)
        if at is None:
            return ""
        there = in_zone(at, self.zone).replace(tzinfo=None)
        return there.isoformat(" ", "auto" if there.second or there.microsecond else "minutes")

    def typed(self, text: str) -> datetime | None:
        """The moment that a field holds, or that is written with its zone; None for others."""
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            return None
        return at if at.tzinfo is not None else at.replace(tzinfo=self.zone)
