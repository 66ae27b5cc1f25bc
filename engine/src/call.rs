//! A request that waits for its answer: how policy meets it, where its answer goes, and what its task is to do.

use crate::body::Slot;
use crate::feed::Feed;
use crate::forward::Order;
use crate::grpc;
use crate::listener::Options;
use crate::outlet::Outlet;
use bytes::Bytes;
use h2::server::SendResponse;
use http::request::Parts;
use std::rc::Rc;
use std::task::Waker;
use tokio::time::Instant;

/// How policy meets a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// gRPC, told when its one message is here.
    Unary,
    /// gRPC, told at its first message, or without it when it does not come at once, then message by message.
    Streaming,
    /// gRPC, told at its first message; the rest is for `forward`.
    Peek,
    /// Not gRPC.
    Http,
}

impl Kind {
    pub fn of(head: &Parts, options: &Options) -> Kind {
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
    /// HTTP/2, a streamed answer has begun.
    Body(Outlet),
    /// HTTP/2, a streamed answer has begun that has no body.
    Bodiless,
    /// HTTP/1.1, nothing answered yet.
    Http1(Rc<Slot>),
    /// HTTP/1.1, a streamed answer has begun.
    Feed(Rc<Feed>),
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
    /// `first` is a message.
    pub peeked: bool,
    /// Policy wants to be told no more of the request for now.
    pub paused: bool,
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
            paused: false,
            exchange,
            command: None,
            limit: None,
            waker: None,
            told: false,
            closing: false,
        }
    }

    /// A forward has it, or will have it at once.
    pub fn is_away(&self) -> bool {
        match &self.exchange {
            Exchange::Away => true,
            Exchange::Http1(slot) if slot.away.get() => true,
            _ => matches!(self.command, Some(Command::Forward(_))),
        }
    }

    /// Let its task look at what has changed.
    pub fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
