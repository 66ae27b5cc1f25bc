"""Wires one revision controller process: admission in every replica; certificates, stores and pairings by the leader."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable
from typing import Any

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.controller import Controller
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.replica import Replica, Role
from revision_controller import config as installation
from revision_controller.config import Config, ConfigError, config_of
from revision_controller.pairings import Pairings
from revision_controller.settings import Settings
from revision_controller.store_status import StoreStatus
from revision_controller.trust import SECRET_NAME, Trust, held_in
from revision_controller.webhook import Webhook

log = logging.getLogger(__name__)


class RevisionController(Replica):
    """One replica of the revision controller."""

    def __init__(self, settings: Settings) -> None:
        role = Role("cloudstate-revision-controller", self._lead, self._serve, lambda: self._problem, self._metrics)
        super().__init__(role, settings.namespace, settings.pod, settings.admin_port, settings.kubeconfig)
        self._settings = settings
        self._config: Config = config_of({}, settings.proxy_image, settings.coordinator)
        self._webhook: Webhook | None = None
        self._controllers: dict[str, Controller] = {}
        self._problem = "starting"

    # Every replica ------------------------------------------------------------------------------------------------------

    async def _serve(self, client: KubeClient) -> None:
        """Answer admission once there are certificates, and go on with new ones as they come."""
        settings = self._settings
        stores = Cache(client, kinds.STATEFUL_STORE)
        secrets = Cache(client, kinds.SECRET, settings.namespace, fields=f"metadata.name={SECRET_NAME}")
        config = Cache(client, kinds.CONFIG_MAP, settings.namespace, fields=f"metadata.name={installation.NAME}")
        webhook = self._webhook = Webhook(client, stores, lambda: self._config)
        trusted = asyncio.Event()

        def certificates_changed(_: objects.Secret | None, after: objects.Secret | None) -> None:
            if (held := held_in(after)) is None:
                return  # the leader makes them; those in use stay in use
            try:
                webhook.use(held)
            except ssl.SSLError as error:
                log.warning("Secret %s: %s; the certificate in use stays in use", SECRET_NAME, error)
            else:
                trusted.set()

        secrets.listen(certificates_changed)
        config.listen(self._config_changed)
        caches: list[Cache[Any]] = [stores, secrets, config]
        try:
            async with asyncio.TaskGroup() as group:
                for cache in caches:
                    group.create_task(cache.run())
                for cache in caches:
                    await cache.synced.wait()
                self._problem = "the webhook has no certificates yet"
                await trusted.wait()
                await webhook.start(settings.host, settings.webhook_port)
                self._problem = ""
        finally:
            if not self._problem:
                self._problem = "ending"
                await asyncio.sleep(settings.linger)
            await webhook.stop()

    def _config_changed(self, _: objects.ConfigMap | None, after: objects.ConfigMap | None) -> None:
        try:
            self._config = config_of(after.data if after is not None else {}, self._settings.proxy_image, self._settings.coordinator)
        except ConfigError as error:
            log.warning("%s; the last good values stay in force", error)

    # The leader ---------------------------------------------------------------------------------------------------------

    async def _lead(self, client: KubeClient) -> None:
        settings = self._settings
        recorder = Recorder(client, "revision-controller", settings.pod)
        revisions, stores = Cache(client, kinds.REVISION), Cache(client, kinds.STATEFUL_STORE)
        pairings = Pairings(client, revisions, stores, recorder)
        status = StoreStatus(client, stores, recorder)
        trust = Trust(client, settings.namespace, settings.names)
        store_loop = Controller("statefulstores", status.reconcile, workers=4)
        pairing_loop = Controller("pairings", pairings.reconcile, workers=4)

        def revision_changed(before: objects.Revision | None, after: objects.Revision | None) -> None:
            if after is not None:
                pairing_loop.queue.add(after.metadata.key)
            elif before is not None:
                pairings.forget(before.metadata.uid)

        def store_changed(before: objects.StatefulStore | None, after: objects.StatefulStore | None) -> None:
            found = after or before
            assert found is not None
            if before is None or after is None or before.spec != after.spec:
                store_loop.queue.add(found.metadata.key)
            if after is None:
                recorder.forget(found.metadata.uid)
            for key in pairings.users_of(found):
                pairing_loop.queue.add(key)

        revisions.listen(revision_changed)
        stores.listen(store_changed)
        self._controllers = {"certificates": trust.controller, "statefulstores": store_loop, "pairings": pairing_loop}
        try:
            async with asyncio.TaskGroup() as group:
                for run in (trust.run(), stores.run(), revisions.run()):
                    group.create_task(run)
                await stores.synced.wait()
                await revisions.synced.wait()
                for run in (store_loop.run(), pairing_loop.run()):
                    group.create_task(run)
        finally:
            await recorder.close()

    def _metrics(self) -> Iterable[str]:
        yield "# TYPE cloudstate_admission_reviews_total counter\n"
        for (path, outcome), count in sorted(self._webhook.outcomes.items() if self._webhook is not None else ()):
            yield f'cloudstate_admission_reviews_total{{path="{path}",outcome="{outcome}"}} {count}\n'
        for name, result in (("done_total", "reconciled"), ("failed_total", "failed")):
            yield f"# TYPE cloudstate_{result}_total counter\n"
            for loop, controller in self._controllers.items():
                yield f'cloudstate_{result}_total{{controller="{loop}"}} {getattr(controller, name)}\n'
