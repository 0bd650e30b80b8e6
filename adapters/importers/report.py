"""What an import tells the person who ran it.

Invariant: a line that left nothing and a line that is kept as a note are counted apart, each line once in either.
"""

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field

LISTED_KEPT = 1_000
LISTED_SHOWN = 20


@dataclass(frozen=True, slots=True, order=True)
class Rejected:
    """A line that did not become what it says, and why."""

    line: int
    reason: str


@dataclass(slots=True)
class Listing:
    """Lines that a person is told of: all are counted, and the first `LISTED_KEPT` of them kept, by line."""

    count: int = 0
    kept: list[Rejected] = field(default_factory=list)
    _last: int = 0

    def add(self, item: Rejected) -> None:
        """Count it, and keep it while there is room; a line that gave several changes once, with its first reason."""
        if item.line == self._last:
            return
        self._last = item.line
        self.count += 1
        insort(self.kept, item)
        del self.kept[LISTED_KEPT:]

    def text(self, what: str) -> list[str]:
        """``what`` they are with their count, and the first `LISTED_SHOWN`."""
        shown = [f"  line {each.line}: {each.reason}" for each in self.kept[:LISTED_SHOWN]]
        more = [f"  … and {self.count - len(shown):,} more"] if self.count > len(shown) else []
        return [f"{self.count:,} {'line' if self.count == 1 else 'lines'} {what}", *shown, *more]


@dataclass(slots=True)
class Report:
    """What became of a file."""

    changes: Counter[str] = field(default_factory=Counter)
    """Changes recorded in this run, by kind; ``refused``: notes in place of changes."""
    events: int = 0
    """Events appended in this run."""
    already_present: int = 0
    """Changes that were recorded before, or were so already."""
    rejected: Listing = field(default_factory=Listing)
    """They left nothing."""
    noted: Listing = field(default_factory=Listing)
    """A rule refused something of them, which is kept as a note."""
    hint: str = ""
    """What the person who imports may have meant to do."""
    seconds: float = 0.0

    @property
    def rejected_count(self) -> int:
        """How many lines left nothing."""
        return self.rejected.count

    @property
    def exit_code(self) -> int:
        """For the command line: 1 where a line was rejected."""
        return 1 if self.rejected.count else 0

    @property
    def is_all_rejected(self) -> bool:
        """Whether lines were rejected, and every one of them."""
        return bool(self.rejected.count) and not (self.changes or self.already_present)

    def text(self) -> str:
        """What became of the file, for a person: counts by kind, the rate, and lines refused and rejected, apart."""
        rate = self.events / self.seconds if self.seconds else 0.0
        kinds = [f"  {count:>9,}  {kind}" for kind, count in self.changes.most_common() if kind != "refused"]
        refused = self.noted.text("refused by a rule and kept as notes:") if self.noted.count else []
        rejected = self.rejected.text("rejected" + ("; put right and import again:" if self.rejected.count else ""))
        return "\n".join(
            [
                f"{self.events:,} events appended in {self.seconds:.1f} s ({rate:,.0f} per second)",
                *kinds,
                f"{self.already_present:,} changes were there already",
                *refused,
                *rejected,
                *([self.hint] if self.hint else []),
            ]
        )
