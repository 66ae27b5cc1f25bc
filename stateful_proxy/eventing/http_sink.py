"""Posts events to where a service's events go: a Knative broker, a channel, or any receiver of HTTP CloudEvents in binary mode.

A receiver that is busy or away is tried again a few times; what it refuses is not. The client runs in a thread of its own, with connections that
are kept.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import quote

import aiohttp

from stateful_proxy.eventing.cloud_events import CloudEvent, request_headers
from stateful_proxy.eventing.publication import Done

log = logging.getLogger(__name__)

PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further attempt."""
ATTEMPT_LIMIT = 10.0
"""Seconds that one attempt may take."""
MOST_CONNECTIONS = 100
_LATER = (408, 425, 429)
"""Statuses below 500 that ask to come again."""


def url_of(address: str, topic: str) -> str:
    """Where a topic's events are posted."""
    return address.replace("{topic}", quote(topic, safe=""))


def tried_again(status: int) -> bool:
    """Whether a receiver with this answer may take the event later."""
    return status >= 500 or status in _LATER


class HttpSink:
    """One sink. `later` runs what it is given on the transport's callback thread."""

    def __init__(self, address: str, extensions: Mapping[str, str], certificates: str, later: Callable[[Callable[[], None]], None]) -> None:
        """`certificates`: further authorities, PEM."""
        self._address, self._extensions, self._certificates, self._later = address, extensions, certificates, later
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._failing = False
        threading.Thread(target=self._loop.run_forever, name="event-sink", daemon=True).start()

    def publish(self, topic: str, event: CloudEvent, done: Done) -> None:
        """Publish one event; `done` hears '' or the problem. The topic goes along as the extension attribute `topic`."""
        attributes = {**event.attributes, "topic": topic, **self._extensions}
        asyncio.run_coroutine_threadsafe(self._publish(topic, replace(event, attributes=attributes), done), self._loop)

    def stop(self) -> None:
        """Let go of everything; what is not published is not."""

        async def close() -> None:
            if self._session is not None:
                await self._session.close()
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(close(), self._loop)

    async def _publish(self, topic: str, event: CloudEvent, done: Done) -> None:
        url, problem, again = url_of(self._address, topic), "", True
        for pause in (0.0, *PAUSES):
            await asyncio.sleep(pause)
            problem, again = await self._attempt(url, event)
            if not again:
                break
        self._tell(problem)
        self._later(lambda: done(problem))

    async def _attempt(self, url: str, event: CloudEvent) -> tuple[str, bool]:
        """Post once: what went wrong, '' for nothing, and whether to try again."""
        try:
            async with self._client().post(url, data=event.data, headers=request_headers(event), allow_redirects=False) as answer:
                if answer.status < 300:
                    return "", False
                said = (await answer.text(errors="replace"))[:200]
                return f"{url}: status {answer.status}: {said}", tried_again(answer.status)
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            return f"{url}: {error or 'no answer in time'}", True
        except Exception as error:  # whatever it is: a publication ends, and its caller is told
            return f"{url}: {error}", False

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            trusted = ssl.create_default_context()
            if self._certificates:
                trusted.load_verify_locations(cadata=self._certificates)
            connector = aiohttp.TCPConnector(limit=MOST_CONNECTIONS, ssl=trusted)
            timeout = aiohttp.ClientTimeout(total=ATTEMPT_LIMIT)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session

    def _tell(self, problem: str) -> None:
        """Say when publishing begins to fail, and when it goes on."""
        if problem and not self._failing:
            log.warning("an event could not be published: %s", problem)
        elif self._failing and not problem:
            log.info("events are published again")
        self._failing = bool(problem)
