//! Upstreams: connections made when first needed and again, with back-off, when lost; and the gRPC streams opened on them.

use crate::core::{Closed, Core, Event};
use crate::framing::{frame, Deframer, Fault};
use crate::grpc;
use crate::headers::Pairs;
use crate::http1_client::Pool;
use crate::outlet::Outlet;
use crate::server::{is_due, CONNECTION_WINDOW, LATE, STREAM_WINDOW};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use std::cell::{Cell, RefCell};
use std::future::{poll_fn, Future};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::Instant;

pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(2);
/// Streams on a connection whose peer has not said yet how many it takes.
const FIRST_STREAMS: usize = 100;
/// Connections to one peer.
const MOST_CONNECTIONS: usize = 32;
/// Calls that may wait for the peer to let more streams begin, per connection.
const MOST_WAITING: usize = 10_000;
/// Messages, and bytes of them, that may wait for a connection on one stream.
const MOST_PENDING: usize = 10_000;
const MOST_PENDING_BYTES: usize = 64 * 1024 * 1024;
/// The largest message taken from a peer.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// What became of the last attempt to connect.
enum Dialing {
    Idle,
    Connecting,
    Failed { until: Instant, reason: String },
}

/// A connection that stands, and how many streams are on it.
struct Link {
    sender: SendRequest<Bytes>,
    streams: Rc<Cell<usize>>,
}

/// A peer, by address. When all streams that it lets begin on one connection are open, the next one goes on a further connection.
pub struct Upstream {
    pub target: String,
    pub http1: Pool,
    links: RefCell<Vec<Link>>,
    dialing: RefCell<Dialing>,
    changed: Notify,
    backoff: Cell<Duration>,
}

/// A place among the streams of a connection.
pub struct Lease {
    upstream: Rc<Upstream>,
    sender: SendRequest<Bytes>,
    streams: Rc<Cell<usize>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
        let mut links = self.upstream.links.borrow_mut();
        if self.streams.get() == 0 && links.len() > 1 {
            links.retain(|link| !Rc::ptr_eq(&link.streams, &self.streams)); // one was too many
        }
    }
}

impl Lease {
    pub fn send(&mut self, request: Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.sender.send_request(request, end)
    }
}

impl Upstream {
    pub fn new(target: String) -> Rc<Upstream> {
        Rc::new(Upstream {
            target,
            http1: Pool::default(),
            links: RefCell::default(),
            dialing: RefCell::new(Dialing::Idle),
            changed: Notify::new(),
            backoff: Cell::new(FIRST_BACKOFF),
        })
    }

    /// A connection that takes a new stream, or why there is none. While it backs off it fails at once, with the last reason.
    pub async fn acquire(self: &Rc<Self>) -> Result<Lease, String> {
        loop {
            if let Some(lease) = self.lease(0) {
                return Ok(lease);
            }
            let changed = {
                let full = self.links.borrow().len() >= MOST_CONNECTIONS;
                let mut dialing = self.dialing.borrow_mut();
                match &*dialing {
                    _ if full => return self.queue(),
                    Dialing::Failed { until, reason } if Instant::now() < *until => {
                        return self.queue().map_err(|_| reason.clone());
                    }
                    Dialing::Connecting => self.changed.notified(),
                    Dialing::Idle | Dialing::Failed { .. } => {
                        *dialing = Dialing::Connecting;
                        drop(spawn_local(connect(self.clone())));
                        self.changed.notified()
                    }
                }
            };
            changed.await;
        }
    }

    /// Wait for the peer to let a stream begin on one of the connections that stand.
    fn queue(self: &Rc<Self>) -> Result<Lease, String> {
        self.lease(MOST_WAITING).ok_or_else(|| {
            format!(
                "{}: {MOST_WAITING} calls wait for a stream already; no more are taken",
                self.target
            )
        })
    }

    /// A place on a connection with fewer streams than the peer lets begin, and `waiting` more.
    fn lease(self: &Rc<Self>, waiting: usize) -> Option<Lease> {
        let mut links = self.links.borrow_mut();
        // GOAWAY, or lost: its streams end by themselves, new ones need a new one.
        let mut context = Context::from_waker(Waker::noop());
        links.retain(|link| !matches!(link.sender.clone().poll_ready(&mut context), Poll::Ready(Err(_))));
        let roomy = |link: &&Link| link.streams.get() < link.sender.current_max_send_streams().saturating_add(waiting);
        let link = match waiting {
            0 => links.iter().find(roomy),
            _ => links.iter().min_by_key(|link| link.streams.get()).filter(roomy),
        }?;
        link.streams.set(link.streams.get() + 1);
        Some(Lease {
            upstream: self.clone(),
            sender: link.sender.clone(),
            streams: link.streams.clone(),
        })
    }
}

/// Open a TCP connection; the error is a sentence.
pub async fn dial(target: &str) -> Result<TcpStream, String> {
    match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(target)).await {
        Ok(Ok(socket)) => {
            let _ = socket.set_nodelay(true);
            Ok(socket)
        }
        Ok(Err(error)) => Err(format!("failed to connect to {target}: {error}")),
        Err(_) => Err(format!(
            "failed to connect to {target}: no answer within {CONNECT_LIMIT:?}"
        )),
    }
}

async fn connect(upstream: Rc<Upstream>) {
    let result = match dial(&upstream.target).await {
        Ok(socket) => h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(FIRST_STREAMS)
            .enable_push(false)
            .handshake::<_, Bytes>(socket)
            .await
            .map_err(|error| format!("failed to connect to {}: {error}", upstream.target)),
        Err(reason) => Err(reason),
    };
    match result {
        Ok((sender, connection)) => {
            upstream.backoff.set(FIRST_BACKOFF);
            upstream.dialing.replace(Dialing::Idle);
            upstream.links.borrow_mut().push(Link {
                sender,
                streams: Rc::default(),
            });
            upstream.changed.notify_waiters();
            drop(upstream); // the connection ends when nobody may send on it any more
            let _ = connection.await;
        }
        Err(reason) => {
            let backoff = upstream.backoff.get();
            upstream.backoff.set((backoff * 2).min(LAST_BACKOFF));
            upstream.dialing.replace(Dialing::Failed {
                until: Instant::now() + backoff,
                reason,
            });
            upstream.changed.notify_waiters();
        }
    }
}

/// A stream that policy has opened.
pub struct ClientStream {
    outlet: Option<Outlet>,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    half_closed: bool,
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
        half_closed: false,
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
        for framed in std::mem::take(&mut stream.pending) {
            let _ = outlet.send(framed); // within its limit, which is not below that of what is pending
        }
        if stream.half_closed {
            outlet.half_close();
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
    while let Some(chunk) = body.data().await {
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
