//! The native I/O core of Cloudstate for Knative: HTTP/2, HTTP/1.1 and gRPC framing on one thread of their own; policy is called once per
//! batch of events. Guarantees are those of `cloudstate_core.transport.api`, whose names the methods bear.

mod answer;
mod body;
mod call;
mod client;
mod core;
mod deadline;
mod feed;
mod forward;
mod framing;
mod grpc;
mod headers;
mod http1;
mod http1_client;
mod intake;
mod late;
mod listener;
mod outlet;
mod server;
mod socket;
mod table;
mod timers;
mod turn;
mod upgrade;
mod upstream;

use crate::call::{Call, Command, Exchange, Kind};
use crate::core::{Core, Posted, Shared};
use crate::forward::Order;
use crate::headers::Pattern;
use bytes::Bytes;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{spawn_local, LocalSet};

/// For the many small, short-lived buffers of HTTP/2; what it saves and costs is told in docs/decisions/0008.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One engine. `run` is its I/O thread; the other methods do what the transport's interface says.
#[pyclass(subclass, frozen, module = "cloudstate_engine")]
struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// On the I/O thread now, or there while the caller waits.
    fn on_core<R: Send + 'static>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&Rc<Core>) -> R + Send + 'static,
    ) -> PyResult<R> {
        if let Some(core) = Core::here(&self.shared) {
            return Ok(act(&core));
        }
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.shared
            .post(Posted::Native(Box::new(move |core| drop(tell.send(act(core))))));
        let stopped = |_| PyRuntimeError::new_err("the transport has stopped");
        py.detach(move || told.recv()).map_err(stopped)
    }

    /// For what only a callback can mean: an answer to a call.
    fn core(&self) -> PyResult<Rc<Core>> {
        let elsewhere = || PyRuntimeError::new_err("calls are answered on the transport's callback thread: use post()");
        Core::here(&self.shared).ok_or_else(elsewhere)
    }

    /// Do it to a call that is open.
    fn with_call(&self, call: u64, act: impl FnOnce(&mut Call)) -> PyResult<()> {
        let core = self.core()?;
        if let Some(call) = core.calls.borrow_mut().get_mut(call) {
            act(call);
        }
        Ok(())
    }
}

fn http_status(status: u16) -> PyResult<http::StatusCode> {
    http::StatusCode::from_u16(status)
        .map_err(|_| PyValueError::new_err(format!("HTTP status {status}: must be 100 to 999")))
}

/// Seconds as a duration; what is not positive is none at all.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0))
        .unwrap_or(Duration::MAX)
        .min(Duration::from_secs(1_000_000_000))
}

#[pymethods]
impl Engine {
    #[new]
    fn new() -> Self {
        Engine { shared: Arc::default() }
    }

    /// Serve until `stop`; `on_error` gets the exceptions of callbacks, `outcomes` are the members of `Outcome`.
    fn run(&self, py: Python<'_>, on_error: Py<PyAny>, outcomes: Vec<Py<PyAny>>) -> PyResult<()> {
        let shared = self.shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        py.detach(move || {
            let core = Core::new(shared.clone());
            Core::set_here(Some(core.clone()));
            let tasks = LocalSet::new();
            tasks.block_on(&runtime, async {
                drop(spawn_local(timers::run(core.clone())));
                turn::run(core.clone(), turn::Policy::new(on_error, outcomes)).await;
                for _ in 0..8 {
                    tokio::task::yield_now().await; // what is answered goes out
                }
            });
            shared.stop();
            drop(tasks);
            Core::set_here(None);
            Python::attach(|_| core.forget());
            drop(core);
            runtime.shutdown_background();
        });
        Ok(())
    }

    fn start(&self, on_batch: Py<PyAny>) {
        *self.shared.on_batch.lock().expect("no holder of this lock panics") = Some(on_batch);
        self.shared.wake.notify_one();
    }

    fn stop(&self) {
        self.shared.stop();
    }

    fn post(&self, callback: Py<PyAny>) {
        self.shared.post(Posted::Callback(callback));
    }

