//! Policy's answers. Each is a no-op on a call that has ended.

use crate::body;
use crate::call::{Call, Command, Exchange, Kind};
use crate::core::{Core, End, Event};
use crate::framing::frame;
use crate::grpc;
use crate::headers::Pairs;
use crate::outlet::Outlet;
use crate::table::Table;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::SendStream;
use http::{HeaderMap, Method, Response, StatusCode};
use std::cell::RefMut;
use std::rc::Rc;

/// Whole answers up to this size are handed to their connection at once, whatever the peer's window takes: larger ones count as open until
/// their reader has room for them, lest a drain cut them off.
const AT_ONCE: usize = 16 * 1024;

/// Answer with a status alone, gRPC's or HTTP's.
pub fn refuse(respond: &mut SendResponse<Bytes>, kind: Kind, status: i32, text: &str) {
    if kind == Kind::Http {
        let status = u16::try_from(status)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
        let text = Bytes::from(format!("{text}\n"));
        if let Some(mut tx) = plain(respond, status, Vec::new(), text.len()) {
            let _ = tx.send_data(text, true);
        }
    } else {
        let _ = respond.send_response(grpc::trailers_only(grpc::trailers(status, text, Vec::new())), true);
    }
}

/// The head of an answer that is not gRPC; where its body goes, if it has one.
fn plain(
    respond: &mut SendResponse<Bytes>,
    status: StatusCode,
    headers: Pairs,
    size: usize,
) -> Option<SendStream<Bytes>> {
    let mut head = Response::new(());
    *head.status_mut() = status;
    head.headers_mut().extend(headers);
    head.headers_mut()
        .entry(http::header::CONTENT_LENGTH)
        .or_insert_with(|| size.into());
    let tx = respond.send_response(head, size == 0).ok()?;
    (size > 0).then_some(tx)
}

/// Let the task of a call write a whole answer as its reader takes it.
fn trickle(core: &Core, id: u64, call: &mut Call, outlet: Outlet) {
    call.exchange = Exchange::Body(outlet);
    call.closing = true;
    void_order(core, id, call);
    call.wake();
}

/// What policy ordered just before it answered does not begin.
fn void_order(core: &Core, id: u64, call: &mut Call) {
    if matches!(call.command.take(), Some(Command::Forward(_))) {
        core.emit(Event::Forwarded(id, End::Cancelled("answered by policy".to_owned())));
    }
}

/// Answer a unary gRPC call.
pub fn reply(core: &Core, id: u64, message: &[u8], headers: Pairs) {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls
        .get_mut(id)
        .filter(|call| call.kind != Kind::Http && !call.closing)
    else {
        return;
    };
    let respond = match &mut call.exchange {
        Exchange::Head(respond) => respond,
        Exchange::Body(_) => {
            drop(calls);
            send_message(core, id, message, Vec::new());
            return finish(core, id, 0, "", Vec::new());
        }
        _ => return,
    };
    if let Ok(mut tx) = respond.send_response(grpc::head(headers), false) {
        let trailers = grpc::trailers(0, "", Vec::new());
        if message.len() > AT_ONCE {
            return trickle(core, id, call, Outlet::whole(tx, frame(message), Some(trailers)));
        }
        let _ = tx.send_data(frame(message), false);
        let _ = tx.send_trailers(trailers);
    }
    forget(core, calls, id);
}

/// One message of a streaming answer; the first one takes `headers` along.
pub fn send_message(core: &Core, id: u64, message: &[u8], headers: Pairs) {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls
        .get_mut(id)
        .filter(|call| call.kind != Kind::Http && !call.closing && !call.is_away())
    else {
        return;
    };
    if let Exchange::Head(respond) = &mut call.exchange {
        let Ok(tx) = respond.send_response(grpc::head(headers), false) else {
            return;
        };
        call.exchange = Exchange::Body(Outlet::new(tx));
    }
    write(call, frame(message));
}

/// Write at once what the caller's window lets; the call's task writes the rest.
fn write(call: &mut Call, data: Bytes) {
    let Exchange::Body(outlet) = &mut call.exchange else {
        return;
    };
    let overflow = outlet.send(data).is_err();
    if overflow {
        outlet.reset(h2::Reason::ENHANCE_YOUR_CALM); // its task then finds the caller gone and tells policy
    }
    if overflow || outlet.is_blocked() {
        call.wake();
    }
}

/// Bytes of an answer that wait for its reader; policy is told when none do any more.
pub fn backlog(core: &Core, id: u64) -> usize {
    match core.calls.borrow_mut().get_mut(id).map(|call| &mut call.exchange) {
        Some(Exchange::Body(outlet)) => outlet.backlog(),
        Some(Exchange::Feed(feed)) => feed.backlog(),
        _ => 0,
    }
}

