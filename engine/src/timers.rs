//! Policy's timers: an ordered map and one sleeping task, so that setting and forgetting one costs no task.

use crate::core::{Core, Event};
use pyo3::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The longest delay kept, 30 years: a larger one would overflow the clock.
const LONGEST: f64 = 946_080_000.0;

#[derive(Default)]
pub struct Timers {
    due: RefCell<BTreeMap<(Instant, u64), Py<PyAny>>>,
    when: RefCell<HashMap<u64, Instant>>,
    /// Timers that have gone off and are not told yet: what is told before them may still forget them.
    ringing: RefCell<HashMap<u64, Py<PyAny>>>,
    changed: Notify,
}

impl Timers {
    /// Call back after `delay` seconds; one that is negative or not a number is due at once.
    pub fn set(&self, id: u64, delay: f64, callback: Py<PyAny>) {
        let delay = if delay > 0.0 { delay.min(LONGEST) } else { 0.0 };
        let when = Instant::now() + Duration::from_secs_f64(delay);
        self.when.borrow_mut().insert(id, when);
        let mut due = self.due.borrow_mut();
        let earliest = due.first_key_value().is_none_or(|((first, _), _)| when < *first);
        due.insert((when, id), callback);
        if earliest {
            self.changed.notify_one();
        }
    }

    pub fn cancel(&self, id: u64) {
        if let Some(when) = self.when.borrow_mut().remove(&id) {
            self.due.borrow_mut().remove(&(when, id));
        }
        self.take(id);
    }

    /// The callback of a timer that has gone off; None when it was forgotten since.
    pub fn take(&self, id: u64) -> Option<Py<PyAny>> {
        self.ringing.borrow_mut().remove(&id)
    }

    pub fn clear(&self) {
        self.when.borrow_mut().clear();
        self.due.borrow_mut().clear();
        self.ringing.borrow_mut().clear();
    }

    fn next(&self) -> Option<Instant> {
        self.due.borrow().first_key_value().map(|((when, _), _)| *when)
    }

    /// Let the first timer that is due go off; its id.
    fn ring(&self, now: Instant) -> Option<u64> {
        let mut due = self.due.borrow_mut();
        let first = due.first_entry()?;
        let (when, id) = *first.key();
        if when > now {
            return None;
        }
        self.when.borrow_mut().remove(&id);
        self.ringing.borrow_mut().insert(id, first.remove());
        Some(id)
    }
}

/// Turn due timers into events, for ever.
pub async fn run(core: Rc<Core>) {
    let timers = &core.timers;
    loop {
        match timers.next() {
            None => timers.changed.notified().await,
            Some(when) => tokio::select! {
                () = tokio::time::sleep_until(when) => {}
                () = timers.changed.notified() => {}
            },
        }
        let now = Instant::now();
        while let Some(id) = timers.ring(now) {
            core.emit(Event::Timer(id));
        }
    }
}
