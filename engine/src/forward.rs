//! A call passed to an upstream over HTTP/2: all headers, body, answer and trailers, with flow control both ways.
//!
//! What was sent upstream is kept, up to a limit, until the upstream answers, so that a refused call can be sent elsewhere.

use crate::answer;
use crate::call::{Command, Exchange, Kind};
use crate::core::{Core, End, Event};
use crate::deadline::{is_due, late_status, tighten, Alarm, LATE};
use crate::grpc;
use crate::headers::{rewrite, Pairs, Pattern};
use crate::intake::Intake;
use crate::upstream::{Lease, Upstream};
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use std::cell::{Cell, RefCell};
use std::future::{poll_fn, Future};
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// Bytes of a request that are kept for another attempt.
const MOST_RETAINED: usize = 1024 * 1024;

/// What policy asks `forward` to do.
pub struct Order {
    pub upstream: Option<Rc<Upstream>>,
    pub replace: Pairs,
    pub remove: Vec<Pattern>,
}

/// The caller's side while its call is away.
enum Caller {
    Waiting(SendResponse<Bytes>),
    Answering(SendStream<Bytes>),
    Answered,
}

impl Caller {
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Caller::Waiting(respond) => respond.poll_reset(context).map(drop),
            Caller::Answering(tx) => tx.poll_reset(context).map(drop),
            Caller::Answered => Poll::Pending,
        }
    }

    /// End the call with what has come of its answer so far.
    fn fail(&mut self, kind: Kind, status: i32, text: &str) {
        match std::mem::replace(self, Caller::Answered) {
            Caller::Waiting(mut respond) => answer::refuse(&mut respond, kind, status, text),
            Caller::Answering(mut tx) if kind == Kind::Http => tx.send_reset(h2::Reason::INTERNAL_ERROR),
            Caller::Answering(mut tx) => drop(tx.send_trailers(grpc::trailers(status, text, Vec::new()))),
            Caller::Answered => {}
        }
    }
}

/// Why the two sides were parted before the answer was whole.
enum Parted {
    CallerGone,
    DeadlinePassed,
    Aborted(i32, String),
}

/// Forward once; true when the call has ended.
pub async fn run(
    core: &Rc<Core>,
    id: u64,
    order: Order,
    intake: &mut Intake,
    deadline: Option<Instant>,
    alarm: &mut Alarm,
) -> bool {
    let Some((kind, head, respond)) = take(core, id) else {
        return false;
    };
    let caller = RefCell::new(Caller::Waiting(respond));
    let carried = {
        let mut carrying = std::pin::pin!(carry(order, kind, &head, intake, deadline, &caller));
        poll_fn(|context| {
            // First what parts them: a request that breaks off with its caller is no failure of the upstream, and a refusal does not bring a
            // call back that policy has just answered.
            if let Poll::Ready(parted) = poll_parted(core, id, &caller, alarm, context) {
                return Poll::Ready(Err(parted));
            }
            carrying.as_mut().poll(context).map(Ok)
        })
        .await
    };
    let mut caller = caller.into_inner();
    let end = match carried {
        Ok(End::Refused(why)) => match caller {
            Caller::Waiting(respond) => {
                give_back(core, id, respond);
                core.emit(Event::Forwarded(id, End::Refused(why)));
                return false;
            }
            _ => End::Failed(why),
        },
        Ok(End::Failed(why)) => {
            let status = if kind == Kind::Http { 502 } else { grpc::UNAVAILABLE };
            caller.fail(kind, status, &why);
            End::Failed(why)
        }
        Ok(end) => end,
        Err(Parted::CallerGone) => End::Cancelled("the caller is gone".to_owned()),
        Err(Parted::DeadlinePassed) => {
            caller.fail(kind, late_status(kind), LATE);
            End::Cancelled(LATE.to_owned())
        }
        Err(Parted::Aborted(status, text)) => {
            caller.fail(kind, status, &text);
            End::Cancelled(text)
        }
    };
    drop(core.calls.borrow_mut().remove(id));
    core.emit(Event::Forwarded(id, end));
    true
}

fn take(core: &Core, id: u64) -> Option<(Kind, Rc<Parts>, SendResponse<Bytes>)> {
    let mut calls = core.calls.borrow_mut();
    let call = calls.get_mut(id)?;
    match std::mem::replace(&mut call.exchange, Exchange::Away) {
        Exchange::Head(respond) => Some((call.kind, call.head.clone(), respond)),
        other => {
            call.exchange = other;
            None
        }
    }
}

fn give_back(core: &Core, id: u64, respond: SendResponse<Bytes>) {
    if let Some(call) = core.calls.borrow_mut().get_mut(id) {
        call.exchange = Exchange::Head(respond);
    }
}

