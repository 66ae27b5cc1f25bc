//! After an upstream has agreed to switch protocols (WebSocket), the bytes of both connections pass until both sides have ended.

use crate::body::{text, Passing, Through};
use crate::core::End;
use crate::deadline::{is_due, Alarm, LATE};
use crate::headers::{set_upgrade, strip_hop_by_hop};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::future::{poll_fn, Future};
use std::task::Poll;
use tokio::task::spawn_local;

/// Bytes of each direction that may be on their way.
const SPLICE_BUFFER: usize = 16 * 1024;

/// The client's side of a switch of protocols that it has asked for.
pub struct Switch {
    pub protocol: HeaderValue,
    pub client: OnUpgrade,
}

/// Agree as the upstream has agreed, and pass bytes on from then on.
pub fn switch_protocols(
    passing: Passing,
    switch: Switch,
    mut response: Response<Incoming>,
    alarm: Alarm,
) -> Response<Through> {
    let upstream = hyper::upgrade::on(&mut response);
    let (mut head, _) = response.into_parts();
    let protocol = head.headers.get(http::header::UPGRADE).cloned();
    strip_hop_by_hop(&mut head.headers);
    set_upgrade(&mut head.headers, protocol.unwrap_or(switch.protocol));
    drop(spawn_local(splice(passing, switch.client, upstream, alarm)));
    Response::from_parts(head, Through::Whole(Full::default()))
}

/// Both directions, as fast as the slower side reads, each until its sender ends it.
async fn splice(mut passing: Passing, client: OnUpgrade, upstream: OnUpgrade, mut alarm: Alarm) {
    let both = async {
        let (client, upstream) = tokio::try_join!(client, upstream).map_err(|_| "the caller is gone")?;
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        // A connection that breaks is an end like any other: what it meant only the two sides know.
        let _ =
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, SPLICE_BUFFER, SPLICE_BUFFER).await;
        Ok(())
    };
    let mut both = std::pin::pin!(both);
    let ended: Result<(), &str> = poll_fn(|context| {
        if is_due(&mut alarm, context) {
            return Poll::Ready(Err(LATE));
        }
        both.as_mut().poll(context)
    })
    .await;
    if let Err(why) = ended {
        passing.tell(End::Cancelled(why.to_owned()));
    }
}

/// An upstream that switches protocols though nobody has asked for it.
pub fn unasked(mut passing: Passing) -> Response<Through> {
    let why = "the upstream switched protocols though nobody has asked for it";
    passing.fail(why.to_owned());
    text(StatusCode::BAD_GATEWAY, why)
}
