"""The overview: how much comes in and from where, how long people wait, from where conversations are finalized.

Every chart has its numbers beside it as a table.

Invariant: only what the caller may see counts; the days are those of the zone that times are shown in.
"""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Annotated, Any

import pygal
from babel.dates import format_date
from fastapi import Query
from pygal.style import Style
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.languages import LOCALES
from api.pages.columns import CHANNEL_NAMES, STATUS_NAMES
from api.pages.columns import SURFACE_NAMES as FINALIZED_FROM_NAMES
from api.pages.directory_names import names as names_of
from api.pages.page import HEADERS, Here, Page, page_router
from api.pages.texts import N_

router = page_router()
PERIODS = (7, 30, 90)
Days = Annotated[int, Query(ge=1, le=90)]
MOST_LABELS, FEWER_LABELS = 8, 5
_LINES = 8
"""Lines that a chart tells apart, at most; the rest are one."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
COLORS = ("#2f6fdb", "#d9822b", "#2e9e6b", "#8a5cd1", "#c9493f", "#4aa6b5", "#a8891f", "#d16fa6", "#7d8794")
"""In the order of the lines; `conversation.css` has the same for their legend."""
_STATUSES = ("in_progress", "pending", "finalized", "with_bot")
"""In the order in which those colours are theirs on all pages."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Chart:
    """What is shown, and how."""

    title: str
    by: str
    moment: str = "started"
    measure: str = "episodes"


CHARTS = {
    "status": Chart(N_("Begun, by status now"), "status"),
    "channel": Chart(N_("Begun, by channel"), "channel"),
    "sector": Chart(N_("Begun, by sector"), "sector"),
    "finalized": Chart(N_("Finalized, by where from"), "finalized_from", "finalized", "finalized"),
}
TIMES = {
    "waiting_seconds": N_("Waiting time"),
    "first_response_seconds": N_("First response"),
    "resolution_seconds": N_("Resolution"),
}
TIMES_TITLE = N_("Median times in minutes, by day of finalization")


@dataclass(frozen=True, slots=True)
class Series:
    """Lines of a chart: a number per day under each name."""

    days: list[date]
    lines: dict[str, list[float | None]]
    is_cut: bool = False


@router.get("/overview")
async def overview(page: Here, days: Days = 30) -> Response:
    """All charts with their tables."""
    period = _period(page, days)
    names = list(CHARTS)
    totals, ended, times, *series = await asyncio.gather(
        page.get("/v1/metrics", _query(page, period, "started")),
        page.get("/v1/metrics", _query(page, period, "finalized")),
        _times(page, days),
        *(_series(page, CHARTS[name], days) for name in names),
    )
    return page.render(
        "overview.html",
        short_day=short_day,
        days=days,
        periods=PERIODS,
        begun=totals["items"][0] if totals["items"] else None,
        ended=ended["items"][0] if ended["items"] else None,
        figures=[(name, page.text(CHARTS[name].title), each) for name, each in zip(names, series, strict=True)]
        + [("times", page.text(TIMES_TITLE), times)],
    )


