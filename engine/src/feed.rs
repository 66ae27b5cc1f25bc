//! An HTTP/1.1 answer that policy gives piece by piece, and what it shares with its connection.
//!
//! The connection's task alone takes pieces, so whoever adds one wakes it. Pieces that wait are bounded: beyond that the connection is cut.

use crate::answer::NO_BODY;
use crate::core::{Core, Event, OpenCall};
use crate::deadline::{is_due, tighten, Alarm, LATE};
use crate::outlet::MOST_QUEUED;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::time::Instant;

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
    pub fn parted(&self) -> &'static str {
        self.cut.get().unwrap_or("the caller is gone")
    }
}

/// An answer that policy gives piece by piece.
pub struct Feed {
    pieces: RefCell<VecDeque<Bytes>>,
    queued: Cell<usize>,
    ended: Cell<bool>,
    /// Whether policy waits until nothing is queued.
    awaited: Cell<bool>,
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

    /// Bytes that wait; when there are some, `Drained` is told once there are none.
    pub fn backlog(&self) -> usize {
        self.awaited.set(self.awaited.get() || self.queued.get() > 0);
        self.queued.get()
    }

    pub fn end(&self) {
        self.ended.set(true);
        self.link.wake();
    }

    pub fn is_over(&self) -> bool {
        self.ended.get() && self.pieces.borrow().is_empty()
    }
}

/// An answer to a call, and the body that it fills; `bodiless` when HTTP forbids it one.
pub fn feed(core: &Rc<Core>, id: u64, link: &Rc<Link>, bodiless: bool) -> (Rc<Feed>, Fed) {
    let feed = Rc::new(Feed {
        pieces: RefCell::default(),
        queued: Cell::new(0),
        ended: Cell::new(false),
        awaited: Cell::new(false),
        link: link.clone(),
    });
    let body = Fed {
        feed: feed.clone(),
        core: core.clone(),
        id,
        bodiless,
        open: None,
    };
    (feed, body)
}

/// The body that a `Feed` fills. When hyper drops it before its end, nobody reads any more.
pub struct Fed {
    pub feed: Rc<Feed>,
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
    pub fn poll_piece(&mut self) -> Poll<Option<Bytes>> {
        match self.feed.pieces.borrow_mut().pop_front() {
            Some(piece) => {
                self.feed.queued.set(self.feed.queued.get() - piece.len());
                if self.feed.queued.get() == 0 && self.feed.awaited.take() && !self.feed.ended.get() {
                    self.core.emit(Event::Drained(self.id));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn pieces_come_in_order_and_end_once_they_are_all_taken() {
        let core = Core::new(Arc::default());
        let (feed, mut body) = feed(&core, 1, &Rc::default(), false);
        assert_eq!(body.poll_piece(), Poll::Pending);
        feed.send(Bytes::from_static(b"a"));
        feed.send(Bytes::from_static(b"b"));
        feed.end();
        assert!(!feed.is_over());
        assert_eq!(body.poll_piece(), Poll::Ready(Some(Bytes::from_static(b"a"))));
        assert_eq!(body.poll_piece(), Poll::Ready(Some(Bytes::from_static(b"b"))));
        assert!(feed.is_over());
        assert_eq!(body.poll_piece(), Poll::Ready(None));
    }

    #[test]
    fn more_than_may_wait_cuts_the_connection_and_keeps_nothing() {
        let core = Core::new(Arc::default());
        let link = Rc::<Link>::default();
        let (feed, mut body) = feed(&core, 1, &link, false);
        let mut context = Context::from_waker(Waker::noop());
        let piece = Bytes::from(vec![0; MOST_QUEUED / 4]);
        for _ in 0..4 {
            feed.send(piece.clone());
        }
        assert!(link.poll_cut(&mut context).is_pending());
        feed.send(Bytes::from_static(b"x"));
        feed.send(piece);
        assert!(link.poll_cut(&mut context).is_ready());
        assert_eq!(body.poll_piece(), Poll::Pending);
        assert_eq!(link.parted(), "the caller reads too slowly");
    }
}
