//! Bodies of HTTP/1.1 messages: ours, whole or piece by piece, and those that pass through; and where an answer is laid.

use crate::core::{Core, End, Event, OpenCall};
use crate::feed::{feed, Fed, Feed, Link};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

type Fail = hyper::Error;

/// A body of ours, or one that passes through.
pub enum Through {
    Whole(Full<Bytes>),
    Fed(Fed),
    Incoming(Incoming),
    Answer(Incoming, Passing),
}

impl Body for Through {
    type Data = Bytes;
    type Error = Fail;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fail>>> {
        match self.get_mut() {
            Through::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Through::Fed(body) => body.poll_piece().map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
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
            Through::Fed(body) => body.feed.is_over(),
            Through::Incoming(body) | Through::Answer(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Through::Whole(body) => body.size_hint(),
            Through::Fed(_) => SizeHint::default(),
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
    link: Rc<Link>,
    _open: OpenCall,
}

impl Passing {
    pub fn new(
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
        } else {
            End::Cancelled(self.link.parted().to_owned())
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
pub struct Slot {
    answer: RefCell<Option<Response<Through>>>,
    /// A forward has the call.
    pub away: Cell<bool>,
    link: Rc<Link>,
}

impl Slot {
    pub fn new(link: &Rc<Link>) -> Rc<Slot> {
        Rc::new(Slot {
            answer: RefCell::default(),
            away: Cell::new(false),
            link: link.clone(),
        })
    }

    pub fn answer(&self, response: Response<Through>) {
        self.answer.replace(Some(response));
    }

    /// Lay an answer that policy will give piece by piece.
    pub fn begin(&self, core: &Rc<Core>, id: u64, status: StatusCode, headers: HeaderMap, bodiless: bool) -> Rc<Feed> {
        let (feed, body) = feed(core, id, &self.link, bodiless);
        self.answer(response(status, headers, Through::Fed(body)));
        feed
    }

    pub fn is_filled(&self) -> bool {
        self.answer.borrow().is_some()
    }

    pub fn take(&self) -> Option<Response<Through>> {
        self.answer.take()
    }
}

fn response(status: StatusCode, headers: HeaderMap, body: Through) -> Response<Through> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// An answer of ours.
pub fn whole(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Through> {
    response(status, headers, Through::Whole(Full::new(body)))
}

pub fn text(status: StatusCode, text: &str) -> Response<Through> {
    let mut headers = HeaderMap::new();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    whole(status, headers, Bytes::from(format!("{text}\n")))
}
