//! The state of one engine: what its I/O thread owns (`Core`) and what every thread may touch (`Shared`).

use crate::call::Call;
use crate::client::ClientStream;
use crate::table::Table;
use crate::timers::Timers;
use crate::upstream::Upstream;
use bytes::Bytes;
use http::HeaderMap;
use pyo3::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use tokio::sync::Notify;

type NativeWork = Box<dyn FnOnce(&Rc<Core>) + Send>;

/// Work brought from other threads.
pub enum Posted {
    Callback(Py<PyAny>),
    Native(NativeWork),
}

#[derive(Default)]
pub struct Counters {
    pub batches: AtomicU64,
    pub events: AtomicU64,
    pub calls: AtomicU64,
    pub streams: AtomicU64,
    pub connections: AtomicU64,
}

/// What every thread may touch.
#[derive(Default)]
pub struct Shared {
    pub posted: Mutex<Vec<Posted>>,
    pub wake: Notify,
    pub on_batch: Mutex<Option<Py<PyAny>>>,
    pub stopped: AtomicBool,
    pub counters: Counters,
}

impl Shared {
    /// Hand work to the I/O thread; false once it has stopped.
    pub fn post(&self, work: Posted) -> bool {
        {
            let mut posted = self.posted.lock().expect("no holder of this lock panics");
            if self.stopped.load(Relaxed) {
                return false;
            }
            posted.push(work);
        }
        self.wake.notify_one();
        true
    }

    /// Let the loop end; work not yet begun is dropped.
    pub fn stop(&self) {
        let dropped = {
            let mut posted = self.posted.lock().expect("no holder of this lock panics");
            self.stopped.store(true, Relaxed);
            std::mem::take(&mut *posted)
        };
        drop(dropped);
        self.wake.notify_one();
    }
}

/// How a stream ended.
pub struct Closed {
    pub status: i32,
    pub message: String,
    pub trailers: HeaderMap,
    pub refused: bool,
}

/// How a forward ended; the numbers are those of `Outcome`.
pub enum End {
    Delivered(String),
    Refused(String),
    Failed(String),
    Cancelled(String),
}

/// What policy is told. `Call` holds no data: it is read from the table when it is told, so that a call which ended before is not told.
pub enum Event {
    Call(u64),
    CallMessage(u64, Bytes),
    CallEnd(u64),
    CallCancelled(u64, &'static str),
    StreamMessage(u64, Bytes),
    StreamClosed(u64, Box<Closed>),
    Forwarded(u64, End),
    /// Nothing waits any more on a call or stream.
    Drained(u64),
    /// A timer has gone off, unless policy forgets it before it is told.
    Timer(u64),
    Callback(Py<PyAny>),
}

impl Event {
    /// The call whose beginning, request or end it tells.
    pub fn of_call(&self) -> Option<u64> {
        match self {
            Event::Call(id) | Event::CallMessage(id, _) | Event::CallEnd(id) | Event::CallCancelled(id, _) => Some(*id),
            _ => None,
        }
    }
}

/// What the I/O thread owns.
pub struct Core {
    pub shared: Arc<Shared>,
    pub events: RefCell<Vec<Event>>,
    pub calls: RefCell<Table<Call>>,
    pub streams: RefCell<Table<ClientStream>>,
    pub upstreams: RefCell<HashMap<u64, Rc<Upstream>>>,
    pub timers: Timers,
    /// Counts drains: a listener or connection that began before the last one ends.
    pub era: Cell<u64>,
    /// Told at each drain, and during one whenever something ends.
    pub drain_changed: Notify,
    /// Requests from their head to the end of their answer, and server connections.
    pub open: Cell<u64>,
    pub connections: Cell<u64>,
    connection_wakers: RefCell<Table<Waker>>,
    pub sequence: Rc<Cell<u64>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

impl Core {
    pub fn new(shared: Arc<Shared>) -> Rc<Core> {
        let sequence: Rc<Cell<u64>> = Rc::default();
        Rc::new(Core {
            shared,
            events: RefCell::default(),
            calls: RefCell::new(Table::new(sequence.clone())),
            streams: RefCell::new(Table::new(sequence.clone())),
            upstreams: RefCell::default(),
            timers: Timers::default(),
            era: Cell::new(0),
            drain_changed: Notify::new(),
            open: Cell::new(0),
            connections: Cell::new(0),
            connection_wakers: RefCell::new(Table::new(Rc::default())),
            sequence,
        })
    }

    /// The core of this thread, if it is the I/O thread of `shared`.
    pub fn here(shared: &Arc<Shared>) -> Option<Rc<Core>> {
        CURRENT.with_borrow(|core| core.as_ref().filter(|core| Arc::ptr_eq(&core.shared, shared)).cloned())
    }

    pub fn set_here(core: Option<Rc<Core>>) {
        CURRENT.replace(core);
    }

    pub fn next_id(&self) -> u64 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }

    pub fn emit(&self, event: Event) {
        let mut events = self.events.borrow_mut();
        if events.is_empty() {
            self.shared.wake.notify_one();
        }
        events.push(event);
    }

    /// Count a request until the guard is dropped.
    pub fn enter(self: &Rc<Self>) -> OpenCall {
        self.open.set(self.open.get() + 1);
        self.shared.counters.calls.store(self.open.get(), Relaxed);
        OpenCall(self.clone())
    }

    /// Count a server connection, of a listener of `era`, until the guard is dropped.
    pub fn connected(self: &Rc<Self>, era: u64) -> OpenConnection {
        self.connections.set(self.connections.get() + 1);
        self.shared.counters.connections.fetch_add(1, Relaxed);
        OpenConnection {
            core: self.clone(),
            era,
            waker: Cell::new(None),
        }
    }

    /// End what has begun to listen or to be served so far.
    pub fn begin_drain(&self) {
        self.era.set(self.era.get() + 1);
        let wakers = self.connection_wakers.borrow();
        wakers.each(Waker::wake_by_ref);
        self.drain_changed.notify_waiters();
    }

    /// Let go of everything, Python's objects among it.
    pub fn forget(&self) {
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
        self.timers.clear();
        self.calls.borrow_mut().clear();
        self.streams.borrow_mut().clear();
        self.upstreams.borrow_mut().clear();
        self.shared
            .on_batch
            .lock()
            .expect("no holder of this lock panics")
            .take();
    }
}

pub struct OpenCall(Rc<Core>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        let core = &self.0;
        core.open.set(core.open.get() - 1);
        core.shared.counters.calls.store(core.open.get(), Relaxed);
        if core.era.get() > 0 {
            core.drain_changed.notify_waiters();
        }
    }
}

pub struct OpenConnection {
    core: Rc<Core>,
    era: u64,
    waker: Cell<Option<u64>>,
}

impl OpenConnection {
    /// Whether it is to end; if not, the waker is woken when it is.
    pub fn is_draining(&self, waker: &Waker) -> bool {
        let mut wakers = self.core.connection_wakers.borrow_mut();
        match self.waker.get().and_then(|id| wakers.get_mut(id)) {
            Some(known) => known.clone_from(waker),
            None => self.waker.set(Some(wakers.insert(waker.clone()))),
        }
        self.core.era.get() != self.era
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let core = &self.core;
        if let Some(id) = self.waker.get() {
            core.connection_wakers.borrow_mut().remove(id);
        }
        core.connections.set(core.connections.get() - 1);
        core.shared.counters.connections.fetch_sub(1, Relaxed);
        if core.era.get() > 0 {
            core.drain_changed.notify_waiters();
        }
    }
}
