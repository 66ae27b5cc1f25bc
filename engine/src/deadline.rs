//! When a call must have ended: its own deadline or policy's limit, whichever comes first.

use crate::call::Kind;
use crate::grpc;
use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use tokio::time::{Instant, Sleep};

pub const LATE: &str = "the deadline of the call has passed";

/// The status of a call whose deadline has passed, gRPC's or HTTP's.
pub fn late_status(kind: Kind) -> i32 {
    if kind == Kind::Http {
        504
    } else {
        grpc::DEADLINE_EXCEEDED
    }
}

pub type Alarm = Option<Pin<Box<Sleep>>>;

pub fn is_due(alarm: &mut Alarm, context: &mut Context<'_>) -> bool {
    alarm
        .as_mut()
        .is_some_and(|alarm| alarm.as_mut().poll(context).is_ready())
}

/// Ring at `limit` if that is earlier.
pub fn tighten(alarm: &mut Alarm, limit: Option<Instant>) {
    let Some(limit) = limit else { return };
    match alarm {
        Some(alarm) if alarm.deadline() <= limit => {}
        Some(alarm) => alarm.as_mut().reset(limit),
        None => *alarm = Some(Box::pin(tokio::time::sleep_until(limit))),
    }
}