    /// batches, events, open calls, open streams, connections.
    fn counters(&self) -> (u64, u64, u64, u64, u64) {
        let c = &self.shared.counters;
        (
            c.batches.load(Relaxed),
            c.events.load(Relaxed),
            c.calls.load(Relaxed),
            c.streams.load(Relaxed),
            c.connections.load(Relaxed),
        )
    }

    fn listen(&self, host: &str, port: u16, options: &Bound<'_, PyAny>) -> PyResult<u16> {
        let options = listener::Options::from_python(options)?;
        let socket = listener::bind(host, port)?;
        let bound = socket.local_addr()?.port();
        let serve = move |core: &Rc<Core>| {
            drop(spawn_local(listener::accept(
                core.clone(),
                socket,
                options,
                core.era.get(),
            )))
        };
        match Core::here(&self.shared) {
            Some(core) => serve(&core),
            None if self.shared.post(Posted::Native(Box::new(serve))) => {}
            None => return Err(PyRuntimeError::new_err("the transport has stopped")),
        }
        Ok(bound)
    }

    fn connect(&self, py: Python<'_>, target: String) -> PyResult<u64> {
        let well_formed = target
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !well_formed {
            return Err(PyValueError::new_err(format!("upstream {target:?}: must be host:port")));
        }
        self.on_core(py, move |core| {
            let id = core.next_id();
            core.upstreams.borrow_mut().insert(id, upstream::Upstream::new(target));
            id
        })
    }

    fn disconnect(&self, py: Python<'_>, upstream: u64) -> PyResult<()> {
        self.on_core(py, move |core| drop(core.upstreams.borrow_mut().remove(&upstream)))
    }

