//! HTTP/2 requests: read, told to policy, and kept until policy or a forward has answered them.

use crate::answer;
use crate::core::{Core, Event, OpenConnection};
use crate::forward::{self, Order};
use crate::framing::{Deframer, Fault};
use crate::grpc;
use crate::http1::Slot;
use crate::listener::{Options, GREETING_LIMIT};
use crate::outlet::Outlet;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::RecvStream;
use http::request::Parts;
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{Instant, Sleep};

/// What a peer may send on one stream, and on one connection, before it is read.
pub const STREAM_WINDOW: u32 = 256 * 1024;
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Time for the first message of a call before a peeking listener tells the call without it.
const PEEK_PATIENCE: Duration = Duration::from_millis(10);

/// How policy meets a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// gRPC, told when its one message is here.
    Unary,
    /// gRPC, told at its first message, then message by message.
    Streaming,
    /// gRPC, told at its first message; the rest is for `forward`.
    Peek,
    /// Not gRPC.
    Http,
}

impl Kind {
    fn of(head: &Parts, options: &Options) -> Kind {
        if head.method != http::Method::POST || !grpc::is_grpc(&head.headers) {
            Kind::Http
        } else if options.streaming.contains(head.uri.path()) {
            Kind::Streaming
        } else if options.peek {
            Kind::Peek
        } else {
            Kind::Unary
        }
    }
}

/// Where the answer goes.
pub enum Exchange {
    /// HTTP/2, nothing answered yet.
    Head(SendResponse<Bytes>),
    /// HTTP/2, a streaming answer has begun.
    Body(Outlet),
    /// HTTP/1.1.
    Http1(Rc<Slot>),
    /// A forward has it.
    Away,
}

/// What policy orders the task of a call to do.
pub enum Command {
    Forward(Order),
    /// Tell the first message, of which CALL told that it was not seen.
    Peek,
    /// Policy ends a call that is being forwarded: gRPC status (or HTTP status), text.
    Abort(i32, String),
}

/// A request that waits for its answer.
pub struct Call {
    pub kind: Kind,
    pub head: Rc<Parts>,
    pub options: Rc<Options>,
    pub first: Bytes,
    pub complete: bool,
    /// `first` is the first message, or there is none.
    pub peeked: bool,
    pub exchange: Exchange,
    pub command: Option<Command>,
    /// When policy wants it to end at the latest; its task takes it over.
    pub limit: Option<Instant>,
    pub waker: Option<Waker>,
    pub told: bool,
    /// Policy has finished it; only what it sent before is still being written.
    pub closing: bool,
}

impl Call {
    pub fn new(
        kind: Kind,
        head: Rc<Parts>,
        options: &Rc<Options>,
        first: Bytes,
        complete: bool,
        exchange: Exchange,
    ) -> Call {
        Call {
            kind,
            head,
            options: options.clone(),
            first,
            complete,
            peeked: true,
            exchange,
            command: None,
            limit: None,
            waker: None,
            told: false,
            closing: false,
        }
    }

    /// Let its task look at what has changed.
    pub fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What the task of a call meets while it waits.
pub enum Step {
    /// Answered.
    Done,
    Forward(Order),
    Peek,
    CallerGone,
    DeadlinePassed,
}

/// Serve one HTTP/2 connection.
pub async fn serve(core: Rc<Core>, options: Rc<Options>, socket: TcpStream, guard: OpenConnection) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(u32::try_from(options.max_header).unwrap_or(u32::MAX));
    let handshake = tokio::time::timeout(GREETING_LIMIT, builder.handshake::<_, Bytes>(socket));
    let Ok(Ok(mut connection)) = handshake.await else {
        return;
    };
    let mut closing = false;
    loop {
        let next = poll_fn(|context| {
            if !closing && guard.is_draining(context.waker()) {
                closing = true;
                connection.graceful_shutdown();
            }
            connection.poll_accept(context)
        });
        match next.await {
            Some(Ok((request, respond))) => {
                let (head, body) = request.into_parts();
                drop(spawn_local(call(core.clone(), options.clone(), head, body, respond)));
            }
            _ => return,
        }
    }
}

