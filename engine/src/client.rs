//! gRPC streams that policy opens on upstreams: each is a task of its own, and ends with exactly one `StreamClosed`.

use crate::core::{Closed, Core, Event};
use crate::deadline::{is_due, LATE};
use crate::framing::{frame, Deframer, Fault};
use crate::grpc;
use crate::headers::Pairs;
use crate::outlet::Outlet;
use crate::upstream::Upstream;
use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use std::future::{poll_fn, Future};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::task::spawn_local;

/// Messages, and bytes of them, that may wait for a connection on one stream.
const MOST_PENDING: usize = 10_000;
const MOST_PENDING_BYTES: usize = 64 * 1024 * 1024;
/// The largest message taken from a peer.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// A stream that policy has opened.
pub struct ClientStream {
    outlet: Option<Outlet>,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    /// Whether policy waits until nothing is pending.
    awaited: bool,
    half_closed: bool,
    paused: bool,
    /// Why this side ends it.
    stop: Option<(i32, String)>,
    waker: Option<Waker>,
}

impl ClientStream {
    fn stop(&mut self, status: i32, why: String) {
        if self.stop.is_none() {
            self.stop = Some((status, why));
            self.wake();
        }
    }

    fn take_drained(&mut self) -> bool {
        self.outlet.as_mut().is_some_and(Outlet::take_drained)
    }

    fn wake(&mut self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// Open a stream; what is wrong with the upstream is told by its STREAM_CLOSED.
pub fn open(core: &Rc<Core>, upstream: u64, path: &str, headers: Pairs, timeout: Option<Duration>) -> u64 {
    let stream = ClientStream {
        outlet: None,
        pending: Vec::new(),
        pending_bytes: 0,
        awaited: false,
        half_closed: false,
        paused: false,
        stop: None,
        waker: None,
    };
    let id = core.streams.borrow_mut().insert(stream);
    core.shared.counters.streams.fetch_add(1, Relaxed);
    let found = core.upstreams.borrow().get(&upstream).cloned();
    let path = path.to_owned();
    drop(spawn_local(own(
        core.clone(),
        id,
        upstream,
        found,
        path,
        headers,
        timeout,
    )));
    id
}

pub fn send(core: &Core, id: u64, message: &[u8]) {
    let mut streams = core.streams.borrow_mut();
    let Some(stream) = streams
        .get_mut(id)
        .filter(|stream| !stream.half_closed && stream.stop.is_none())
    else {
        return;
    };
    let framed = frame(message);
    match &mut stream.outlet {
        Some(outlet) => match outlet.send(framed) {
            Ok(()) if outlet.is_blocked() => stream.wake(),
            Ok(()) => {}
            Err(_) => stream.stop(
                grpc::RESOURCE_EXHAUSTED,
                "the peer reads too slowly: too much waits for it".to_owned(),
            ),
        },
        None => {
            stream.pending_bytes += framed.len();
            stream.pending.push(framed);
            if stream.pending.len() > MOST_PENDING || stream.pending_bytes > MOST_PENDING_BYTES {
                stream.stop(grpc::RESOURCE_EXHAUSTED, "too much waits for a connection".to_owned());
            }
        }
    }
}

pub fn half_close(core: &Core, id: u64) {
    if let Some(stream) = core.streams.borrow_mut().get_mut(id) {
        stream.half_closed = true;
        if let Some(outlet) = &mut stream.outlet {
            outlet.half_close();
        }
    }
}

pub fn reset(core: &Core, id: u64) {
    if let Some(stream) = core.streams.borrow_mut().get_mut(id) {
        stream.stop(grpc::CANCELLED, "reset by this side".to_owned());
    }
}

/// Bytes that wait for the peer; policy is told when none do any more.
pub fn backlog(core: &Core, id: u64) -> usize {
    match core.streams.borrow_mut().get_mut(id) {
        Some(ClientStream {
            outlet: Some(outlet), ..
        }) => outlet.backlog(),
        Some(stream) => {
            stream.awaited |= stream.pending_bytes > 0;
            stream.pending_bytes
        }
        None => 0,
    }
}

/// Tell its messages, or no more of them for now.
pub fn pause(core: &Core, id: u64, paused: bool) {
    if let Some(stream) = core.streams.borrow_mut().get_mut(id) {
        stream.paused = paused;
        stream.wake();
    }
}

fn closed(status: i32, message: String, refused: bool) -> Closed {
    Closed {
        status,
        message,
        trailers: HeaderMap::new(),
        refused,
    }
}

/// The task of one stream: nobody else's cancellation can end it.
async fn own(
    core: Rc<Core>,
    id: u64,
    upstream: u64,
    found: Option<Rc<Upstream>>,
    path: String,
    headers: Pairs,
    timeout: Option<Duration>,
) {
    let mut alarm = timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)));
    let end = {
        let mut conversing = std::pin::pin!(async {
            match found {
                Some(upstream) => converse(&core, id, &upstream, path, headers, timeout).await,
                None => closed(grpc::UNAVAILABLE, format!("upstream {upstream} is not known"), true),
            }
        });
        poll_fn(|context| {
            if let Some(stream) = core.streams.borrow_mut().get_mut(id) {
                if let Some((status, why)) = stream.stop.take() {
                    return Poll::Ready(closed(status, why, false));
                }
                match &mut stream.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => stream.waker = Some(context.waker().clone()),
                }
                if let Some(outlet) = stream.outlet.as_mut().filter(|outlet| outlet.is_blocked()) {
                    outlet.poll_pump(context);
                }
                if stream.take_drained() {
                    core.emit(Event::Drained(id));
                }
            }
            if is_due(&mut alarm, context) {
                return Poll::Ready(closed(grpc::DEADLINE_EXCEEDED, LATE.to_owned(), false));
            }
            conversing.as_mut().poll(context)
        })
        .await
    };
    drop(core.streams.borrow_mut().remove(id)); // h2 resets what has not ended
    core.shared.counters.streams.fetch_sub(1, Relaxed);
    core.emit(Event::StreamClosed(id, Box::new(end)));
}

