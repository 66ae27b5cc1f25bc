//! Bodies of HTTP/1.1 messages: ours, whole or piece by piece, and those that pass through.

use crate::answer::NO_BODY;
use crate::core::{Core, End, Event, OpenCall};
use crate::deadline::{is_due, tighten, Alarm, LATE};
use crate::outlet::MOST_QUEUED;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::time::Instant;

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

/// What the task of a connection and the answer on its way share.
#[derive(Default)]
pub struct Link {
    /// When the answer on its way must have ended.
    pub alarm: RefCell<Alarm>,
    /// A request has come.
    pub heard: Cell<bool>,
    /// Why the connection was cut, and with it the answer on its way.
    cut: Cell<Option<&'static str>>,
    waker: RefCell<Option<Waker>>,
}

impl Link {
    /// Ready when the connection must end now.
    pub fn poll_cut(&self, context: &mut Context<'_>) -> Poll<()> {
        match &mut *self.waker.borrow_mut() {
            Some(waker) => waker.clone_from(context.waker()),
            unset => *unset = Some(context.waker().clone()),
        }
        if is_due(&mut self.alarm.borrow_mut(), context) {
            self.cut.set(Some(LATE));
        }
        if self.cut.get().is_some() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// End the answer on its way at `limit` at the latest.
    pub fn tighten(&self, limit: Option<Instant>) {
        tighten(&mut self.alarm.borrow_mut(), limit);
        self.wake();
    }

    fn cut(&self, why: &'static str) {
        self.cut.set(Some(why));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Why an answer ended before it was whole.
    fn parted(&self) -> &'static str {
        self.cut.get().unwrap_or("the caller is gone")
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

/// An answer that policy gives piece by piece.
pub struct Feed {
    pieces: RefCell<VecDeque<Bytes>>,
    queued: Cell<usize>,
    ended: Cell<bool>,
    pub link: Rc<Link>,
}

impl Feed {
    pub fn send(&self, piece: Bytes) {
        self.queued.set(self.queued.get() + piece.len());
        if self.queued.get() > MOST_QUEUED {
            self.pieces.borrow_mut().clear();
            return self.link.cut("the caller reads too slowly");
        }
        self.pieces.borrow_mut().push_back(piece);
        self.link.wake();
    }

    pub fn end(&self) {
        self.ended.set(true);
        self.link.wake();
    }

    fn is_over(&self) -> bool {
        self.ended.get() && self.pieces.borrow().is_empty()
    }
}

/// The body that a `Feed` fills. When hyper drops it before its end, nobody reads any more.
pub struct Fed {
    feed: Rc<Feed>,
    core: Rc<Core>,
    id: u64,
    bodiless: bool,
    open: Option<OpenCall>,
}

impl Fed {
    /// Count as an open call until it is written, at the time of `alarm` at the latest.
    pub fn keep(&mut self, open: OpenCall, alarm: Alarm) {
        self.open = Some(open);
        self.feed.link.tighten(alarm.map(|alarm| alarm.deadline()));
    }

    /// The connection's task is woken when there is more.
    fn poll_piece(&mut self) -> Poll<Option<Bytes>> {
        match self.feed.pieces.borrow_mut().pop_front() {
            Some(piece) => {
                self.feed.queued.set(self.feed.queued.get() - piece.len());
                Poll::Ready(Some(piece))
            }
            None if self.feed.ended.get() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        let link = &self.feed.link;
        link.alarm.take();
        if self.core.calls.borrow_mut().remove(self.id).is_some() {
            let why = if self.bodiless { NO_BODY } else { link.parted() };
            self.core.emit(Event::CallCancelled(self.id, why));
        }
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
        let feed = Rc::new(Feed {
            pieces: RefCell::default(),
            queued: Cell::new(0),
            ended: Cell::new(false),
            link: self.link.clone(),
        });
        let body = Fed {
            feed: feed.clone(),
            core: core.clone(),
            id,
            bodiless,
            open: None,
        };
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
