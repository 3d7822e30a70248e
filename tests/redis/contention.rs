//! Many clients of several daemons, one lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::daemon::{Client, DaemonProcess, Held, beside, in_time, now, pause, servers};

const NO_WAIT: Duration = Duration::ZERO;
const MINUTE: Duration = Duration::from_secs(60);

/// What the lock guards: a counter that is read, and written a little later.
#[derive(Default)]
struct Guarded {
    counter: AtomicU64,
    grants: Mutex<Vec<(usize, u64)>>,
}

impl Guarded {
    async fn work(&self, who: usize, held: &Held) {
        self.grants.lock().unwrap().push((who, held.lease.fencing_token));
        let seen = self.counter.load(Ordering::SeqCst);
        pause(Duration::from_millis(1)).await;
        self.counter.store(seen + 1, Ordering::SeqCst);
        assert!(now() < held.ends_at_best, "this machine is too slow for this lease: the test says nothing");
    }

    fn check(&self) {
        let grants = self.grants.lock().unwrap();
        assert_eq!(self.counter.load(Ordering::SeqCst), grants.len() as u64, "lost updates");
        let grown = grants.windows(2).all(|pair| pair[0].1 < pair[1].1);
        assert!(grown, "tokens do not grow: {grants:?}");
    }
}

/// Mechanisms: one agreed value per lock; the line in it, with tickets from one clock order; the token of the ballot.
#[tokio::test]
async fn sixty_four_clients_of_three_daemons_take_turns_in_order_of_arrival() {
    const CLIENTS: usize = 64;
    let servers = servers(3);
    let mut clients = Vec::new();
    let mut daemons = Vec::new();
    for _ in 0..3 {
        let daemon = DaemonProcess::serving(&servers).await;
        clients.push(daemon.client().await);
        daemons.push(daemon);
    }
    let guarded = Arc::new(Guarded::default());
    let first = clients[0].must_acquire("x", "first", MINUTE, NO_WAIT).await;
    let mut tasks = Vec::new();
    for who in 0..CLIENTS {
        let client = clients[who % 3].clone();
        let (guarded, asked) = (guarded.clone(), client.clone());
        tasks.push(beside(async move {
            let held = client.must_acquire("x", &format!("c{who}"), Duration::from_secs(20), MINUTE).await;
            guarded.work(who, &held).await;
            assert!(client.release(&held).await.unwrap());
        }));
        // Two round trips behind it on the same connection: it stands in line before the next one comes.
        pause(Duration::from_millis(5)).await;
        asked.get("elsewhere").await.unwrap();
        asked.get("elsewhere").await.unwrap();
    }
    assert!(clients[1].release(&first).await.unwrap());
    in_time("everybody's turn", async {
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
    guarded.check();
    let order: Vec<usize> = guarded.grants.lock().unwrap().iter().map(|(who, _)| *who).collect();
    assert_eq!(order, (0..CLIENTS).collect::<Vec<_>>(), "not in order of arrival");

    // Now all at once, again and again.
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|who| {
            let (client, guarded) = (clients[who % 3].clone(), guarded.clone());
            beside(async move {
                for _ in 0..2 {
                    let owner = format!("d{who}");
                    let held = client.must_acquire("x", &owner, Duration::from_secs(20), MINUTE).await;
                    guarded.work(who, &held).await;
                    assert!(client.release(&held).await.unwrap());
                }
            })
        })
        .collect();
    in_time("everybody's turn", async {
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
    guarded.check();
    assert_eq!(guarded.counter.load(Ordering::SeqCst), 3 * CLIENTS as u64);
}

/// One client: takes a turn at its daemon, gives it back at another one.
async fn turn(who: usize, client: Client, elsewhere: Client, guarded: Arc<Guarded>) -> bool {
    let Ok(outcome) = client.acquire("x", &format!("k{who}"), Duration::from_secs(4), MINUTE).await else {
        return false;
    };
    let held = outcome.unwrap_or_else(|contention| panic!("{who} had no turn: {contention:?}"));
    guarded.work(who, &held).await;
    elsewhere.release(&held).await.unwrap();
    true
}

/// Mechanisms: an offer ages, and who does not take it is out of the line; leases age; any daemon releases any lease.
#[tokio::test]
async fn a_daemon_killed_amid_its_clients_costs_the_others_no_turn() {
    const CLIENTS: usize = 48;
    let servers = servers(3);
    let mut doomed = DaemonProcess::serving(&servers).await;
    let second = DaemonProcess::serving(&servers).await;
    let third = DaemonProcess::serving(&servers).await;
    let clients = [doomed.client().await, second.client().await, third.client().await];
    let guarded = Arc::new(Guarded::default());
    let first = clients[1].must_acquire("x", "first", MINUTE, NO_WAIT).await;
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|who| beside(turn(who, clients[who % 3].clone(), clients[1].clone(), guarded.clone())))
        .collect();
    pause(Duration::from_millis(300)).await;
    assert!(clients[1].release(&first).await.unwrap());
    in_time("a few turns", async {
        while guarded.grants.lock().unwrap().len() < CLIENTS / 4 {
            pause(Duration::from_millis(2)).await;
        }
    })
    .await;
    doomed.kill();
    let mut turns = 0;
    for (who, task) in tasks.into_iter().enumerate() {
        let had_turn = in_time("everybody's turn", task).await.unwrap();
        assert!(had_turn || who % 3 == 0, "client {who} of a living daemon had no turn");
        turns += u64::from(had_turn);
    }
    guarded.check();
    assert_eq!(guarded.counter.load(Ordering::SeqCst), turns);
}
