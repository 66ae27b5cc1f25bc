"""The environment and config-cloudstate: defaults, and errors with key, value and rule."""

from __future__ import annotations

import pytest

from cloudstate_core.process import SettingsError
from revision_controller.config import ConfigError, config_of
from revision_controller.settings import settings_of

LEAST = {"POD_NAME": "rc-1", "PROXY_IMAGE": "proxy:1"}


def test_what_the_environment_need_not_say() -> None:
    settings = settings_of(LEAST)
    assert (settings.namespace, settings.webhook_port, settings.admin_port, settings.linger) == ("cloudstate-system", 8443, 8558, 5.0)
    assert settings.coordinator == "cloudstate-autoscaler.cloudstate-system.svc.cluster.local:8101"
    assert settings_of(LEAST | {"POD_NAMESPACE": "other"}).coordinator.startswith("cloudstate-autoscaler.other.svc")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"POD_NAME": ""}, "POD_NAME: must be set"),
        ({"PROXY_IMAGE": ""}, "PROXY_IMAGE: must be set"),
        ({"WEBHOOK_PORT": "https"}, "WEBHOOK_PORT='https': must be a port from 0 to 65535"),
        ({"ADMIN_PORT": "65536"}, "ADMIN_PORT='65536': must be a port from 0 to 65535"),
        ({"WEBHOOK_LINGER": "soon"}, "WEBHOOK_LINGER='soon': must be a duration"),
        ({"WEBHOOK_LINGER": "1m"}, "WEBHOOK_LINGER='1m': must be from 0s to 8s"),
    ],
)
def test_wrong_values(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_of(LEAST | given)
    assert str(refused.value).startswith(said)


def test_an_empty_config_map_gives_the_defaults() -> None:
    config = config_of({}, "proxy:1", "leader:8101")
    assert (config.proxy.image, config.proxy.coordinator, config.default_store) == ("proxy:1", "leader:8101", "")


def test_the_config_map_decides() -> None:
    data = {"proxy-image": "mine:2", "proxy-cpu-request": "100m", "proxy-memory-request": "1Gi", "default-stateful-store": "main", "_example": "?"}
    config = config_of(data, "proxy:1", "leader:8101")
    assert (config.proxy.image, config.proxy.cpu_request, config.proxy.memory_request, config.default_store) == ("mine:2", "100m", "1Gi", "main")


def test_everything_wrong_in_the_config_map_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        config_of({"proxy-cpu-request": "much", "proxy-log-level": "loud", "proxy-images": "x"}, "proxy:1", "leader:8101")
    assert str(refused.value) == (
        "config-cloudstate: proxy-images: no such key; config-cloudstate: proxy-cpu-request: 'much' must be a quantity such as 100m or 64Mi; "
        "config-cloudstate: proxy-log-level: 'loud' must be DEBUG, INFO, WARNING or ERROR"
    )
