"""Settings from the environment, and what is said about bad ones."""

from __future__ import annotations

import pytest

from stateful_proxy.settings import SettingsError, settings_of


def test_defaults() -> None:
    settings = settings_of({})
    assert (settings.function, settings.data_port, settings.peer_port, settings.admin_port) == ("127.0.0.1:8080", 9000, 8559, 8558)
    assert (settings.journal, settings.coordinator, settings.shards, settings.passivation) == ("memory:", "", 256, 30.0)


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("30s", 30.0), ("1.5m", 90.0), ("1h", 3600.0)])
def test_durations(text: str, seconds: float) -> None:
    assert settings_of({"CLOUDSTATE_PASSIVATION_TIMEOUT": text}).passivation == seconds


@pytest.mark.parametrize(("text", "names"), [("", ()), ("X-User", ("x-user",)), ("x-user, ce-*,", ("x-user", "ce-*"))])
def test_header_names(text: str, names: tuple[str, ...]) -> None:
    assert settings_of({"CLOUDSTATE_ENTITY_HEADERS": text}).entity_headers == names


@pytest.mark.parametrize(("environment", "oldest"), [({}, (0, 1)), ({"CLOUDSTATE_OLDEST_PROTOCOL": "0.2"}, (0, 2))])
def test_the_oldest_protocol_taken(environment: dict[str, str], oldest: tuple[int, int]) -> None:
    assert settings_of(environment).oldest_protocol == oldest


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("CLOUDSTATE_DATA_PORT", "70000", "must be a whole number from 0 to 65535"),
        ("CLOUDSTATE_DATA_PORT", "-1", "must be a whole number from 0 to 65535"),
        ("CLOUDSTATE_SHARDS", "0", "must be a whole number from 1 to 4096"),
        ("CLOUDSTATE_SHARDS", "many", "must be a whole number from 1 to 4096"),
        ("CLOUDSTATE_PASSIVATION_TIMEOUT", "0s", "must be a duration above zero"),
        ("CLOUDSTATE_PASSIVATION_TIMEOUT", "30", "must be a duration above zero"),
        ("CLOUDSTATE_ENTITY_HEADERS", "x-user, *", "must be header names with commas between them"),
        ("CLOUDSTATE_ENTITY_HEADERS", "x-user x-other", "must be header names with commas between them"),
        ("CLOUDSTATE_USER_FUNCTION", "localhost", "must be host:port"),
        ("CLOUDSTATE_SERVICE", "cart", "must be namespace/name"),
        ("CLOUDSTATE_SINK", "broker", "must be an http:// or https:// URL"),
        ("K_CE_OVERRIDES", "{", "must be JSON such as"),
        ("K_CE_OVERRIDES", "[]", "must be JSON such as"),
        ("CLOUDSTATE_OLDEST_PROTOCOL", "0.3", "must be one of 0.1, 0.2"),
        ("CLOUDSTATE_OLDEST_PROTOCOL", "", "must be one of 0.1, 0.2"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_rule(key: str, value: str, rule: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_of({key: value})
    assert str(caught.value).startswith(f"{key}={value!r}: {rule}")


def test_a_sink_of_its_own_goes_before_one_that_the_service_is_bound_to() -> None:
    bound = {"K_SINK": "http://bound", "K_CE_OVERRIDES": '{"extensions": {"Team": "a"}}'}
    settings = settings_of(bound)
    assert (settings.sink, settings.sink_extensions, settings.sink_certificates) == ("http://bound", {"team": "a"}, "")
    assert settings_of({**bound, "CLOUDSTATE_SINK": "https://own/{topic}"}).sink == "https://own/{topic}"


def test_certificates_of_a_sink_are_looked_at_at_the_start() -> None:
    for wrong in ("PEM", "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n"):
        with pytest.raises(SettingsError, match="K_CA_CERTS: must be certificates in PEM form"):
            settings_of({"K_CA_CERTS": wrong})