/// End a gRPC call with a status.
pub fn finish(core: &Core, id: u64, status: i32, message: &str, trailers: Pairs) {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls.get_mut(id).filter(|call| !call.closing) else {
        return;
    };
    if call.kind == Kind::Http {
        drop(calls);
        let text = Bytes::from(format!("grpc-status {status}: {message}\n"));
        return respond(core, id, StatusCode::BAD_GATEWAY, Vec::new(), text);
    }
    match &mut call.exchange {
        Exchange::Head(respond) => {
            let head = grpc::trailers_only(grpc::trailers(status, message, trailers));
            let _ = respond.send_response(head, true);
        }
        Exchange::Body(outlet) => {
            outlet.finish(grpc::trailers(status, message, trailers));
            if !outlet.is_finished() {
                call.closing = true;
                return call.wake();
            }
        }
        Exchange::Away => {
            call.command = Some(Command::Abort(status, message.to_owned()));
            return call.wake();
        }
        Exchange::Bodiless | Exchange::Http1(_) | Exchange::Feed(_) => return,
    }
    forget(core, calls, id);
}

/// The call is answered, as far as policy is concerned; a forward that was asked for just before does not begin.
fn forget(core: &Core, mut calls: RefMut<'_, Table<Call>>, id: u64) {
    let ended = calls.remove(id);
    drop(calls);
    if let Some(mut call) = ended {
        void_order(core, id, &mut call);
        call.wake();
    }
}

/// Answer a request that is not gRPC.
pub fn respond(core: &Core, id: u64, status: StatusCode, headers: Pairs, content: Bytes) {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls.get_mut(id).filter(|call| call.kind == Kind::Http) else {
        return;
    };
    match &mut call.exchange {
        Exchange::Head(respond) => match plain(respond, status, headers, content.len()) {
            Some(tx) if content.len() > AT_ONCE => return trickle(core, id, call, Outlet::whole(tx, content, None)),
            Some(mut tx) => drop(tx.send_data(content, true)),
            None => {}
        },
        Exchange::Http1(slot) => {
            let headers: HeaderMap = headers.into_iter().collect();
            slot.answer(body::whole(status, headers, content));
        }
        Exchange::Away => {
            call.command = Some(Command::Abort(
                i32::from(status.as_u16()),
                String::from_utf8_lossy(&content).into_owned(),
            ));
            return call.wake();
        }
        Exchange::Body(_) | Exchange::Bodiless | Exchange::Feed(_) => return,
    }
    forget(core, calls, id);
}

pub const NO_BODY: &str = "the answer has no body";

/// Whether HTTP forbids the answer a body (RFC 9110, 6.4.1).
pub fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Begin to answer a request that is not gRPC piece by piece, unless a forward has it.
pub fn respond_begin(core: &Rc<Core>, id: u64, status: StatusCode, headers: Pairs) {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls
        .get_mut(id)
        .filter(|call| call.kind == Kind::Http && !call.is_away())
    else {
        return;
    };
    let headers: HeaderMap = headers.into_iter().collect();
    let bodiless = is_bodiless(&call.head.method, status);
    let begun = match &mut call.exchange {
        Exchange::Head(respond) => {
            let mut head = Response::new(());
            *head.status_mut() = status;
            *head.headers_mut() = headers;
            let Ok(tx) = respond.send_response(head, bodiless) else {
                return; // a lost stream is told by its receiving side
            };
            if bodiless {
                Exchange::Bodiless
            } else {
                Exchange::Body(Outlet::new(tx))
            }
        }
        Exchange::Http1(slot) => Exchange::Feed(slot.begin(core, id, status, headers, bodiless)),
        _ => return,
    };
    call.exchange = begun;
    call.wake();
}

/// A further piece of an answer that has begun.
pub fn respond_data(core: &Core, id: u64, data: Bytes) {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls
        .get_mut(id)
        .filter(|call| call.kind == Kind::Http && !call.closing && !data.is_empty())
    else {
        return;
    };
    match &call.exchange {
        Exchange::Feed(feed) => feed.send(data),
        _ => write(call, data),
    }
}

/// The answer is whole.
pub fn respond_end(core: &Core, id: u64) {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls
        .get_mut(id)
        .filter(|call| call.kind == Kind::Http && !call.closing)
    else {
        return;
    };
    match &mut call.exchange {
        Exchange::Body(outlet) => {
            outlet.half_close();
            if !outlet.is_finished() {
                call.closing = true;
                return call.wake();
            }
        }
        Exchange::Feed(feed) => feed.end(),
        Exchange::Bodiless => {}
        Exchange::Head(_) | Exchange::Http1(_) | Exchange::Away => return,
    }
    forget(core, calls, id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_without_a_body() {
        for (method, status, expected) in [
            (Method::GET, StatusCode::OK, false),
            (Method::HEAD, StatusCode::OK, true),
            (Method::GET, StatusCode::NO_CONTENT, true),
            (Method::POST, StatusCode::NOT_MODIFIED, true),
            (Method::POST, StatusCode::INTERNAL_SERVER_ERROR, false),
        ] {
            assert_eq!(is_bodiless(&method, status), expected, "{method} {status}");
        }
    }
}
