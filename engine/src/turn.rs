//! The loop: gather what happened, enter the interpreter once, tell it all, let the I/O go on.

use crate::call::Kind;
use crate::core::{Closed, Core, End, Event, Posted};
use crate::{headers, listener};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

const CALL: u8 = 0;
const CALL_MESSAGE: u8 = 1;
const CALL_END: u8 = 2;
const CALL_CANCELLED: u8 = 3;
const STREAM_MESSAGE: u8 = 4;
const STREAM_CLOSED: u8 = 5;
const FORWARDED: u8 = 6;
const HTTP: u8 = 7;
const DRAINED: u8 = 8;
/// Paths remembered as Python strings. Clients choose paths, so there is a limit.
const MOST_PATHS: usize = 4096;

/// What the interpreter is given besides the events.
pub struct Policy {
    /// Called with an exception that a callback has let through.
    pub on_error: Py<PyAny>,
    /// `Outcome`'s members by number.
    pub outcomes: Vec<Py<PyAny>>,
    paths: HashMap<String, Py<PyString>>,
}

impl Policy {
    pub fn new(on_error: Py<PyAny>, outcomes: Vec<Py<PyAny>>) -> Policy {
        Policy {
            on_error,
            outcomes,
            paths: HashMap::new(),
        }
    }

    fn path(&mut self, py: Python<'_>, path: &str) -> Py<PyString> {
        if let Some(known) = self.paths.get(path) {
            return known.clone_ref(py);
        }
        if self.paths.len() >= MOST_PATHS {
            self.paths.clear();
        }
        let new = PyString::intern(py, path).unbind();
        self.paths.insert(path.to_owned(), new.clone_ref(py));
        new
    }

    fn log(&self, py: Python<'_>, result: PyResult<Py<PyAny>>) {
        if let Err(error) = result {
            let value = error.value(py).clone();
            if let Err(second) = self.on_error.call1(py, (value,)) {
                second.write_unraisable(py, None);
            }
        }
    }
}

/// Run until stopped.
pub async fn run(core: Rc<Core>, mut policy: Policy) {
    let shared = core.shared.clone();
    loop {
        shared.wake.notified().await;
        tokio::task::yield_now().await; // what else is readable now joins the batch
        let mut callbacks = Vec::new();
        let posted = std::mem::take(&mut *shared.posted.lock().expect("no holder of this lock panics"));
        for work in posted {
            match work {
                Posted::Native(run) => run(&core),
                Posted::Callback(callback) => callbacks.push(callback),
            }
        }
        if shared.stopped.load(Relaxed) {
            return;
        }
        let started = !core.events.borrow().is_empty();
        if started || !callbacks.is_empty() {
            Python::attach(|py| deliver(py, &core, &mut policy, callbacks));
        }
    }
}

fn deliver(py: Python<'_>, core: &Rc<Core>, policy: &mut Policy, callbacks: Vec<Py<PyAny>>) {
    for callback in callbacks {
        policy.log(py, callback.call0(py));
    }
    let on_batch = core
        .shared
        .on_batch
        .lock()
        .expect("no holder of this lock panics")
        .as_ref()
        .map(|f| f.clone_ref(py));
    let Some(on_batch) = on_batch else { return }; // not started: events wait
    let events = std::mem::take(&mut *core.events.borrow_mut());
    let mut after = Vec::new();
    let mut told = Vec::with_capacity(events.len());
    let mut untold = HashSet::new(); // calls that ended before they could be told: nothing of them is
    for event in events {
        let call = event.of_call();
        match event {
            Event::Timer(_) | Event::Callback(_) => after.push(event),
            _ if call.is_some_and(|id| untold.contains(&id)) => {}
            event => match to_python(py, core, policy, event) {
                Ok(Some(event)) => told.push(event),
                Ok(None) => untold.extend(call),
                Err(error) => policy.log(py, Err(error)),
            },
        }
    }
    let counters = &core.shared.counters;
    if !told.is_empty() {
        counters.batches.fetch_add(1, Relaxed);
        counters.events.fetch_add(told.len() as u64, Relaxed);
        let result = PyList::new(py, told).and_then(|batch| on_batch.call1(py, (batch,)));
        policy.log(py, result);
    }
    for event in after {
        let callback = match event {
            Event::Timer(id) => core.timers.take(id),
            Event::Callback(callback) => Some(callback),
            _ => None,
        };
        if let Some(callback) = callback {
            policy.log(py, callback.call0(py));
        }
    }
}