fn poll_parted(
    core: &Core,
    id: u64,
    caller: &RefCell<Caller>,
    alarm: &mut Alarm,
    context: &mut Context<'_>,
) -> Poll<Parted> {
    if let Some(call) = core.calls.borrow_mut().get_mut(id) {
        if let Some(Command::Abort(status, text)) = call.command.take() {
            return Poll::Ready(Parted::Aborted(status, text));
        }
        tighten(alarm, call.limit.take());
        match &mut call.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => call.waker = Some(context.waker().clone()),
        }
    }
    if caller.borrow_mut().poll_gone(context).is_ready() {
        return Poll::Ready(Parted::CallerGone);
    }
    if is_due(alarm, context) {
        return Poll::Ready(Parted::DeadlinePassed);
    }
    Poll::Pending
}

fn upstream_request(
    order: &Order,
    kind: Kind,
    head: &Parts,
    target: &str,
    deadline: Option<Instant>,
) -> Result<Request<()>, String> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    if head.uri.authority().is_none() || head.uri.scheme().is_none() {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("http://{target}{path}").parse();
        *request.uri_mut() = uri.map_err(|error| format!("{target}{path}: {error}"))?;
    }
    *request.headers_mut() = head.headers.clone();
    rewrite(request.headers_mut(), &order.replace, &order.remove);
    if let Some(deadline) = deadline.filter(|_| kind != Kind::Http) {
        let left = deadline.saturating_duration_since(Instant::now());
        request
            .headers_mut()
            .insert(grpc::GRPC_TIMEOUT.clone(), grpc::format_timeout(left));
    }
    Ok(request)
}

async fn carry(
    order: Order,
    kind: Kind,
    head: &Parts,
    intake: &mut Intake,
    deadline: Option<Instant>,
    caller: &RefCell<Caller>,
) -> End {
    let Some(upstream) = &order.upstream else {
        return End::Refused("the upstream is not known".to_owned());
    };
    let mut lease = match upstream.acquire().await {
        Ok(lease) => lease,
        Err(reason) => return End::Refused(reason),
    };
    let request = match upstream_request(&order, kind, head, &upstream.target, deadline) {
        Ok(request) => request,
        Err(reason) => return End::Failed(reason),
    };
    let replayable = Cell::new(true);
    let (response, tx) = match start(&mut lease, request, intake) {
        Ok(started) => started,
        Err(error) => return End::Refused(format!("{}: {error}", upstream.target)),
    };
    let answering = answer(&upstream.target, response, caller, kind, &replayable);
    if intake.ended {
        return answering.await;
    }
    let mut answering = std::pin::pin!(answering);
    let mut pumping = std::pin::pin!(pump(intake, tx, &replayable));
    let mut pumped = false;
    poll_fn(|context| {
        if !pumped {
            pumped = pumping.as_mut().poll(context).is_ready();
        }
        answering.as_mut().poll(context)
    })
    .await
}

/// Send the head, and what of the body is already here.
fn start(
    lease: &mut Lease,
    request: Request<()>,
    intake: &Intake,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let empty = intake.retained.is_empty();
    let (response, mut tx) = lease.send(request, intake.ended && empty)?;
    let last = intake.retained.len().wrapping_sub(1);
    for (index, chunk) in intake.retained.iter().enumerate() {
        tx.send_data(chunk.clone(), intake.ended && index == last)?;
    }
    Ok((response, tx))
}

/// Pass the rest of the body on, as fast as the upstream takes it.
async fn pump(intake: &mut Intake, mut tx: SendStream<Bytes>, replayable: &Cell<bool>) {
    let mut retained: usize = intake.retained.iter().map(Bytes::len).sum();
    while let Some(chunk) = intake.body.data().await {
        let Ok(mut chunk) = chunk else {
            return tx.send_reset(h2::Reason::CANCEL);
        };
        let size = chunk.len();
        intake.ended = intake.body.is_end_stream();
        if replayable.get() && retained + size <= MOST_RETAINED {
            retained += size;
            intake.retained.push(chunk.clone());
        } else {
            replayable.set(false);
        }
        let written = poll_fn(|context| poll_write(&mut tx, &mut chunk, intake.ended, context)).await;
        let _ = intake.body.flow_control().release_capacity(size);
        // An upstream that wants no more has an answer that tells why. What it did not take is kept, and what is still to come waits unread:
        // if the answer is a refusal, another attempt has it all.
        if written.is_err() || intake.ended {
            return;
        }
    }
    intake.ended = true;
    let trailers = intake.body.trailers().await.ok().flatten();
    let _ = match trailers {
        Some(trailers) => tx.send_trailers(trailers),
        None => tx.send_data(Bytes::new(), true),
    };
}

