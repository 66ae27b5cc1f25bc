//! Upstreams: connections made when first needed and again, with back-off, when lost.

use crate::http1_client::Pool;
use crate::server::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::socket::Socket;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::SendStream;
use http::Request;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
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
/// What became of the last attempt to connect.
enum Dialing {
    Idle,
    Connecting,
    Failed { until: Instant, reason: String },
}

type Connection = h2::client::Connection<Socket<TcpStream>, Bytes>;

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

/// A new connection, and the socket that drives it.
async fn begin(target: &str) -> Result<(SendRequest<Bytes>, Connection, Socket<TcpStream>), String> {
    let socket = Socket::new(dial(target).await?);
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(FIRST_STREAMS)
        .enable_push(false)
        .handshake(socket.clone())
        .await
        .map_err(|error| format!("failed to connect to {target}: {error}"))?;
    Ok((sender, connection, socket))
}

async fn connect(upstream: Rc<Upstream>) {
    match begin(&upstream.target).await {
        Ok((sender, connection, socket)) => {
            upstream.backoff.set(FIRST_BACKOFF);
            upstream.dialing.replace(Dialing::Idle);
            upstream.links.borrow_mut().push(Link {
                sender,
                streams: Rc::default(),
            });
            upstream.changed.notify_waiters();
            drop(upstream); // the connection ends when nobody may send on it any more
            let _ = socket.drive(connection).await;
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
