//! The sending side of a stream: writes at once while flow control lets it, else queues, up to a limit.

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;
use std::collections::VecDeque;
use std::task::{Context, Poll};

/// Bytes that may wait for a slow peer on one stream.
pub const MOST_QUEUED: usize = 64 * 1024 * 1024;

/// The peer reads too slowly.
pub struct Overflow;

enum Last {
    None,
    HalfClose,
    Trailers(HeaderMap),
    Sent,
    /// Nothing more: the peer reads too slowly.
    Cut,
}

pub struct Outlet {
    tx: SendStream<Bytes>,
    queue: VecDeque<Bytes>,
    queued: usize,
    last: Last,
    /// Whether policy waits until nothing is queued.
    awaited: bool,
}

impl Outlet {
    pub fn new(tx: SendStream<Bytes>) -> Self {
        Outlet {
            tx,
            queue: VecDeque::new(),
            queued: 0,
            last: Last::None,
            awaited: false,
        }
    }

    /// A whole answer, to be written as its reader takes it.
    pub fn whole(tx: SendStream<Bytes>, data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Outlet {
            queued: data.len(),
            queue: VecDeque::from([data]),
            last: trailers.map_or(Last::HalfClose, Last::Trailers),
            ..Outlet::new(tx)
        }
    }

    /// Write, or queue; on overflow what is queued is dropped, and what follows too.
    pub fn send(&mut self, framed: Bytes) -> Result<(), Overflow> {
        self.put(framed, false)
    }

    /// The same for the last message of this side: one frame says both.
    pub fn send_and_half_close(&mut self, framed: Bytes) -> Result<(), Overflow> {
        self.put(framed, true)?;
        self.half_close();
        Ok(())
    }

    fn put(&mut self, framed: Bytes, last: bool) -> Result<(), Overflow> {
        if !matches!(self.last, Last::None) {
            return Ok(());
        }
        if self.queue.is_empty() {
            self.tx.reserve_capacity(framed.len());
            if self.tx.capacity() >= framed.len() {
                let _ = self.tx.send_data(framed, last); // a lost stream is told by its receiving side
                if last {
                    self.last = Last::Sent;
                }
                return Ok(());
            }
        }
        self.queued += framed.len();
        self.queue.push_back(framed);
        if self.queued > MOST_QUEUED {
            self.queue.clear();
            self.queued = 0;
            self.last = Last::Cut;
            return Err(Overflow);
        }
        Ok(())
    }

    pub fn half_close(&mut self) {
        self.end(Last::HalfClose);
    }

    pub fn finish(&mut self, trailers: HeaderMap) {
        self.end(Last::Trailers(trailers));
    }

    fn end(&mut self, last: Last) {
        if matches!(self.last, Last::None) {
            self.last = last;
            if self.queue.is_empty() {
                self.send_last();
            }
        }
    }

    fn send_last(&mut self) {
        match std::mem::replace(&mut self.last, Last::Sent) {
            Last::HalfClose => drop(self.tx.send_data(Bytes::new(), true)),
            Last::Trailers(trailers) => drop(self.tx.send_trailers(trailers)),
            last @ (Last::None | Last::Cut) => self.last = last,
            Last::Sent => {}
        }
    }

    /// True when everything, the end included, is handed to the connection.
    pub fn is_finished(&self) -> bool {
        matches!(self.last, Last::Sent)
    }

    /// True while something waits for the peer's window.
    pub fn is_blocked(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Bytes queued; when there are some, `take_drained` will be true once there are none.
    pub fn backlog(&mut self) -> usize {
        self.awaited |= self.queued > 0;
        self.queued
    }

    /// Let `take_drained` be true once nothing is queued.
    pub fn await_drained(&mut self) {
        self.awaited = true;
    }

    /// True once after a `backlog`, when nothing is queued any more.
    pub fn take_drained(&mut self) -> bool {
        self.queue.is_empty() && std::mem::take(&mut self.awaited)
    }

    /// Write what the peer's window lets; the task is woken when it opens.
    pub fn poll_pump(&mut self, context: &mut Context<'_>) {
        while let Some(front) = self.queue.front_mut() {
            self.tx.reserve_capacity(front.len());
            let mut capacity = self.tx.capacity();
            if capacity == 0 {
                capacity = match self.tx.poll_capacity(context) {
                    Poll::Pending => return,
                    Poll::Ready(Some(Ok(capacity))) => capacity,
                    Poll::Ready(_) => {
                        self.queue.clear(); // a lost stream is told by its receiving side
                        break;
                    }
                };
                if capacity == 0 {
                    continue;
                }
            }
            let part = front.split_to(capacity.min(front.len()));
            if front.is_empty() {
                self.queue.pop_front();
            }
            self.queued = self.queued.saturating_sub(part.len());
            let _ = self.tx.send_data(part, false);
        }
        self.queued = 0;
        self.send_last();
    }

    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.tx.poll_reset(context).map(drop)
    }

    pub fn reset(&mut self, reason: h2::Reason) {
        self.tx.send_reset(reason);
    }
}