/// The body of a request, as far as it has been read.
pub struct Intake {
    pub body: RecvStream,
    deframer: Deframer,
    /// What was read and may have to be sent again, raw.
    pub retained: Vec<Bytes>,
    pub ended: bool,
}

/// Why reading ended early.
enum Trouble {
    Gone,
    Refuse(i32, String),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::TooLarge { size, max } => Trouble::Refuse(
                grpc::RESOURCE_EXHAUSTED,
                format!("request message of {size} bytes: the most taken is {max}"),
            ),
            Fault::Compressed => {
                let text = "compressed request message: only grpc-encoding identity is taken".to_owned();
                Trouble::Refuse(grpc::UNIMPLEMENTED, text)
            }
        }
    }
}

impl Intake {
    fn new(body: RecvStream, max: usize) -> Intake {
        let ended = body.is_end_stream();
        Intake {
            body,
            deframer: Deframer::new(max),
            retained: Vec::new(),
            ended,
        }
    }

    /// The next chunk; its window is given back.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Trouble> {
        match self.body.data().await {
            Some(Ok(chunk)) => {
                let _ = self.body.flow_control().release_capacity(chunk.len());
                self.ended = self.body.is_end_stream();
                Ok(Some(chunk))
            }
            Some(Err(_)) => Err(Trouble::Gone),
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// The next message; None at the end of the body.
    async fn message(&mut self, retain: bool) -> Result<Option<Bytes>, Trouble> {
        loop {
            if let Some(message) = self.deframer.next()? {
                return Ok(Some(message));
            }
            match self.chunk().await? {
                Some(chunk) => {
                    if retain {
                        self.retained.push(chunk.clone());
                    }
                    self.deframer.feed(chunk);
                }
                None if self.deframer.is_empty() => return Ok(None),
                None => {
                    let text = "the request ends within a message".to_owned();
                    return Err(Trouble::Refuse(grpc::INTERNAL, text));
                }
            }
        }
    }

    /// The one message of a unary call.
    async fn only_message(&mut self) -> Result<Bytes, Trouble> {
        let wrong = |count| {
            Trouble::Refuse(
                grpc::INTERNAL,
                format!("a unary call takes exactly one request message, not {count}"),
            )
        };
        let first = self.message(true).await?.ok_or_else(|| wrong("none"))?;
        match self.message(true).await? {
            None => Ok(first),
            Some(_) => Err(wrong("several")),
        }
    }

    /// A whole body that is not gRPC.
    async fn all(&mut self, max: usize) -> Result<Bytes, Trouble> {
        let mut joined = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if joined.len() + chunk.len() > max {
                return Err(Trouble::Refuse(
                    413,
                    format!("request body: the most taken is {max} bytes"),
                ));
            }
            joined.extend_from_slice(&chunk);
        }
        Ok(joined.freeze())
    }

    /// What policy sees first, whether it is all, and whether it is the first message.
    async fn first(&mut self, kind: Kind, options: &Options) -> Result<(Bytes, bool, bool), Trouble> {
        Ok(match kind {
            Kind::Unary => (self.only_message().await?, true, true),
            Kind::Streaming => match self.message(false).await? {
                Some(message) => (message, self.ended && self.deframer.is_empty(), true),
                None => (Bytes::new(), true, true),
            },
            Kind::Peek => match tokio::time::timeout(PEEK_PATIENCE, self.message(true)).await {
                Ok(Ok(Some(message))) => (message, self.ended && self.deframer.is_empty(), true),
                Ok(Ok(None)) => (Bytes::new(), true, true),
                Ok(Err(Trouble::Gone)) => return Err(Trouble::Gone),
                Ok(Err(Trouble::Refuse(..))) | Err(_) => (Bytes::new(), false, false),
            },
            Kind::Http if options.peek => (Bytes::new(), self.ended, true),
            Kind::Http => {
                let body = self.all(options.max_message).await?;
                self.retained.push(body.clone());
                (body, true, true)
            }
        })
    }
}