    fn headers<'py>(&self, py: Python<'py>, call: u64) -> PyResult<Bound<'py, PyList>> {
        let core = self.core()?;
        let head = core.calls.borrow().get(call).map(|call| call.head.clone());
        head.map_or_else(|| Ok(PyList::empty(py)), |head| headers::to_python(py, &head.headers))
    }

    #[pyo3(signature = (upstream, path, headers = None, timeout = None))]
    fn open(
        &self,
        py: Python<'_>,
        upstream: u64,
        path: String,
        headers: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<u64> {
        let headers = pairs(headers)?;
        let timeout = timeout.map(seconds);
        self.on_core(py, move |core| client::open(core, upstream, &path, headers, timeout))
    }

    fn send(&self, py: Python<'_>, stream: u64, message: &[u8]) -> PyResult<()> {
        if let Some(core) = Core::here(&self.shared) {
            client::send(&core, stream, message);
            return Ok(());
        }
        let message = Bytes::copy_from_slice(message);
        self.on_core(py, move |core| client::send(core, stream, &message))
    }

    fn half_close(&self, py: Python<'_>, stream: u64) -> PyResult<()> {
        self.on_core(py, move |core| client::half_close(core, stream))
    }

    fn reset(&self, py: Python<'_>, stream: u64) -> PyResult<()> {
        self.on_core(py, move |core| client::reset(core, stream))
    }

    fn pause_stream(&self, py: Python<'_>, stream: u64) -> PyResult<()> {
        self.on_core(py, move |core| client::pause(core, stream, true))
    }

    fn resume_stream(&self, py: Python<'_>, stream: u64) -> PyResult<()> {
        self.on_core(py, move |core| client::pause(core, stream, false))
    }

    #[pyo3(signature = (call, message, headers = None))]
    fn reply(&self, call: u64, message: &[u8], headers: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        answer::reply(&*self.core()?, call, message, pairs(headers)?);
        Ok(())
    }

    #[pyo3(signature = (call, message, headers = None))]
    fn send_message(&self, call: u64, message: &[u8], headers: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        answer::send_message(&*self.core()?, call, message, pairs(headers)?);
        Ok(())
    }

    fn backlog(&self, either: u64) -> PyResult<usize> {
        let core = self.core()?;
        Ok(answer::backlog(&core, either).max(client::backlog(&core, either)))
    }

    fn pause(&self, call: u64) -> PyResult<()> {
        self.with_call(call, |call| call.paused = true)
    }

    fn resume(&self, call: u64) -> PyResult<()> {
        self.with_call(call, |call| {
            call.paused = false;
            call.wake();
        })
    }

    #[pyo3(signature = (call, status, message = "", trailers = None))]
    fn finish(&self, call: u64, status: i32, message: &str, trailers: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        answer::finish(&*self.core()?, call, status, message, pairs(trailers)?);
        Ok(())
    }

    fn respond(&self, call: u64, status: u16, headers: &Bound<'_, PyAny>, body: &[u8]) -> PyResult<()> {
        let (status, headers) = (http_status(status)?, headers::from_python(headers)?);
        answer::respond(&*self.core()?, call, status, headers, Bytes::copy_from_slice(body));
        Ok(())
    }

    #[pyo3(signature = (call, status, headers = None))]
    fn respond_begin(&self, call: u64, status: u16, headers: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        answer::respond_begin(&self.core()?, call, http_status(status)?, pairs(headers)?);
        Ok(())
    }

    fn respond_data(&self, call: u64, data: &[u8]) -> PyResult<()> {
        answer::respond_data(&*self.core()?, call, Bytes::copy_from_slice(data));
        Ok(())
    }

    fn respond_end(&self, call: u64) -> PyResult<()> {
        answer::respond_end(&*self.core()?, call);
        Ok(())
    }

    #[pyo3(signature = (call, upstream, headers = None, remove = Vec::new()))]
    fn forward(
        &self,
        call: u64,
        upstream: u64,
        headers: Option<&Bound<'_, PyAny>>,
        remove: Vec<String>,
    ) -> PyResult<()> {
        let core = self.core()?;
        let replace = pairs(headers)?;
        let remove = remove
            .iter()
            .map(|text| Pattern::parse(text))
            .collect::<PyResult<_>>()?;
        let upstream = core.upstreams.borrow().get(&upstream).cloned();
        let mut calls = core.calls.borrow_mut();
        let Some(call) = calls.get_mut(call) else { return Ok(()) };
        if matches!(call.exchange, Exchange::Head(_) | Exchange::Http1(_)) && !call.is_away() {
            call.command = Some(Command::Forward(Order {
                upstream,
                replace,
                remove,
            }));
            call.wake();
        }
        Ok(())
    }

    fn peek(&self, call: u64) -> PyResult<()> {
        let core = self.core()?;
        let mut calls = core.calls.borrow_mut();
        if let Some(call) = calls.get_mut(call).filter(|call| call.kind == Kind::Peek) {
            if matches!(call.exchange, Exchange::Head(_)) && call.command.is_none() {
                call.command = Some(Command::Peek);
                call.wake();
            }
        }
        Ok(())
    }

    fn limit(&self, call: u64, delay: f64) -> PyResult<()> {
        let limit = tokio::time::Instant::now().checked_add(seconds(delay));
        self.with_call(call, |call| match &call.exchange {
            Exchange::Feed(feed) => feed.link.tighten(limit),
            _ => {
                call.limit = limit;
                call.wake();
            }
        })
    }

    fn after(&self, py: Python<'_>, delay: f64, callback: Py<PyAny>) -> PyResult<u64> {
        self.on_core(py, move |core| {
            let id = core.next_id();
            core.timers.set(id, delay, callback);
            id
        })
    }

    fn cancel(&self, py: Python<'_>, timer: u64) -> PyResult<()> {
        self.on_core(py, move |core| core.timers.cancel(timer))
    }

    fn drain(&self, py: Python<'_>, grace: f64, done: Py<PyAny>) -> PyResult<()> {
        self.on_core(py, move |core| {
            core.begin_drain();
            drop(spawn_local(turn::drain(core.clone(), seconds(grace), done)));
        })
    }
}

fn pairs(headers: Option<&Bound<'_, PyAny>>) -> PyResult<headers::Pairs> {
    headers.map_or_else(|| Ok(Vec::new()), headers::from_python)
}

#[pymodule]
fn cloudstate_engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Engine>()
}
