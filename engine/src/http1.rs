//! HTTP/1.1 by hyper: requests told to policy like any other, and passed through to upstreams as streams.

use crate::core::{Core, End, Event, OpenCall, OpenConnection};
use crate::forward::Order;
use crate::headers::{strip_hop_by_hop, upgrade};
use crate::http1_client::send;
use crate::listener::{Options, GREETING_LIMIT};
use crate::server::{is_due, tighten, Alarm, Call, Command, Exchange, Kind, LATE};
use crate::upgrade::{switch_protocols, unasked, Switch};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a connection may wait for its next request: longer than ingresses keep theirs (an hour), since one that is closed just as a
/// request comes costs that request.
const IDLE_LIMIT: Duration = Duration::from_secs(3700);

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

/// What the task of a connection and the answer on its way share.
#[derive(Default)]
pub struct Link {
    /// When the answer on its way must have ended.
    alarm: RefCell<Alarm>,
    cut: Cell<bool>,
    /// A request has come.
    heard: Cell<bool>,
}

/// A forwarded answer on its way; tells its end exactly once, at the latest when hyper drops it.
pub struct Passing {
    core: Rc<Core>,
    id: u64,
    text: String,
    told: bool,
    complete_when_dropped: bool,
    link: Rc<Link>,
    _open: OpenCall,
}

impl Passing {
    fn new(
        core: &Rc<Core>,
        id: u64,
        text: &str,
        complete_when_dropped: bool,
        link: Rc<Link>,
        open: OpenCall,
    ) -> Passing {
        Passing {
            core: core.clone(),
            id,
            text: text.to_owned(),
            told: false,
            complete_when_dropped,
            link,
            _open: open,
        }
    }

    pub fn tell(&mut self, end: End) {
        if !std::mem::replace(&mut self.told, true) {
            self.link.alarm.take();
            self.core.emit(Event::Forwarded(self.id, end));
        }
    }

    fn end(&mut self, whole: bool) {
        let end = if whole {
            End::Delivered(std::mem::take(&mut self.text))
        } else if self.link.cut.get() {
            End::Cancelled(LATE.to_owned())
        } else {
            End::Cancelled("the caller is gone".to_owned())
        };
        self.tell(end);
    }