/// One request, from its head to the end of its answer.
async fn call(core: Rc<Core>, options: Rc<Options>, head: Parts, body: RecvStream, mut respond: SendResponse<Bytes>) {
    let _open = core.enter();
    let kind = Kind::of(&head, &options);
    let timeout = head.headers.get(&grpc::GRPC_TIMEOUT).filter(|_| kind != Kind::Http);
    let deadline = timeout
        .and_then(|value| grpc::parse_timeout(value.as_bytes()))
        .map(|timeout| Instant::now() + timeout);
    let mut alarm = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
    let mut intake = Intake::new(body, options.max_message);
    let first = {
        let mut reading = std::pin::pin!(intake.first(kind, &options));
        poll_fn(|context| match reading.as_mut().poll(context) {
            Poll::Pending if is_due(&mut alarm, context) => {
                Poll::Ready(Err(Trouble::Refuse(grpc::DEADLINE_EXCEEDED, LATE.to_owned())))
            }
            polled => polled,
        })
        .await
    };
    let (first, complete, peeked) = match first {
        Ok(first) => first,
        Err(Trouble::Gone) => return,
        Err(Trouble::Refuse(status, text)) => return answer::refuse(&mut respond, kind, status, &text),
    };
    let mut call = Call::new(kind, Rc::new(head), &options, first, complete, Exchange::Head(respond));
    call.peeked = peeked;
    let id = core.calls.borrow_mut().insert(call);
    core.emit(Event::Call(id));
    attend(&core, id, kind, complete, intake, deadline, alarm).await;
}

pub const LATE: &str = "the deadline of the call has passed";

/// The status of a call whose deadline has passed, gRPC's or HTTP's.
pub fn late_status(kind: Kind) -> i32 {
    if kind == Kind::Http {
        504
    } else {
        grpc::DEADLINE_EXCEEDED
    }
}

pub type Alarm = Option<Pin<Box<Sleep>>>;

pub fn is_due(alarm: &mut Alarm, context: &mut Context<'_>) -> bool {
    alarm
        .as_mut()
        .is_some_and(|alarm| alarm.as_mut().poll(context).is_ready())
}

/// Ring at `limit` if that is earlier.
pub fn tighten(alarm: &mut Alarm, limit: Option<Instant>) {
    let Some(limit) = limit else { return };
    match alarm {
        Some(alarm) if alarm.deadline() <= limit => {}
        Some(alarm) => alarm.as_mut().reset(limit),
        None => *alarm = Some(Box::pin(tokio::time::sleep_until(limit))),
    }
}

/// Stay with a call that policy knows until it is answered.
async fn attend(
    core: &Rc<Core>,
    id: u64,
    kind: Kind,
    complete: bool,
    mut intake: Intake,
    deadline: Option<Instant>,
    mut alarm: Alarm,
) {
    if kind == Kind::Streaming && !complete {
        if let Some(step) = Box::pin(read_on(core, id, &mut intake, &mut alarm)).await {
            return settle(core, id, step);
        }
    }
    let mut met = None;
    loop {
        let step = match met.take() {
            Some(step) => step,
            None => poll_fn(|context| poll_step(core, id, &mut alarm, context)).await,
        };
        match step {
            Step::Peek => met = Box::pin(read_first(core, id, &mut intake, &mut alarm)).await,
            Step::Forward(order) => {
                // Boxed, so that the task of a call that is not forwarded stays small.
                if Box::pin(forward::run(core, id, order, &mut intake, deadline, &mut alarm)).await {
                    return;
                }
            }
            step => return settle(core, id, step),
        }
    }
}

/// Tell the first message, b"" when there is none; Some when something else comes first.
async fn read_first(core: &Rc<Core>, id: u64, intake: &mut Intake, alarm: &mut Alarm) -> Option<Step> {
    let mut reading = std::pin::pin!(intake.message(true));
    let read = poll_fn(|context| {
        if let Poll::Ready(step) = poll_step(core, id, alarm, context) {
            return Poll::Ready(Err(step));
        }
        reading.as_mut().poll(context).map(Ok)
    })
    .await;
    match read {
        Err(step) => Some(step),
        Ok(Ok(message)) => {
            core.emit(Event::CallMessage(id, message.unwrap_or_default()));
            None
        }
        Ok(Err(Trouble::Gone)) => Some(Step::CallerGone),
        Ok(Err(Trouble::Refuse(status, text))) => Some(malformed(core, id, status, &text)),
    }
}

