//! What the tests that need real servers share.
#![allow(dead_code, reason = "every test crate uses another part of it")]

pub mod daemon;
pub mod local;
pub mod redis_server;

use std::time::Duration;

/// Waits until `look` gives something, looking again every few milliseconds. Panics after half a minute, which is far
/// longer than anything here takes: not a measurement, but an end to waiting for what never comes.
#[expect(clippy::disallowed_methods, reason = "tests against real servers wait in real time")]
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3_000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain: {what}");
}