    pub fn fail(&mut self, why: String) {
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

pub fn text(status: StatusCode, text: &str) -> Response<Through> {
    let mut headers = HeaderMap::new();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    whole(status, headers, Bytes::from(format!("{text}\n")))
}

/// Serve one HTTP/1.1 connection.
pub async fn serve(core: Rc<Core>, options: Rc<Options>, socket: TcpStream, guard: OpenConnection) {
    let link = Rc::<Link>::default();
    let service = hyper::service::service_fn(|request| {
        let (core, options, link) = (core.clone(), options.clone(), link.clone());
        async move { Ok::<_, Infallible>(call(core, options, link, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .max_buf_size(options.max_header.max(8192))
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut closing = false;
    let mut greeting: Alarm = Some(Box::pin(tokio::time::sleep(GREETING_LIMIT)));
    let _ = poll_fn(|context| {
        if !closing && guard.is_draining(context.waker()) {
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
        if is_due(&mut link.alarm.borrow_mut(), context) {
            link.cut.set(true); // with the connection goes the answer on its way
            return Poll::Ready(Ok(()));
        }
        if link.heard.get() {
            greeting = None;
        } else if is_due(&mut greeting, context) {
            return Poll::Ready(Ok(()));
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

async fn call(
    core: Rc<Core>,
    options: Rc<Options>,
    link: Rc<Link>,
    mut request: Request<Incoming>,
) -> Response<Through> {
    let open = core.enter();
    link.heard.set(true);
    let mut switch = upgrade(request.headers())
        .filter(|_| options.peek && request.version() == Version::HTTP_11)
        .map(|protocol| Switch {
            protocol,
            client: hyper::upgrade::on(&mut request),
        });
    let mut alarm = None;
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
        let order = match poll_fn(|context| poll_order(&core, id, &mut alarm, context)).await {
            Met::Order(order) => order,
            Met::Answered => {
                return slot
                    .0
                    .take()
                    .unwrap_or_else(|| text(StatusCode::BAD_GATEWAY, "the request was not answered"))
            }
            Met::Late => {
                core.calls.borrow_mut().remove(id);
                core.emit(Event::CallCancelled(id, LATE));
                return text(StatusCode::GATEWAY_TIMEOUT, LATE);
            }
        };
        attending.away = true;
        let protocol = switch.as_ref().map(|switch| &switch.protocol);
        let forwarded = {
            let mut forwarding = std::pin::pin!(forward(&core, id, order, &head, protocol, &mut request_body));
            poll_fn(|context| match forwarding.as_mut().poll(context) {
                Poll::Pending => poll_parted(&core, id, &slot, &mut alarm, context).map(Forwarded::Ended),
                ready => ready,
            })
            .await
        };
        match forwarded {
            Forwarded::Refused => attending.away = false,
            Forwarded::Ended(response) => return response,
            Forwarded::Answered(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let passing = Passing::new(&core, id, "101", true, Rc::default(), open);
                return match switch.take() {
                    Some(switch) => switch_protocols(passing, switch, response, alarm),
                    None => unasked(passing),
                };
            }
            Forwarded::Answered(response) => {
                link.alarm.replace(alarm);
                let (text, whole) = (response.status().to_string(), response.body().is_end_stream());
                let passing = Passing::new(&core, id, &text[..3], whole, link, open);
                return pass_back(passing, response);
            }
        }
    }
}

/// What a request that waits for policy meets.
enum Met {
    Order(Order),
    Answered,
    Late,
}

/// How a forward went.
enum Forwarded {
    /// It is open still.
    Refused,
    /// By an answer of ours; its end is told.
    Ended(Response<Through>),
    Answered(Response<Incoming>),
}

fn poll_order(core: &Core, id: u64, alarm: &mut Alarm, context: &mut Context<'_>) -> Poll<Met> {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls.get_mut(id) else {
        return Poll::Ready(Met::Answered);
    };
    if let Some(Command::Forward(order)) = call.command.take() {
        return Poll::Ready(Met::Order(order));
    }
    tighten(alarm, call.limit.take());
    match &mut call.waker {
        Some(waker) => waker.clone_from(context.waker()),
        None => call.waker = Some(context.waker().clone()),
    }
    if is_due(alarm, context) {
        return Poll::Ready(Met::Late);
    }
    Poll::Pending
}

/// What ends a forward before the upstream has answered: policy's own answer, or the call's limit.
fn poll_parted(
    core: &Core,
    id: u64,
    slot: &Slot,
    alarm: &mut Alarm,
    context: &mut Context<'_>,
) -> Poll<Response<Through>> {
    if let Some(call) = core.calls.borrow_mut().get_mut(id) {
        tighten(alarm, call.limit.take());
        call.waker = Some(context.waker().clone());
    }
    if let Some(response) = slot.0.take() {
        core.emit(Event::Forwarded(id, End::Cancelled("answered by policy".to_owned())));
        return Poll::Ready(response);
    }
    if is_due(alarm, context) {
        core.calls.borrow_mut().remove(id);
        core.emit(Event::Forwarded(id, End::Cancelled(LATE.to_owned())));
        return Poll::Ready(text(StatusCode::GATEWAY_TIMEOUT, LATE));
    }
    Poll::Pending
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

/// Forward once.
async fn forward(
    core: &Rc<Core>,
    id: u64,
    order: Order,
    head: &Parts,
    protocol: Option<&HeaderValue>,
    body: &mut Option<Through>,
) -> Forwarded {
    let replayable = body.as_ref().is_some_and(Body::is_end_stream) || matches!(body, Some(Through::Whole(_)));
    let sent = match &order.upstream {
        Some(upstream) => send(upstream, &order, head, protocol, body).await,
        None => Err(End::Refused("the upstream is not known".to_owned())),
    };
    let response = match sent {
        Ok(response) => response,
        Err(End::Refused(why)) if body.is_some() => {
            core.emit(Event::Forwarded(id, End::Refused(why)));
            return Forwarded::Refused;
        }
        Err(End::Refused(why) | End::Failed(why) | End::Cancelled(why) | End::Delivered(why)) => {
            core.calls.borrow_mut().remove(id);
            core.emit(Event::Forwarded(id, End::Failed(why.clone())));
            return Forwarded::Ended(text(StatusCode::BAD_GATEWAY, &why));
        }
    };
    if let Some(why) = response.headers().get(&crate::grpc::REFUSED).filter(|_| replayable) {
        let why = String::from_utf8_lossy(why.as_bytes()).into_owned();
        core.emit(Event::Forwarded(id, End::Refused(why)));
        return Forwarded::Refused;
    }
    core.calls.borrow_mut().remove(id);
    Forwarded::Answered(response)
}

fn pass_back(passing: Passing, response: Response<Incoming>) -> Response<Through> {
    let (mut head, body) = response.into_parts();
    strip_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    Response::from_parts(head, Through::Answer(body, passing))
}
