//! HTTP/2 requests: read, told to policy, and kept until policy or a forward has answered them.

use crate::answer;
use crate::call::{Call, Command, Exchange, Kind};
use crate::core::{Core, Event, OpenConnection};
use crate::deadline::{is_due, late_status, tighten, Alarm, LATE};
use crate::forward::{self, Order};
use crate::grpc;
use crate::intake::{Intake, Trouble};
use crate::listener::{Options, GREETING_LIMIT};
use crate::socket::Socket;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::RecvStream;
use http::request::Parts;
use std::future::{poll_fn, Future};
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::Instant;

/// What a peer may send on one stream, and on one connection, before it is read.
pub const STREAM_WINDOW: u32 = 256 * 1024;
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;

/// What the task of a call meets while it waits.
pub enum Step {
    /// Answered.
    Done,
    Forward(Order),
    Peek,
    CallerGone,
    /// Policy streams an answer that has no body.
    NobodyReads,
    DeadlinePassed,
}

/// Serve one HTTP/2 connection.
pub async fn serve(core: Rc<Core>, options: Rc<Options>, socket: TcpStream, guard: OpenConnection) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(options.max_streams)
        // All callers of a peer may leave while this side stands still: that must not take the connection from those who stay.
        .max_pending_accept_reset_streams(options.max_streams as usize)
        .max_header_list_size(u32::try_from(options.max_header).unwrap_or(u32::MAX));
    let socket = Socket::accepted(socket);
    let handshake = socket.drive(builder.handshake::<_, Bytes>(socket.clone()));
    let Ok(Ok(mut connection)) = tokio::time::timeout(GREETING_LIMIT, handshake).await else {
        return;
    };
    let mut closing = false;
    loop {
        let next = poll_fn(|context| {
            if !closing && guard.is_draining(context.waker()) {
                closing = true;
                connection.graceful_shutdown();
                socket.drain();
            }
            connection.poll_accept(context)
        });
        match socket.drive(next).await {
            Some(Ok((request, respond))) => {
                let (head, body) = request.into_parts();
                drop(spawn_local(call(core.clone(), options.clone(), head, body, respond)));
            }
            _ => return,
        }
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
            tell(core, id, Event::CallMessage(id, message.unwrap_or_default()));
            None
        }
        Ok(Err(Trouble::Gone)) => Some(Step::CallerGone),
        Ok(Err(Trouble::Refuse(status, text))) => {
            malformed(core, id, status, &text);
            None
        }
    }
}

/// End a call whose request cannot be read. What was answered before may still wait for its reader: its task stays with it.
fn malformed(core: &Core, id: u64, status: i32, text: &str) {
    tell(core, id, Event::CallCancelled(id, "the request is malformed"));
    answer::finish(core, id, status, text, Vec::new());
}

/// Tell something of a call, unless policy has finished it.
fn tell(core: &Core, id: u64, event: Event) {
    if core.calls.borrow().get(id).is_some_and(|call| !call.closing) {
        core.emit(event);
    }
}

/// Tell further messages, unless policy has paused the call; Some when the call ended first.
async fn read_on(core: &Rc<Core>, id: u64, intake: &mut Intake, alarm: &mut Alarm) -> Option<Step> {
    loop {
        let mut reading = std::pin::pin!(intake.message(false));
        let read = poll_fn(|context| {
            if let Poll::Ready(step) = poll_step(core, id, alarm, context) {
                return Poll::Ready(Err(step));
            }
            if core.calls.borrow().get(id).is_some_and(|call| call.paused) {
                return Poll::Pending;
            }
            reading.as_mut().poll(context).map(Ok)
        })
        .await;
        match read {
            Err(Step::Forward(_) | Step::Peek) => {} // a call told message by message is not forwarded; policy's order is void
            Err(step) => return Some(step),
            Ok(Ok(Some(message))) => tell(core, id, Event::CallMessage(id, message)),
            Ok(Ok(None)) => {
                tell(core, id, Event::CallEnd(id));
                return None;
            }
            Ok(Err(Trouble::Gone)) => return Some(Step::CallerGone),
            Ok(Err(Trouble::Refuse(status, text))) => {
                malformed(core, id, status, &text);
                return None;
            }
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
            if !call.closing && outlet.take_drained() {
                core.emit(Event::Drained(id));
            }
            if outlet.is_finished() {
                calls.remove(id);
                return Poll::Ready(Step::Done);
            }
            outlet.poll_reset(context)
        }
        Exchange::Bodiless => return Poll::Ready(Step::NobodyReads),
        Exchange::Http1(_) | Exchange::Feed(_) | Exchange::Away => Poll::Pending,
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
        Step::NobodyReads => answer::NO_BODY,
        Step::DeadlinePassed => LATE,
        Step::Done | Step::Forward(_) | Step::Peek => return,
    };
    let Some(mut call) = core.calls.borrow_mut().remove(id) else {
        return;
    };
    if matches!(step, Step::DeadlinePassed) {
        match &mut call.exchange {
            Exchange::Head(respond) => answer::refuse(respond, call.kind, late_status(call.kind), LATE),
            Exchange::Body(outlet) if call.kind == Kind::Http => outlet.reset(h2::Reason::INTERNAL_ERROR),
            Exchange::Body(outlet) if outlet.is_blocked() => outlet.reset(h2::Reason::CANCEL),
            Exchange::Body(outlet) => outlet.finish(grpc::trailers(grpc::DEADLINE_EXCEEDED, LATE, Vec::new())),
            Exchange::Bodiless | Exchange::Http1(_) | Exchange::Feed(_) | Exchange::Away => {}
        }
    }
    if call.told && !call.closing {
        core.emit(Event::CallCancelled(id, reason));
    }
}
