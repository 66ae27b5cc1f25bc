"""The activator's environment: what it means, and what is wrong with it in one sentence."""

from __future__ import annotations

import pytest

from activator.settings import settings_of
from cloudstate_core.process import SettingsError

LEADER = {"CLOUDSTATE_COORDINATOR": "leader:9100"}
PAIR = {**LEADER, "ACTIVATOR_HTTP_PORT": "8012", "ACTIVATOR_H2C_PORT": "8013"}


def test_one_port_and_an_end_without_delay() -> None:
    found = settings_of({**LEADER, "ACTIVATOR_PORT": "9001"})
    assert (found.port, found.http_port, found.linger, found.drain, found.hold) == (9001, None, 0.0, 5.0, 30.0)


def test_the_queue_is_bounded_by_a_setting() -> None:
    assert (settings_of(LEADER).queue, settings_of({**LEADER, "ACTIVATOR_QUEUE": "3"}).queue) == (10_000, 3)


def test_a_pod_has_two_ports_and_lingers() -> None:
    found = settings_of({**PAIR, "ACTIVATOR_DRAIN_SECONDS": "45", "ACTIVATOR_PORT": "9001"})
    assert (found.port, found.http_port, found.linger, found.drain) == (8013, 8012, 15.0, 45.0)
    assert settings_of({**PAIR, "ACTIVATOR_DRAIN_SECONDS": "3", "ACTIVATOR_LINGER_SECONDS": "10"}).linger == 3.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ACTIVATOR_HTTP_PORT": "8012"}, "ACTIVATOR_HTTP_PORT='8012': ACTIVATOR_HTTP_PORT and ACTIVATOR_H2C_PORT must be set together"),
        ({"ACTIVATOR_DRAIN_SECONDS": "soon"}, "ACTIVATOR_DRAIN_SECONDS='soon': must be seconds, 0 or more"),
        ({"ACTIVATOR_HOLD_SECONDS": "-1"}, "ACTIVATOR_HOLD_SECONDS='-1'"),
        ({"ACTIVATOR_LINGER_SECONDS": "inf"}, "ACTIVATOR_LINGER_SECONDS='inf'"),
        ({"ACTIVATOR_QUEUE": "0"}, "ACTIVATOR_QUEUE='0': must be a whole number from 1 to 1000000"),
        ({"ACTIVATOR_PORT": "70000"}, "ACTIVATOR_PORT='70000': must be a port from 0 to 65535"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings_of({**LEADER, **changes})
    assert says in str(error.value)