/// End a call whose request cannot be read.
fn malformed(core: &Core, id: u64, status: i32, text: &str) -> Step {
    answer::finish(core, id, status, text, Vec::new());
    core.emit(Event::CallCancelled(id, "the request is malformed"));
    Step::Done
}

/// Tell further messages; Some when the call ended first.
async fn read_on(core: &Rc<Core>, id: u64, intake: &mut Intake, alarm: &mut Alarm) -> Option<Step> {
    loop {
        let mut reading = std::pin::pin!(intake.message(false));
        let read = poll_fn(|context| {
            if let Poll::Ready(step) = poll_step(core, id, alarm, context) {
                return Poll::Ready(Err(step));
            }
            reading.as_mut().poll(context).map(Ok)
        })
        .await;
        match read {
            Err(Step::Forward(_) | Step::Peek) => {} // a call told message by message is not forwarded; policy's order is void
            Err(step) => return Some(step),
            Ok(Ok(Some(message))) => core.emit(Event::CallMessage(id, message)),
            Ok(Ok(None)) => {
                core.emit(Event::CallEnd(id));
                return None;
            }
            Ok(Err(Trouble::Gone)) => return Some(Step::CallerGone),
            Ok(Err(Trouble::Refuse(status, text))) => return Some(malformed(core, id, status, &text)),
        }
    }
}

/// Look at what may have happened to a waiting call.
fn poll_step(core: &Core, id: u64, alarm: &mut Alarm, context: &mut Context<'_>) -> Poll<Step> {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls.get_mut(id) else {
        return Poll::Ready(Step::Done);
    };
    match call.command.take() {
        Some(Command::Forward(order)) => return Poll::Ready(Step::Forward(order)),
        Some(Command::Peek) => return Poll::Ready(Step::Peek),
        Some(Command::Abort(..)) | None => {}
    }
    tighten(alarm, call.limit.take());
    let reset = match &mut call.exchange {
        Exchange::Head(respond) => respond.poll_reset(context).map(drop),
        Exchange::Body(outlet) => {
            outlet.poll_pump(context);
            if outlet.is_finished() {
                calls.remove(id);
                return Poll::Ready(Step::Done);
            }
            outlet.poll_reset(context)
        }
        Exchange::Http1(_) | Exchange::Away => Poll::Pending,
    };
    if reset.is_ready() {
        return Poll::Ready(Step::CallerGone);
    }
    match &mut call.waker {
        Some(waker) => waker.clone_from(context.waker()),
        None => call.waker = Some(context.waker().clone()),
    }
    drop(calls);
    if is_due(alarm, context) {
        return Poll::Ready(Step::DeadlinePassed);
    }
    Poll::Pending
}

/// End a call that policy has not answered.
fn settle(core: &Core, id: u64, step: Step) {
    let reason = match step {
        Step::CallerGone => "the caller is gone",
        Step::DeadlinePassed => LATE,
        Step::Done | Step::Forward(_) | Step::Peek => return,
    };
    let Some(mut call) = core.calls.borrow_mut().remove(id) else {
        return;
    };
    if matches!(step, Step::DeadlinePassed) {
        match &mut call.exchange {
            Exchange::Head(respond) => answer::refuse(respond, call.kind, late_status(call.kind), LATE),
            Exchange::Body(outlet) if outlet.is_blocked() => outlet.reset(h2::Reason::CANCEL),
            Exchange::Body(outlet) => outlet.finish(grpc::trailers(grpc::DEADLINE_EXCEEDED, LATE, Vec::new())),
            Exchange::Http1(_) | Exchange::Away => {}
        }
    }
    if call.told && !call.closing {
        core.emit(Event::CallCancelled(id, reason));
    }
}