type Told<'py> = PyResult<Option<Bound<'py, PyTuple>>>;

fn to_python<'py>(py: Python<'py>, core: &Core, policy: &mut Policy, event: Event) -> Told<'py> {
    let none = || PyBytes::new(py, b"");
    let event = match event {
        Event::Call(id) => return call(py, core, policy, id),
        Event::CallMessage(id, data) => (CALL_MESSAGE, id, PyBytes::new(py, &data), py.None()).into_pyobject(py)?,
        Event::CallEnd(id) => (CALL_END, id, none(), py.None()).into_pyobject(py)?,
        Event::CallCancelled(id, reason) => (CALL_CANCELLED, id, none(), reason).into_pyobject(py)?,
        Event::StreamMessage(id, data) => (STREAM_MESSAGE, id, PyBytes::new(py, &data), py.None()).into_pyobject(py)?,
        Event::StreamClosed(id, closed) => {
            let Closed {
                status,
                message,
                trailers,
                refused,
            } = *closed;
            let detail = (status, message, headers::to_python(py, &trailers)?, refused);
            (STREAM_CLOSED, id, none(), detail).into_pyobject(py)?
        }
        Event::Forwarded(id, end) => {
            let (outcome, text) = match end {
                End::Delivered(text) => (0, text),
                End::Refused(text) => (1, text),
                End::Failed(text) => (2, text),
                End::Cancelled(text) => (3, text),
            };
            let outcome: &Py<PyAny> = &policy.outcomes[outcome];
            (FORWARDED, id, none(), (outcome.clone_ref(py), text)).into_pyobject(py)?
        }
        Event::Drained(id) => (DRAINED, id, none(), py.None()).into_pyobject(py)?,
        Event::Timer(_) | Event::Callback(_) => return Ok(None),
    };
    Ok(Some(event))
}

/// A new call; None when it has ended before it could be told.
fn call<'py>(py: Python<'py>, core: &Core, policy: &mut Policy, id: u64) -> Told<'py> {
    let mut calls = core.calls.borrow_mut();
    let Some(call) = calls.get_mut(id) else { return Ok(None) };
    call.told = true;
    let data = PyBytes::new(py, &std::mem::take(&mut call.first));
    let picked = PyTuple::new(
        py,
        call.options
            .pick
            .iter()
            .map(|pick| listener::picked(py, pick, &call.head)),
    )?;
    let event = if call.kind == Kind::Http {
        let target = call.head.uri.path_and_query().map_or("*", |path| path.as_str());
        (HTTP, id, data, (call.head.method.as_str(), target, picked)).into_pyobject(py)?
    } else {
        let path = policy.path(py, call.head.uri.path());
        (CALL, id, data, (path, call.peeked.then_some(call.complete), picked)).into_pyobject(py)?
    };
    Ok(Some(event))
}

/// Wait until nothing is open, or `grace` has passed, then tell policy.
pub async fn drain(core: Rc<Core>, grace: std::time::Duration, done: Py<PyAny>) {
    let deadline = tokio::time::Instant::now() + grace;
    let wait_until = |idle: fn(&Core) -> bool, limit| {
        let core = core.clone();
        async move {
            loop {
                let changed = core.drain_changed.notified();
                if idle(&core) {
                    return;
                }
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(limit) => return,
                }
            }
        }
    };
    wait_until(|core| core.open.get() == 0, deadline).await;
    // The last answers leave with their connections; a client that keeps its connection open is not waited for.
    let soon = tokio::time::Instant::now() + std::time::Duration::from_millis(50);
    wait_until(
        |core| core.open.get() == 0 && core.connections.get() == 0,
        soon.min(deadline),
    )
    .await;
    wait_until(|core| core.open.get() == 0, deadline).await; // what came on a connection before its client knew
    core.emit(Event::Callback(done));
}
