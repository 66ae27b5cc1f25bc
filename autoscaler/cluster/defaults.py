"""The cluster's defaults from `config-autoscaler`; a ConfigMap that breaks a rule changes nothing."""

from __future__ import annotations

import logging

from autoscaler.config import Config, ConfigError, parse_config
from cloudstate_core.kube.objects import ConfigMap

log = logging.getLogger(__name__)


class Defaults:
    """The present defaults."""

    def __init__(self) -> None:
        self.config = Config()

    def changed(self, found: ConfigMap | None) -> None:
        """The ConfigMap came, changed or went."""
        if found is None:
            self.config = Config()
            return
        try:
            self.config = parse_config(found.data)
        except ConfigError as error:
            log.warning("%s; the values before stay in force", error)
