//! The client half of HTTP/1.1: connections to upstreams, kept for another request, and requests rewritten for them.

use crate::body::Through;
use crate::core::End;
use crate::forward::Order;
use crate::headers::{rewrite, set_upgrade, strip_hop_by_hop};
use crate::upstream::{dial, Upstream};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::task::spawn_local;

/// Connections kept for another request, per upstream.
const MOST_IDLE: usize = 256;

/// Connections to an upstream that wait for another request.
#[derive(Default)]
pub struct Pool(RefCell<VecDeque<SendRequest<Through>>>);

impl Pool {
    /// One that is ready; those that are closed are forgotten.
    fn take(&self) -> Option<SendRequest<Through>> {
        let mut idle = self.0.borrow_mut();
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(SendRequest::is_ready)?;
        idle.remove(ready)
    }

    fn put(&self, sender: SendRequest<Through>) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < MOST_IDLE {
            idle.push_back(sender);
        }
    }
}

async fn connect(upstream: &Upstream) -> Result<SendRequest<Through>, String> {
    let socket = dial(&upstream.target).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| format!("failed to connect to {}: {error}", upstream.target))?;
    drop(spawn_local(async move { drop(connection.with_upgrades().await) }));
    Ok(sender)
}

/// Send on a waiting connection, or a new one. A request that never left is left in `body`.
pub async fn send(
    upstream: &Rc<Upstream>,
    order: &Order,
    head: &Parts,
    protocol: Option<&HeaderValue>,
    body: &mut Option<Through>,
) -> Result<Response<Incoming>, End> {
    let replay = match body {
        Some(Through::Whole(whole)) => Some(Through::Whole(whole.clone())),
        Some(body) if body.is_end_stream() => Some(Through::Whole(Full::default())),
        _ => None,
    };
    let harmless = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(&head.method)
        && body.as_ref().is_some_and(Body::is_end_stream);
    loop {
        let pooled = upstream.http1.take();
        let fresh = pooled.is_none();
        let mut sender = match pooled {
            Some(sender) => sender,
            None => connect(upstream).await.map_err(End::Refused)?,
        };
        sender
            .ready()
            .await
            .map_err(|error| End::Refused(format!("{}: {error}", upstream.target)))?;
        let Some(content) = body.take() else {
            return Err(End::Failed("the request body is spent".to_owned()));
        };
        match sender
            .try_send_request(request(upstream, order, head, protocol, content))
            .await
        {
            Ok(response) => {
                if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    upstream.http1.put(sender);
                }
                *body = replay;
                return Ok(response);
            }
            Err(mut error) => {
                *body = error.take_message().map(Request::into_body);
                let why = format!("{}: {}", upstream.target, error.error());
                if body.is_none() && !fresh && harmless && error.error().is_incomplete_message() {
                    *body = Some(Through::Whole(Full::default())); // most likely closed as it was taken: no byte of an answer came
                }
                match body {
                    Some(_) if !fresh => {} // the peer closed it while it waited: nothing was sent
                    Some(_) => return Err(End::Refused(why)),
                    None => return Err(End::Failed(why)),
                }
            }
        }
    }
}

fn request(
    upstream: &Upstream,
    order: &Order,
    head: &Parts,
    protocol: Option<&HeaderValue>,
    body: Through,
) -> Request<Through> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    let path = head.uri.path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| head.uri.clone(), http::Uri::from);
    let mut headers = head.headers.clone();
    strip_hop_by_hop(&mut headers);
    if let Some(protocol) = protocol {
        set_upgrade(&mut headers, protocol.clone());
    }
    rewrite(&mut headers, &order.replace, &order.remove);
    if !headers.contains_key(http::header::HOST) {
        if let Ok(host) = HeaderValue::from_str(&upstream.target) {
            headers.insert(http::header::HOST, host);
        }
    }
    *request.headers_mut() = headers;
    request
}