fn request(target: &str, path: &str, headers: Pairs, timeout: Option<Duration>) -> Result<Request<()>, http::Error> {
    let mut request = Request::builder()
        .method("POST")
        .uri(format!("http://{target}{path}"))
        .body(())?;
    let map = request.headers_mut();
    map.insert(http::header::CONTENT_TYPE, grpc::CONTENT_TYPE);
    map.insert(http::header::TE, HeaderValue::from_static("trailers"));
    if let Some(timeout) = timeout {
        map.insert(grpc::GRPC_TIMEOUT.clone(), grpc::format_timeout(timeout));
    }
    for (name, value) in headers {
        map.append(name, value);
    }
    Ok(request)
}

async fn converse(
    core: &Core,
    id: u64,
    upstream: &Rc<Upstream>,
    path: String,
    headers: Pairs,
    timeout: Option<Duration>,
) -> Closed {
    let request = match request(&upstream.target, &path, headers, timeout) {
        Ok(request) => request,
        Err(error) => return closed(grpc::INTERNAL, format!("{}{path}: {error}", upstream.target), true),
    };
    let mut lease = match upstream.acquire().await {
        Ok(lease) => lease,
        Err(reason) => return closed(grpc::UNAVAILABLE, reason, true),
    };
    let (response, tx) = match lease.send(request, false) {
        Ok(sent) => sent,
        Err(error) => return closed(grpc::UNAVAILABLE, format!("{}: {error}", upstream.target), true),
    };
    if let Some(stream) = core.streams.borrow_mut().get_mut(id) {
        let mut outlet = Outlet::new(tx);
        let mut pending = std::mem::take(&mut stream.pending);
        let last = if stream.half_closed { pending.pop() } else { None };
        for framed in pending {
            let _ = outlet.send(framed); // within its limit, which is not below that of what is pending
        }
        match last {
            Some(framed) => drop(outlet.send_and_half_close(framed)),
            None if stream.half_closed => outlet.half_close(),
            None => {}
        }
        if stream.awaited {
            outlet.await_drained();
        }
        stream.outlet = Some(outlet);
        stream.wake();
    }
    match response.await {
        Ok(response) => listen(core, id, response).await,
        Err(error) => lost(&upstream.target, &error, true),
    }
}

fn lost(target: &str, error: &h2::Error, unheard: bool) -> Closed {
    closed(
        grpc::status_of_error(error),
        format!("{target}: {error}"),
        unheard && grpc::is_refusal(error),
    )
}

/// Tell the messages of an answer until it ends.
async fn listen(core: &Core, id: u64, response: Response<RecvStream>) -> Closed {
    let (head, mut body) = response.into_parts();
    if head.headers.contains_key(&grpc::GRPC_STATUS) {
        return ended(head.headers);
    }
    if head.status != http::StatusCode::OK {
        return closed(
            grpc::status_of_http(head.status),
            format!("the peer answered HTTP {}", head.status),
            false,
        );
    }
    let mut deframer = Deframer::new(MAX_MESSAGE);
    loop {
        unpaused(core, id).await;
        let Some(chunk) = body.data().await else { break };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return lost("the stream was lost", &error, false),
        };
        let _ = body.flow_control().release_capacity(chunk.len());
        deframer.feed(chunk);
        loop {
            match deframer.next() {
                Ok(Some(message)) => core.emit(Event::StreamMessage(id, message)),
                Ok(None) => break,
                Err(Fault::TooLarge { size, max }) => {
                    let text = format!("message of {size} bytes from the peer: the most taken is {max}");
                    return closed(grpc::RESOURCE_EXHAUSTED, text, false);
                }
                Err(Fault::Compressed) => {
                    return closed(grpc::INTERNAL, "compressed message from the peer".to_owned(), false)
                }
            }
        }
    }
    match body.trailers().await {
        Ok(Some(trailers)) => ended(trailers),
        Ok(None) => closed(grpc::UNKNOWN, "the answer has no grpc-status".to_owned(), false),
        Err(error) => lost("the stream was lost", &error, false),
    }
}

/// Wait until policy wants to be told messages; the stream's task is woken when it does.
async fn unpaused(core: &Core, id: u64) {
    poll_fn(|_| match core.streams.borrow().get(id) {
        Some(stream) if stream.paused => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}

fn ended(mut trailers: HeaderMap) -> Closed {
    let status = trailers.remove(&grpc::GRPC_STATUS);
    let status = status
        .as_ref()
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    let message = trailers.remove(&grpc::GRPC_MESSAGE);
    trailers.remove(http::header::CONTENT_TYPE);
    Closed {
        status: status.unwrap_or(grpc::UNKNOWN),
        message: message.map_or_else(String::new, |value| grpc::decode_message(value.as_bytes())),
        trailers,
        refused: false,
    }
}
