"""Asks Prometheus for the metrics of type Prometheus: each query at most once in an interval, beside everything else.

A query that fails, takes too long or gives no single number gives *nothing*: the scaler then holds what the metric asked for before. That is
logged when it changes, not each time. The client library blocks, so it runs in threads of its own, one question at a time for each query.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)

TIMEOUT = 3.0
"""Seconds for an answer; less than a value stands without being measured again."""
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="prometheus")

Source = tuple[str, ...]
"""('Prometheus', server, query), as a demand names it."""


class QueryError(Exception):
    """A query gave no value: says what came instead and the rule."""


def value_of(result: Any) -> float:
    """The one number of an instant query's result, a scalar or a vector with one series. QueryError when it is anything else."""
    try:
        if result and not isinstance(result[0], dict):
            text = result[1]
        elif len(result) != 1:
            raise QueryError(f"{len(result)} series: the query must give exactly one, as sum(…) does")
        else:
            text = result[0]["value"][1]
        value = float(text)
    except (TypeError, ValueError, LookupError) as error:
        raise QueryError("not one number at one time: the query must be an instant one") from error
    if not math.isfinite(value):
        raise QueryError(f"{value}: must be a finite number")
    return value


def ask(server: str, query: str) -> float:
    """The value of a query now; blocks. QueryError says why there is none."""
    from prometheus_api_client import PrometheusConnect  # who asks nothing needs no client
    from prometheus_api_client.exceptions import PrometheusApiClientException
    from requests import RequestException
    from urllib3 import Retry

    try:
        client = PrometheusConnect(url=server.rstrip("/"), timeout=TIMEOUT, retry=Retry(total=0))
        return value_of(client.custom_query(query))
    except RequestException as error:
        raise QueryError(f"no answer ({type(error).__name__})") from error
    except PrometheusApiClientException as error:
        raise QueryError(str(error)[:300]) from error
    except (KeyError, TypeError, ValueError) as error:
        raise QueryError("the answer is not one of Prometheus") from error


class Queries:
    """Follows some queries; `on_value(source, value)` is called in the event loop with each value. `interval` in seconds."""

    def __init__(self, on_value: Callable[[Source, float], None], interval: float, ask: Callable[[str, str], float] = ask) -> None:
        self._on_value, self._interval, self._ask = on_value, interval, ask
        self._following: dict[Source, asyncio.Task[None]] = {}

    def follow(self, sources: Iterable[Source]) -> None:
        """Follow exactly these from now on."""
        wanted = set(sources)
        for source in set(self._following) - wanted:
            self._following.pop(source).cancel()
        for source in wanted - set(self._following):
            self._following[source] = asyncio.create_task(self._run(source))

    async def close(self) -> None:
        """Ask nothing more."""
        tasks = list(self._following.values())
        self.follow(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, source: Source) -> None:
        _, server, query = source
        pending: Future[float] | None = None
        told = ""
        while True:
            if pending is None or pending.done():
                pending = _THREADS.submit(self._ask, server, query)
            problem = await self._take(source, pending)
            if problem != told:
                log.warning("metric %r of %s: %s", query, server, problem or "has a value again")
                told = problem
            await asyncio.sleep(self._interval)

    async def _take(self, source: Source, pending: Future[float]) -> str:
        """Pass the value on when it comes in time; '' then, else why not."""
        try:
            async with asyncio.timeout(TIMEOUT):
                value = await asyncio.shield(asyncio.wrap_future(pending))
        except TimeoutError:
            return f"no value within {TIMEOUT:g} s: the scale that it asked for is held"
        except QueryError as error:
            return f"{error}; the scale that it asked for is held"
        except Exception as error:
            log.exception("metric %r of %s", source[2], source[1])
            return f"{type(error).__name__}; the scale that it asked for is held"
        self._on_value(source, value)
        return ""
