//! What a listener accepts, and which protocol a new connection speaks.

use crate::core::Core;
use crate::headers::value_to_python;
use crate::{http1, server};
use http::request::Parts;
use http::HeaderName;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// Time for a client to say what it speaks, and for an HTTP/1.1 client to send its first headers.
pub const GREETING_LIMIT: Duration = Duration::from_secs(30);
/// What the HTTP/2 preface begins with; no HTTP/1.1 method does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A request header that policy wants to see.
pub enum Pick {
    Authority,
    Name(HeaderName),
}

/// `ListenOptions` of the transport's interface.
pub struct Options {
    pub peek: bool,
    pub streaming: HashSet<String>,
    pub pick: Vec<Pick>,
    pub max_message: usize,
    pub max_header: usize,
    pub max_streams: u32,
}

impl Options {
    pub fn from_python(options: &Bound<'_, PyAny>) -> PyResult<Options> {
        let mut streaming = HashSet::new();
        for path in options.getattr("streaming_paths")?.try_iter()? {
            streaming.insert(path?.extract()?);
        }
        let mut pick = Vec::new();
        for name in options.getattr("pick")?.try_iter()? {
            let name: String = name?.extract()?;
            pick.push(if name == ":authority" {
                Pick::Authority
            } else {
                let bad = |_| PyValueError::new_err(format!("pick {name:?}: must be an HTTP token or :authority"));
                Pick::Name(HeaderName::from_bytes(name.as_bytes()).map_err(bad)?)
            });
        }
        Ok(Options {
            peek: options.getattr("peek")?.extract()?,
            streaming,
            pick,
            max_message: options.getattr("max_message_bytes")?.extract()?,
            max_header: options.getattr("max_header_bytes")?.extract()?,
            max_streams: options.getattr("max_concurrent_streams")?.extract()?,
        })
    }
}

/// The picked value of a request, b'' when it is absent.
pub fn picked<'py>(py: Python<'py>, pick: &Pick, head: &Parts) -> Bound<'py, PyBytes> {
    let authority = head.uri.authority().filter(|_| matches!(pick, Pick::Authority));
    let name = match (pick, authority) {
        (_, Some(authority)) => return PyBytes::new(py, authority.as_str().as_bytes()),
        (Pick::Authority, None) => &http::header::HOST,
        (Pick::Name(name), None) => name,
    };
    // The last value of several: proxies in front append theirs to what the client may have sent.
    match head.headers.get_all(name).iter().next_back() {
        Some(value) => value_to_python(py, name.as_str(), value),
        None => PyBytes::new(py, b""),
    }
}

/// Bind; OSError names the address.
pub fn bind(host: &str, port: u16) -> PyResult<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((host, port)).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| {
        let text = format!("cannot listen on {host}:{port}: {error}");
        PyOSError::new_err((error.raw_os_error().unwrap_or(0), text))
    })
}

/// Accept until the engine drains.
pub async fn accept(core: Rc<Core>, listener: std::net::TcpListener, options: Options, era: u64) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let options = Rc::new(options);
    loop {
        let draining = core.drain_changed.notified();
        if core.era.get() != era {
            return;
        }
        tokio::select! {
            () = draining => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => drop(spawn_local(greet(core.clone(), options.clone(), socket, era))),
                // Out of descriptors, most likely: they come back when connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
        }
    }
}

async fn greet(core: Rc<Core>, options: Rc<Options>, socket: TcpStream, era: u64) {
    let guard = core.connected(era);
    let _ = socket.set_nodelay(true);
    match tokio::time::timeout(GREETING_LIMIT, speaks_http2(&socket)).await {
        Ok(Ok(true)) => server::serve(core, options, socket, guard).await,
        Ok(Ok(false)) => http1::serve(core, options, socket, guard).await,
        _ => {}
    }
}

async fn speaks_http2(socket: &TcpStream) -> std::io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let count = socket.peek(&mut seen).await?;
        if count == 0 || seen[..count] != PREFACE[..count] {
            return Ok(false);
        }
        if count >= 4 {
            return Ok(true); // no HTTP/1.1 method is PRI
        }
        tokio::time::sleep(Duration::from_millis(1)).await; // readable stays true: there is nothing to wait on
    }
}
