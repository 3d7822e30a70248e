//! Messages for people from a command that has something better to do than to wait for its reader.
//!
//! While a lock is held, writing to stderr must neither block (a pipe that nobody empties) nor panic (one that was closed):
//! either would leave the command running past its lease. So a thread of its own writes; what it can't keep up with is
//! dropped.

use std::io::Write as _;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Messages that may wait.
const QUEUE_MAX: usize = 64;
/// How long the end of the process waits for them.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

enum Order {
    Write(String),
    Flush(SyncSender<()>),
}

static WRITER: LazyLock<SyncSender<Order>> = LazyLock::new(|| {
    let (sender, receiver) = sync_channel(QUEUE_MAX);
    std::thread::spawn(move || write(&receiver));
    sender
});

fn write(orders: &Receiver<Order>) {
    // Ends with the process: the sender is never dropped.
    for order in orders {
        match order {
            Order::Write(text) => {
                let _ = writeln!(std::io::stderr(), "majorityd: {text}");
            }
            Order::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

/// Says it on stderr, if there is somebody to read it.
pub(super) fn say(text: impl Into<String>) {
    let _ = WRITER.try_send(Order::Write(text.into()));
}

/// Waits a little until everything has been said.
pub(super) fn flush() {
    let (done, written) = sync_channel(1);
    if WRITER.try_send(Order::Flush(done)).is_ok() {
        let _ = written.recv_timeout(FLUSH_TIMEOUT);
    }
}
