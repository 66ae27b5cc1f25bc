//! HTTP/1.1 by hyper: requests told to policy like any other, and passed through to upstreams as streams.

use crate::client::{dial, Upstream};
use crate::core::{Core, End, Event, OpenConnection};
use crate::forward::Order;
use crate::headers::{rewrite, strip_hop_by_hop};
use crate::listener::{Options, GREETING_LIMIT};
use crate::server::{Call, Command, Exchange, Kind};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// Connections kept for another request, per upstream.
const MOST_IDLE: usize = 256;

type Fail = hyper::Error;

/// A body of ours, or one that passes through.
pub enum Through {
    Whole(Full<Bytes>),
    Incoming(Incoming),
    Answer(Incoming, Passing),
}

impl Body for Through {
    type Data = Bytes;
    type Error = Fail;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fail>>> {
        match self.get_mut() {
            Through::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Through::Incoming(body) => Pin::new(body).poll_frame(context),
            Through::Answer(body, passing) => {
                let polled = Pin::new(&mut *body).poll_frame(context);
                match &polled {
                    Poll::Ready(None) => passing.end(true),
                    // By its length the answer is whole now, and hyper asks no further.
                    Poll::Ready(Some(Ok(_))) if body.is_end_stream() => passing.end(true),
                    Poll::Ready(Some(Err(error))) => passing.fail(error.to_string()),
                    _ => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Through::Whole(body) => body.is_end_stream(),
            Through::Incoming(body) | Through::Answer(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Through::Whole(body) => body.size_hint(),
            Through::Incoming(body) | Through::Answer(body, _) => body.size_hint(),
        }
    }
}

/// A forwarded answer on its way; tells its end exactly once, at the latest when hyper drops it.
pub struct Passing {
    core: Rc<Core>,
    id: u64,
    text: String,
    told: bool,
    complete_when_dropped: bool,
}

impl Passing {
    fn tell(&mut self, end: End) {
        if !std::mem::replace(&mut self.told, true) {
            self.core.emit(Event::Forwarded(self.id, end));
        }
    }

    fn end(&mut self, whole: bool) {
        let end = if whole {
            End::Delivered(std::mem::take(&mut self.text))
        } else {
            End::Cancelled("the caller is gone".to_owned())
        };
        self.tell(end);
    }

    fn fail(&mut self, why: String) {
        self.tell(End::Failed(why));
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.end(self.complete_when_dropped);
    }
}

/// Where the answer of policy is laid for the connection.
#[derive(Default)]
pub struct Slot(RefCell<Option<Response<Through>>>);

impl Slot {
    pub fn answer(&self, response: Response<Through>) {
        self.0.replace(Some(response));
    }
}

/// An answer of ours.
pub fn whole(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Through> {
    let mut response = Response::new(Through::Whole(Full::new(body)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn text(status: StatusCode, text: &str) -> Response<Through> {
    let mut headers = HeaderMap::new();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    whole(status, headers, Bytes::from(format!("{text}\n")))
}

/// Serve one HTTP/1.1 connection.
pub async fn serve(core: Rc<Core>, options: Rc<Options>, socket: TcpStream, guard: OpenConnection) {
    let service = hyper::service::service_fn(|request| {
        let (core, options) = (core.clone(), options.clone());
        async move { Ok::<_, Infallible>(call(core, options, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING_LIMIT)
        .max_buf_size(options.max_header.max(8192))
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let mut closing = false;
    let _ = poll_fn(|context| {
        if !closing && guard.is_draining(context.waker()) {
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    })
    .await;
}

/// Removes the call when hyper drops it, which is how it says that the client is gone.
struct Attending {
    core: Rc<Core>,
    id: u64,
    away: bool,
}

impl Drop for Attending {
    fn drop(&mut self) {
        let Some(call) = self.core.calls.borrow_mut().remove(self.id) else {
            return;
        };
        if self.away {
            self.core.emit(Event::Forwarded(
                self.id,
                End::Cancelled("the caller is gone".to_owned()),
            ));
        } else if call.told {
            self.core.emit(Event::CallCancelled(self.id, "the caller is gone"));
        }
    }
}

async fn call(core: Rc<Core>, options: Rc<Options>, request: Request<Incoming>) -> Response<Through> {
    let _open = core.enter();
    let (head, body) = request.into_parts();
    let (first, mut request_body) = if options.peek {
        (Bytes::new(), Some(Through::Incoming(body)))
    } else {
        match read(body, options.max_message).await {
            Ok(body) => (body.clone(), Some(Through::Whole(Full::new(body)))),
            Err(refusal) => return refusal,
        }
    };
    let complete = request_body.as_ref().is_none_or(Body::is_end_stream);
    let slot = Rc::<Slot>::default();
    let head = Rc::new(head);
    let call = Call::new(
        Kind::Http,
        head.clone(),
        &options,
        first,
        complete,
        Exchange::Http1(slot.clone()),
    );
    let id = core.calls.borrow_mut().insert(call);
    let mut attending = Attending {
        core: core.clone(),
        id,
        away: false,
    };
    core.emit(Event::Call(id));
    loop {
        let Some(order) = poll_fn(|context| poll_order(&core, id, context)).await else {
            return slot
                .0
                .take()
                .unwrap_or_else(|| text(StatusCode::BAD_GATEWAY, "the request was not answered"));
        };
        attending.away = true;
        let forwarded = {
            let mut forwarding = std::pin::pin!(forward(&core, id, order, &head, &mut request_body));
            poll_fn(|context| match forwarding.as_mut().poll(context) {
                Poll::Pending => poll_answered(&core, id, &slot, context).map(Some),
                ready => ready,
            })
            .await
        };
        if let Some(response) = forwarded {
            return response;
        }
        attending.away = false;
    }
}

/// An order, or None once the call is answered.
fn poll_order(core: &Core, id: u64, context: &mut Context<'_>) -> Poll<Option<Order>> {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls.get_mut(id) else {
        return Poll::Ready(None);
    };
    if let Some(Command::Forward(order)) = call.command.take() {
        return Poll::Ready(Some(order));
    }
    match &mut call.waker {
        Some(waker) => waker.clone_from(context.waker()),
        None => call.waker = Some(context.waker().clone()),
    }
    Poll::Pending
}

/// Policy's answer to a request that is being forwarded: it ends the forward.
fn poll_answered(core: &Core, id: u64, slot: &Slot, context: &mut Context<'_>) -> Poll<Response<Through>> {
    if let Some(call) = core.calls.borrow_mut().get_mut(id) {
        call.waker = Some(context.waker().clone());
    }
    match slot.0.take() {
        Some(response) => {
            core.emit(Event::Forwarded(id, End::Cancelled("answered by policy".to_owned())));
            Poll::Ready(response)
        }
        None => Poll::Pending,
    }
}

async fn read(mut body: Incoming, max: usize) -> Result<Bytes, Response<Through>> {
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| text(StatusCode::BAD_REQUEST, &format!("request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if joined.len() + data.len() > max {
            return Err(text(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("request body: the most taken is {max} bytes"),
            ));
        }
        joined.extend_from_slice(&data);
    }
    Ok(joined.freeze())
}

/// Connections to an upstream that wait for another request.
#[derive(Default)]
pub struct Pool(RefCell<VecDeque<SendRequest<Through>>>);

impl Pool {
    /// One that is ready; those that are closed are forgotten.
    fn take(&self) -> Option<SendRequest<Through>> {
        let mut idle = self.0.borrow_mut();
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(SendRequest::is_ready)?;
        idle.remove(ready)
    }

    fn put(&self, sender: SendRequest<Through>) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < MOST_IDLE {
            idle.push_back(sender);
        }
    }
}

async fn connect(upstream: &Upstream) -> Result<SendRequest<Through>, String> {
    let socket = dial(&upstream.target).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| format!("failed to connect to {}: {error}", upstream.target))?;
    drop(spawn_local(async move { drop(connection.await) }));
    Ok(sender)
}

/// Forward once; None when it was refused and the request is still open.
async fn forward(
    core: &Rc<Core>,
    id: u64,
    order: Order,
    head: &Parts,
    body: &mut Option<Through>,
) -> Option<Response<Through>> {
    let replayable = body.as_ref().is_some_and(Body::is_end_stream) || matches!(body, Some(Through::Whole(_)));
    let sent = match &order.upstream {
        Some(upstream) => send(upstream, &order, head, body).await,
        None => Err(End::Refused("the upstream is not known".to_owned())),
    };
    let response = match sent {
        Ok(response) => response,
        Err(End::Refused(why)) if body.is_some() => {
            core.emit(Event::Forwarded(id, End::Refused(why)));
            return None;
        }
        Err(End::Refused(why) | End::Failed(why)) => {
            core.calls.borrow_mut().remove(id);
            core.emit(Event::Forwarded(id, End::Failed(why.clone())));
            return Some(text(StatusCode::BAD_GATEWAY, &why));
        }
        Err(_) => return None,
    };
    if let Some(why) = response.headers().get(&crate::grpc::REFUSED).filter(|_| replayable) {
        let why = String::from_utf8_lossy(why.as_bytes()).into_owned();
        core.emit(Event::Forwarded(id, End::Refused(why)));
        return None;
    }
    core.calls.borrow_mut().remove(id);
    Some(pass_back(core, id, response))
}

fn pass_back(core: &Rc<Core>, id: u64, response: Response<Incoming>) -> Response<Through> {
    let (mut head, body) = response.into_parts();
    strip_hop_by_hop(&mut head.headers);
    let passing = Passing {
        core: core.clone(),
        id,
        text: head.status.as_str().to_owned(),
        told: false,
        complete_when_dropped: body.is_end_stream(),
    };
    head.version = Version::HTTP_11;
    Response::from_parts(head, Through::Answer(body, passing))
}

/// Send on a waiting connection, or a new one. A request that never left is left in `body`.
async fn send(
    upstream: &Rc<Upstream>,
    order: &Order,
    head: &Parts,
    body: &mut Option<Through>,
) -> Result<Response<Incoming>, End> {
    let replay = match body {
        Some(Through::Whole(whole)) => Some(Through::Whole(whole.clone())),
        Some(body) if body.is_end_stream() => Some(Through::Whole(Full::default())),
        _ => None,
    };
    loop {
        let pooled = upstream.http1.take();
        let fresh = pooled.is_none();
        let mut sender = match pooled {
            Some(sender) => sender,
            None => connect(upstream).await.map_err(End::Refused)?,
        };
        sender
            .ready()
            .await
            .map_err(|error| End::Refused(format!("{}: {error}", upstream.target)))?;
        let Some(content) = body.take() else {
            return Err(End::Failed("the request body is spent".to_owned()));
        };
        match sender.try_send_request(request(upstream, order, head, content)).await {
            Ok(response) => {
                upstream.http1.put(sender);
                *body = replay;
                return Ok(response);
            }
            Err(mut error) => {
                *body = error.take_message().map(Request::into_body);
                let why = format!("{}: {}", upstream.target, error.error());
                match body {
                    Some(_) if !fresh => {} // the peer closed it while it waited: nothing was sent
                    Some(_) => return Err(End::Refused(why)),
                    None => return Err(End::Failed(why)),
                }
            }
        }
    }
}

fn request(upstream: &Upstream, order: &Order, head: &Parts, body: Through) -> Request<Through> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    let path = head.uri.path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| head.uri.clone(), http::Uri::from);
    let mut headers = head.headers.clone();
    strip_hop_by_hop(&mut headers);
    rewrite(&mut headers, &order.replace, &order.remove);
    if !headers.contains_key(http::header::HOST) {
        if let Ok(host) = HeaderValue::from_str(&upstream.target) {
            headers.insert(http::header::HOST, host);
        }
    }
    *request.headers_mut() = headers;
    request
}
