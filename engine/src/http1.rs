//! HTTP/1.1 by hyper: requests told to policy like any other, and passed through to upstreams as streams.

use crate::body::{text, Passing, Slot, Through};
use crate::call::{Call, Command, Exchange, Kind};
use crate::core::{Core, End, Event, OpenCall, OpenConnection};
use crate::deadline::{is_due, tighten, Alarm, LATE};
use crate::feed::Link;
use crate::forward::Order;
use crate::headers::{strip_hop_by_hop, upgrade};
use crate::http1_client::send;
use crate::listener::{Options, GREETING_LIMIT};
use crate::upgrade::{switch_protocols, unasked, Switch};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{poll_fn, Future};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a connection may wait for its next request: longer than ingresses keep theirs (an hour), since one that is closed just as a
/// request comes costs that request.
const IDLE_LIMIT: Duration = Duration::from_secs(3700);

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
    let mut ending = None;
    let mut greeting: Alarm = Some(Box::pin(tokio::time::sleep(GREETING_LIMIT)));
    let _ = poll_fn(|context| {
        if !closing && guard.is_draining(context.waker()) {
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
        if closing && ending.is_none() && link.heard.get() {
            ending = Some(core.enter()); // one that has nothing on its way ends at once, the others with the last byte of their answer
        }
        if link.poll_cut(context).is_ready() {
            return Poll::Ready(Ok(())); // with the connection goes the answer on its way
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
    slot: Rc<Slot>,
    /// An answer that has begun tells its end itself.
    begun: bool,
}

impl Drop for Attending {
    fn drop(&mut self) {
        if self.begun {
            return;
        }
        let call = self.core.calls.borrow_mut().remove(self.id);
        // Away, though policy has just answered it, or just to be: either way policy waits for the end of a forward.
        if self.slot.away.get() || call.as_ref().is_some_and(Call::is_away) {
            self.core.emit(Event::Forwarded(
                self.id,
                End::Cancelled("the caller is gone".to_owned()),
            ));
        } else if call.is_some_and(|call| call.told) {
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
    let switch = upgrade(request.headers())
        .filter(|_| options.peek && request.version() == Version::HTTP_11)
        .map(|protocol| Switch {
            protocol,
            client: hyper::upgrade::on(&mut request),
        });
    let (head, body) = request.into_parts();
    let (first, body) = if options.peek {
        (Bytes::new(), Through::Incoming(body))
    } else {
        match read(body, options.max_message).await {
            Ok(body) => (body.clone(), Through::Whole(Full::new(body))),
            Err(refusal) => return refusal,
        }
    };
    let (head, slot) = (Rc::new(head), Slot::new(&link));
    let call = Call::new(
        Kind::Http,
        head.clone(),
        &options,
        first,
        body.is_end_stream(),
        Exchange::Http1(slot.clone()),
    );
    let id = core.calls.borrow_mut().insert(call);
    core.emit(Event::Call(id));
    let attending = Attending {
        core,
        id,
        slot,
        begun: false,
    };
    attend(attending, head, Some(body), switch, link, open).await
}

/// Stay with a request that policy knows until it is answered.
async fn attend(
    mut attending: Attending,
    head: Rc<Parts>,
    mut body: Option<Through>,
    mut switch: Option<Switch>,
    link: Rc<Link>,
    open: OpenCall,
) -> Response<Through> {
    let (core, id, slot) = (attending.core.clone(), attending.id, attending.slot.clone());
    let mut alarm = None;
    loop {
        let order = match poll_fn(|context| poll_order(&core, id, &slot, &mut alarm, context)).await {
            Met::Order(order) => order,
            Met::Answered => {
                let mut response = slot.take();
                if let Some(Through::Fed(body)) = response.as_mut().map(Response::body_mut) {
                    attending.begun = true;
                    body.keep(open, alarm);
                }
                return response.unwrap_or_else(|| text(StatusCode::BAD_GATEWAY, "the request was not answered"));
            }
            Met::Late => {
                core.calls.borrow_mut().remove(id);
                core.emit(Event::CallCancelled(id, LATE));
                return text(StatusCode::GATEWAY_TIMEOUT, LATE);
            }
        };
        slot.away.set(true);
        let protocol = switch.as_ref().map(|switch| &switch.protocol);
        let forwarded = {
            let mut forwarding = std::pin::pin!(forward(&core, id, order, &head, protocol, &mut body));
            poll_fn(|context| match forwarding.as_mut().poll(context) {
                Poll::Pending => poll_parted(&core, id, &slot, &mut alarm, context).map(Forwarded::Ended),
                ready => ready,
            })
            .await
        };
        slot.away.set(false); // its end is told, or will be by who passes the answer on
        match forwarded {
            Forwarded::Refused => {}
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

fn poll_order(core: &Core, id: u64, slot: &Slot, alarm: &mut Alarm, context: &mut Context<'_>) -> Poll<Met> {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls.get_mut(id) else {
        return Poll::Ready(Met::Answered);
    };
    tighten(alarm, call.limit.take());
    if slot.is_filled() {
        return Poll::Ready(Met::Answered);
    }
    if let Some(Command::Forward(order)) = call.command.take() {
        return Poll::Ready(Met::Order(order));
    }
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
    if let Some(response) = slot.take() {
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