/// Pass the answer back; nothing reaches the caller when the upstream refuses.
async fn answer(
    target: &str,
    response: ResponseFuture,
    caller: &RefCell<Caller>,
    kind: Kind,
    replayable: &Cell<bool>,
) -> End {
    let response = match response.await {
        Ok(response) => response,
        Err(error) if grpc::is_refusal(&error) && replayable.get() => {
            return End::Refused(format!("{target}: {error}"))
        }
        Err(error) => return End::Failed(format!("{target}: {error}")),
    };
    let (head, body) = response.into_parts();
    if let Some(why) = head.headers.get(&grpc::REFUSED) {
        let why = String::from_utf8_lossy(why.as_bytes()).into_owned();
        return if replayable.get() {
            End::Refused(why)
        } else {
            End::Failed(why)
        };
    }
    let text = outcome_text(kind, &head.headers, head.status);
    let end = body.is_end_stream();
    let Some(()) = begin(caller, Response::from_parts(head, ()), end) else {
        return End::Cancelled("the caller is gone".to_owned());
    };
    if end {
        return End::Delivered(text);
    }
    relay(target, body, caller, kind, text).await
}

fn outcome_text(kind: Kind, headers: &HeaderMap, status: http::StatusCode) -> String {
    let grpc_status = headers.get(&grpc::GRPC_STATUS).filter(|_| kind != Kind::Http);
    grpc_status
        .and_then(|value| value.to_str().ok())
        .unwrap_or(status.as_str())
        .to_owned()
}

/// Send the head of the answer; None when the caller cannot take it.
fn begin(caller: &RefCell<Caller>, head: Response<()>, end: bool) -> Option<()> {
    let mut caller = caller.borrow_mut();
    let Caller::Waiting(respond) = &mut *caller else {
        return None;
    };
    let tx = respond.send_response(head, end).ok()?;
    *caller = if end { Caller::Answered } else { Caller::Answering(tx) };
    Some(())
}

async fn relay(target: &str, mut body: RecvStream, caller: &RefCell<Caller>, kind: Kind, mut text: String) -> End {
    while let Some(chunk) = body.data().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return End::Failed(format!("{target}: {error}")),
        };
        let size = chunk.len();
        let end = body.is_end_stream();
        if write_back(caller, chunk, end).await.is_err() {
            return End::Cancelled("the caller is gone".to_owned());
        }
        let _ = body.flow_control().release_capacity(size);
        if end {
            *caller.borrow_mut() = Caller::Answered;
            return End::Delivered(text);
        }
    }
    let trailers = match body.trailers().await {
        Ok(trailers) => trailers,
        Err(error) => return End::Failed(format!("{target}: {error}")),
    };
    if let Caller::Answering(mut tx) = std::mem::replace(&mut *caller.borrow_mut(), Caller::Answered) {
        let _ = match trailers {
            Some(trailers) => {
                if let Some(status) = trailers
                    .get(&grpc::GRPC_STATUS)
                    .and_then(|value| value.to_str().ok())
                    .filter(|_| kind != Kind::Http)
                {
                    status.clone_into(&mut text);
                }
                tx.send_trailers(trailers)
            }
            None => tx.send_data(Bytes::new(), true),
        };
    }
    End::Delivered(text)
}

/// Write a chunk within the caller's window; the caller is not borrowed while it waits.
async fn write_back(caller: &RefCell<Caller>, mut chunk: Bytes, end: bool) -> Result<(), h2::Error> {
    poll_fn(|context| match &mut *caller.borrow_mut() {
        Caller::Answering(tx) => poll_write(tx, &mut chunk, end, context),
        _ => Poll::Ready(Err(h2::Reason::STREAM_CLOSED.into())),
    })
    .await
}

/// Write what the receiver's window lets; ready when all of the chunk is written.
fn poll_write(
    tx: &mut SendStream<Bytes>,
    chunk: &mut Bytes,
    end: bool,
    context: &mut Context<'_>,
) -> Poll<Result<(), h2::Error>> {
    loop {
        tx.reserve_capacity(chunk.len());
        let mut ready = tx.capacity();
        if ready == 0 && !chunk.is_empty() {
            ready = match tx.poll_capacity(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(capacity))) => capacity,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Err(h2::Reason::STREAM_CLOSED.into())),
            };
            if ready == 0 {
                continue;
            }
        }
        let part = chunk.split_to(ready.min(chunk.len()));
        let last = chunk.is_empty();
        match tx.send_data(part, end && last) {
            Ok(()) if !last => {}
            sent => return Poll::Ready(sent),
        }
    }
}
