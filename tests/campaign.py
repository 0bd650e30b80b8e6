"""Whether the long forms of the tests run (`make faults`), or those of every run."""

import os

import pytest

CAMPAIGN = os.environ.get("CONVERSAS_CAMPAIGN") == "1"
SLOW_CANARY = "a canary that takes long"


def only_in_campaigns(why: str) -> pytest.MarkDecorator:
    """Marks what every run does without; `make faults` runs it where it is marked ``faults`` as well."""
    return pytest.mark.skipif(not CAMPAIGN, reason=f"{why}: run by make faults")
