"""Where the API server is and who we are to it: a kubeconfig file, or the service account of the pod.

Tokens end: a service account's is read anew every minute, and whatever the server has refused (401) is loaded anew before the next call,
so that rotated files and tokens of credential plugins are taken up without a restart.
"""

from __future__ import annotations

import asyncio
import os

import yaml
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration

from cloudstate_core.kube.api import KubeError


class Access:
    """The way to one API server. Make it with `load`."""

    def __init__(self, kubeconfig: str) -> None:
        self.configuration = Configuration()
        self.configuration.connection_pool_maxsize = 0  # watches hold connections for good: no limit
        self._kubeconfig = kubeconfig
        self._current = ""
        self._stale = True
        self._lock = asyncio.Lock()

    @classmethod
    async def load(cls, kubeconfig: str = "") -> Access:
        """From a file (or $KUBECONFIG), else as the pod's service account. KubeError when neither is there or it cannot be read."""
        access = cls(kubeconfig or os.environ.get("KUBECONFIG", ""))
        await access.authorization()
        return access

    @property
    def host(self) -> str:
        """URL of the API server, without a path."""
        return str(self.configuration.host)

    async def authorization(self) -> str:
        """The Authorization header to send now; '' when none is needed. KubeError when the credentials cannot be read."""
        try:
            if self._stale:
                async with self._lock:
                    if self._stale:
                        await self._load()
                        self._stale = False
            token = await self.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
            raise KubeError(0, "Configuration", f"no way to the API server: {error}") from error
        self._current = (token or "").strip()
        return self._current

    def refused(self, authorization: str) -> None:
        """The server knows nobody by this header: load the credentials anew, unless that has happened since it was given out."""
        self._stale = self._stale or authorization == self._current

    async def _load(self) -> None:
        if self._kubeconfig:
            await config.load_kube_config(self._kubeconfig, client_configuration=self.configuration, persist_config=False)
        else:
            config.load_incluster_config(self.configuration)