@router.get("/overview/{chart}.svg")
async def chart(page: Here, chart: str, days: Days = 30, dark: bool = False, narrow: bool = False) -> Response:  # noqa: FBT001, FBT002  # of a query
    """One chart as a picture."""
    is_bars = chart in CHARTS
    if not is_bars and chart != "times":
        raise HTTPException(404)
    series = await (_series(page, CHARTS[chart], days) if is_bars else _times(page, days))
    options: dict[str, Any] = {
        "style": _style(dark=dark),
        "js": [],
        "width": 360 if narrow else 720,
        "height": 240 if narrow else 280,
        "margin": 6,
        "margin_right": 24,
        "show_legend": False,
        "truncate_label": -1,
        "x_label_rotation": 0,
        "show_minor_x_labels": False,
        "no_data_text": page.text("Nothing in this period"),
        "value_formatter": page.formats.number,
        "order_min": 0 if is_bars else None,  # nothing between one conversation and two
        "disable_xml_declaration": True,
    }
    drawn = pygal.StackedBar(**options) if is_bars else pygal.Line(dots_size=2, **options)
    labels = [short_day(page, day) for day in series.days]
    drawn.x_labels = labels
    drawn.x_labels_major = labels[:: -(-len(labels) // (FEWER_LABELS if narrow else MOST_LABELS))]
    for name, values in series.lines.items():
        drawn.add(_NOT_XML.sub("", name)[:40], values)
    headers = HEADERS | {"Content-Security-Policy": _POLICY}
    return Response(drawn.render(), 200, headers, "image/svg+xml")


def short_day(page: Page, day: date) -> str:
    """A day without its year."""
    pattern = "d MMM" if page.language == "pt" else "MMM d"
    return format_date(day, pattern, LOCALES[page.language]).replace(" de ", " ")


def _style(*, dark: bool) -> Style:
    text, line = ("#c3cad3", "#3a434f") if dark else ("#434b56", "#d5dae1")
    return Style(
        background="transparent",
        plot_background="transparent",
        foreground=text,
        foreground_strong=text,
        foreground_subtle=line,
        guide_stroke_color=line,
        major_guide_stroke_color=line,
        colors=COLORS,
        opacity=".92",
        font_family="system-ui, sans-serif",
        label_font_size=11,
        major_label_font_size=11,
        no_data_font_size=16,
    )


def _period(page: Page, days: int) -> list[date]:
    today = page.formats.now.astimezone(page.formats.zone).date()
    return [today - timedelta(days=back) for back in range(days - 1, -1, -1)]


def _query(page: Page, period: list[date], moment: str, *group_by: str) -> list[tuple[str, str]]:
    start = datetime.combine(period[0], time(), page.formats.zone)
    query = [("period", moment), ("period_from", start.isoformat()), ("time_zone", page.formats.zone.key)]
    return query + [("group_by", each) for each in group_by]


async def _series(page: Page, chart: Chart, days: int) -> Series:
    """A line per group, the largest first; groups of the same name are one."""
    period = _period(page, days)
    found = await page.get("/v1/metrics", _query(page, period, chart.moment, chart.by, "day"))
    names = await _names(page, chart.by)
    counted = {names[status]: Counter[str]() for status in _STATUSES} if chart.by == "status" else {}
    for each in found["items"]:
        value = each["group"][chart.by]
        name = page.text("none") if value is None else names.get(value, str(value))
        counted.setdefault(name, Counter())[each["group"]["day"]] += each[chart.measure]
    largest = list(counted) if chart.by == "status" else sorted(counted, key=lambda name: -counted[name].total())
    lines: dict[str, list[float | None]] = {
        name: [counted[name][day.isoformat()] for day in period] for name in largest[:_LINES]
    }
    if rest := largest[_LINES:]:
        lines[page.text("others")] = [sum(counted[name][day.isoformat()] for name in rest) for day in period]
    return Series(period, lines, found["more"])


async def _names(page: Page, by: str) -> dict[str, str]:
    """What the groups are called."""
    if by == "sector":
        return (await names_of(page))["sector"]
    names = {"status": STATUS_NAMES, "channel": CHANNEL_NAMES, "finalized_from": FINALIZED_FROM_NAMES}[by]
    return {value: page.text(name) for value, name in names.items()}


async def _times(page: Page, days: int) -> Series:
    """The medians per day, in minutes."""
    period = _period(page, days)
    found = await page.get("/v1/metrics", _query(page, period, "finalized", "day"))
    by_day = {each["group"]["day"]: each for each in found["items"]}
    lines = {
        page.text(name): [_minutes(by_day.get(day.isoformat(), {}).get(measure)) for day in period]
        for measure, name in TIMES.items()
    }
    return Series(period, lines)


def _minutes(spread: dict[str, Any] | None) -> float | None:
    return None if spread is None or spread["median"] is None else round(spread["median"] / 60, 1)
