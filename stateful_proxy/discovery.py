"""Asks the user function what it serves: again and again until it answers, then checks the answer and tells the function what is wrong.

A function may end and come back as another one. Whenever it ends a stream unasked it is asked anew; one that answers otherwise than
before is not served by this proxy any more, since entities, routes and reflection follow the first answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Transport
from stateful_proxy.eventing.subscriptions import check_eventing
from stateful_proxy.service import PROTOCOLS, SUPPORTED, InvalidSpec, ServiceModel, Version, difference, model_of

log = logging.getLogger(__name__)

DISCOVER = "/cloudstate.EntityDiscovery/discover"
REPORT_ERROR = "/cloudstate.EntityDiscovery/reportError"
RETRY_FIRST, RETRY_LAST = 0.05, 5.0
"""Seconds between attempts: a local function is up within a second, an absent one is not hammered."""
REST = 1.0
"""Seconds between an answer and the next question: a function that ends stream after stream is not hammered either."""
REPORTS_AT_ONCE, REPORTS_A_SECOND = 100, 10
"""Mistakes that a function is told of."""
ANSWER_LIMIT = 10.0
"""Seconds that one attempt may take."""


class Discovery:
    """One function's discovery. `problem` says why commands cannot be given to it now; `changed` is called whenever it has changed.

    `on_model` is called once, with the first good answer; `on_other` when the function has come back as another, with what is wrong.
    `oldest`: the protocol version that it must speak at least; `sink`: there is where to publish what it declares to publish.
    """

    def __init__(
        self,
        transport: Transport,
        function: int,
        target: str,
        version: str,
        on_model: Callable[[ServiceModel], None],
        on_other: Callable[[str], None],
        changed: Callable[[], None],
        oldest: Version = PROTOCOLS[0],
        sink: bool = False,
    ) -> None:
        self._where = f"user function at {target}"
        self.problem = f"{self._where}: has not answered discovery yet"
        self._transport, self._function = transport, function
        self._on_model, self._on_other, self._changed = on_model, on_other, changed
        self._oldest, self._sink = oldest, sink
        self._question = entity_pb2.ProxyInfo(
            protocol_minor_version=2, proxy_name="cloudstate-knative", proxy_version=version, supported_entity_types=SUPPORTED
        ).SerializeToString()
        self._model: ServiceModel | None = None
        self._stream = 0
        self._reports, self._reported_at = float(REPORTS_AT_ONCE), 0.0
        self._answer: bytes | None = None
        self._retry = RETRY_FIRST
        self._busy = self._wanted = False
        """A question is out or about to go out; another is wanted after it."""

    def start(self) -> None:
        """Ask once; asks itself again while there is no good answer."""
        self._busy, self._wanted, self._answer = True, False, None
        self._stream = self._transport.open(self._function, DISCOVER, timeout=ANSWER_LIMIT)
        self._transport.send(self._stream, self._question)
        self._transport.half_close(self._stream)

    def again(self, lost: bool) -> None:
        """The function has ended a stream unasked; `lost`: it could not be reached, and may be another when it is back."""
        if self._model is None:
            return
        if lost:
            self._tell(f"{self._where}: the connection was lost; it is asked again what it serves")
        self._wanted = True
        if lost or not self._busy:
            self._retry = RETRY_FIRST
        if not self._busy:
            self.start()

    def on_event(self, event: Event) -> bool:
        """Handle an event of the discovery call; False when it belongs to another."""
        kind, stream, data, detail = event
        if stream != self._stream or kind not in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
            return False
        if kind == api.STREAM_MESSAGE:
            self._answer = data
        elif self._answer is None or detail[0] != api.Status.OK:
            late = detail[0] == api.Status.DEADLINE_EXCEEDED
            why = f"has not answered discovery within {ANSWER_LIMIT:g} s" if late else f"discovery failed: {detail[1] or detail[0]}"
            self._tell(f"{self._where}: {why}")
            self._transport.after(self._retry, self.start)
            self._retry = min(RETRY_LAST, self._retry * 1.5)
        else:
            self._stream, self._retry = 0, RETRY_FIRST
            self._check(self._answer)
        return True

    def _check(self, answer: bytes) -> None:
        try:
            model = model_of(entity_pb2.EntitySpec.FromString(answer), self._oldest)
            check_eventing(model, self._sink)
        except (InvalidSpec, DecodeError) as error:
            self._wrong(f"cannot be served: {error}", str(error))
            return
        if self._model is not None and (other := difference(self._model, model)):
            self._wrong(f"came back as another: {other}", "")
            return
        first, self._model = self._model is None, self._model or model
        if not self._wanted:  # else the answer may be that of a function which has gone since
            self._tell("")
        self._transport.after(REST, self._rested)
        if first:
            self._on_model(model)

    def _rested(self) -> None:
        self._busy = False
        if self._wanted:
            self.start()

    def _wrong(self, problem: str, report: str) -> None:
        """An answer that cannot be served: told once, and asked for again, since the function may be mended and restarted."""
        problem = f"{self._where}: {problem}"
        if self._model is not None:
            self._tell(problem)
            self._on_other(f"{problem}; a proxy serves what it found first, and starts anew for anything else")
            return
        if problem != self.problem:
            log.error("%s", problem)
            self.report_error(report)
        self._tell(problem)
        self._transport.after(RETRY_LAST, self.start)

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._changed()

    def report_error(self, text: str) -> None:
        """Tell the function about a mistake of its own; whether it listens does not matter. One that makes the same mistake with every answer
        is not told of each: so many at once, and then so many a second."""
        now = time.monotonic()
        self._reports = min(REPORTS_AT_ONCE, self._reports + (now - self._reported_at) * REPORTS_A_SECOND)
        self._reported_at = now
        if self._reports < 1:
            return
        self._reports -= 1
        stream = self._transport.open(self._function, REPORT_ERROR, timeout=ANSWER_LIMIT)
        self._transport.send(stream, entity_pb2.UserFunctionError(message=text).SerializeToString())
        self._transport.half_close(stream)
