"""Giving answers to those who wait for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cloudstate_core.journal.api import Done, Outcome

log = logging.getLogger(__name__)


def deliver(done: Done, outcomes: Sequence[Outcome]) -> None:
    """Give a batch its outcomes. The receiver's fault must not cost everybody else theirs."""
    try:
        done(outcomes)
    except Exception:
        log.exception("the receiver of a journal answer failed")
