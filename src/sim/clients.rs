//! Clients of locks: they try, wait, hold, extend at any daemon, release or forget to, lose patience, and now and then one
//! is an operator. Each says truly what it was told, as [`Event`]s.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{self, Either};

use super::daemon::{Daemons, SimDaemon};
use super::invariants::{Event, Grant};
use super::judge::Judge;
use super::options::Options;
use super::random::Random;
use super::world::World;
use crate::ids::{LockName, Owner};
use crate::lock::{AcquireRequest, Acquisition, DisconnectPolicy, HoldEvent, HoldRequest, Lease, LockError};
use crate::runtime::Moment;

/// What clients share.
pub struct Clients {
    /// The world.
    pub world: World,
    /// Whom they call.
    pub daemons: Arc<Daemons>,
    /// Whom they tell.
    pub judge: Arc<Judge>,
    /// What the seed decided.
    pub options: Options,
    /// The faults are over.
    pub calm: AtomicBool,
}

/// One client.
struct Client {
    all: Arc<Clients>,
    number: u32,
    random: Random,
}

/// How an attempt to have the lock ended.
enum Served {
    Yes,
    No,
}

/// Rounds that each client must be served when it is calm.
const CALM_ROUNDS: u32 = 2;

impl Clients {
    /// One client's whole life: rounds until the faults are over, and then until it was served often enough.
    pub async fn live(self: Arc<Self>, number: u32) {
        let random = self.world.fork();
        let mut client = Client { all: self.clone(), number, random };
        let mut served_in_calm = 0;
        while served_in_calm < CALM_ROUNDS && !self.judge.is_violated() {
            let calm = self.calm.load(Ordering::Relaxed);
            let served = client.round().await;
            if calm && matches!(served, Served::Yes) {
                served_in_calm += 1;
            }
            client.does("rests".to_owned());
            let rest = client.random.below(500);
            self.world.sleep(Duration::from_millis(rest)).await;
        }
        self.judge.say(format_args!("client {number} comes to an end"));
        self.judge.progress(|progress| progress.end(number));
    }
}

impl Client {
    async fn round(&mut self) -> Served {
        let name = LockName::parse(&format!("n{}", self.random.below(self.all.options.names)));
        let name = name.expect("a good name");
        let Some(daemon) = self.all.daemons.pick(&mut self.random) else {
            self.all.world.sleep(Duration::from_millis(100)).await;
            return Served::No;
        };
        match self.random.below(10) {
            0 => self.operate(&daemon, &name).await,
            1..4 => self.hold(&daemon, &name).await,
            _ => self.work(&daemon, &name).await,
        }
    }

    // ---- small things

    fn say(&self, words: std::fmt::Arguments<'_>) {
        self.all.judge.say(format_args!("client {}  {words}", self.number));
    }

    fn does(&self, what: String) {
        let now = self.all.world.now();
        self.all.judge.progress(|progress| progress.does(self.number, now, what));
    }

    fn another_daemon(&mut self) -> Option<Arc<SimDaemon>> {
        self.all.daemons.pick(&mut self.random)
    }

    async fn pass(&mut self, most: Duration) {
        let length = self.random.below(most.as_millis() as u64);
        self.all.world.sleep(Duration::from_millis(length)).await;
    }

    fn wants(&self, name: &LockName) {
        self.all.judge.observe(&Event::Wants { client: self.number, name: name.clone() });
    }

    fn leaves(&self, name: &LockName) {
        self.all.judge.observe(&Event::Leaves { client: self.number, name: name.clone() });
    }

    /// Tells that it has the lock. `until` is by the daemon's clock.
    fn holds(&self, daemon: &SimDaemon, lease: &Lease) -> Moment {
        let until = daemon.clock.global(lease.valid_until);
        self.say(format_args!("holds {} with token {} until {until:?}", lease.name, lease.token));
        self.all.judge.observe(&Event::Holds(Grant {
            client: self.number,
            name: (&lease.name).into(),
            lease: lease.lease_id,
            token: lease.token,
            until,
        }));
        until
    }

    fn lets_go(&self, lease: &Lease) {
        let (name, token) = ((&lease.name).into(), lease.token);
        self.all.judge.observe(&Event::LetsGo { client: self.number, name, token });
    }

    fn over(&self, lease: &Lease) {
        self.all.judge.observe(&Event::Over { name: (&lease.name).into(), lease: lease.lease_id });
    }

    fn request(&mut self, name: &LockName) -> AcquireRequest {
        let ttl = Duration::from_millis(500 + self.random.below(4_500));
        let wait = match self.random.below(10) {
            0..3 => Duration::ZERO,
            _ => Duration::from_millis(self.random.below(20_000)),
        };
        // Half of them have a name, and with it the right to their lease when they come again.
        let named = self.random.chance(50);
        let owner = named.then(|| Owner::parse(&format!("c{}", self.number)).expect("a good name"));
        AcquireRequest { name: name.clone(), owner, ttl, wait, attributes: vec![] }
    }

    /// Now and then it loses patience and hangs up.
    fn patience(&mut self) -> Duration {
        let most = if self.random.chance(15) { 3_000 } else { 600_000 };
        Duration::from_millis(self.random.below(most).max(1))
    }

    // ---- a lock for a while

    async fn work(&mut self, daemon: &Arc<SimDaemon>, name: &LockName) -> Served {
        let request = self.request(name);
        let wait = request.wait;
        self.say(format_args!(
            "asks daemon {} for {name}, ttl {:?}, wait {wait:?}, {}",
            daemon.actor.0,
            request.ttl,
            if request.owner.is_some() { "named" } else { "unnamed" }
        ));
        self.does(format!("waits for {name} at daemon {}", daemon.actor.0));
        if !wait.is_zero() {
            self.wants(name);
        }
        let acquired = self.acquire(daemon, request).await;
        match acquired {
            Some(Ok(Acquisition::Acquired(lease))) => {
                self.use_lease(daemon, lease).await;
                Served::Yes
            }
            other => {
                self.leaves(name);
                self.say(format_args!("does not get {name}: {}", fate(&other)));
                Served::No
            }
        }
    }

    /// `None` when it hung up or the daemon died.
    async fn acquire(
        &mut self,
        daemon: &Arc<SimDaemon>,
        request: AcquireRequest,
    ) -> Option<Result<Acquisition, LockError>> {
        let deadline = daemon.now() + request.wait + Duration::from_secs(5);
        let locks = daemon.locks.clone();
        let call = daemon.call(async move { locks.acquire(request, deadline).await });
        let patience = self.patience();
        let patience = self.all.world.sleep(patience);
        match future::select(Box::pin(call), patience).await {
            Either::Left((acquired, _)) => acquired,
            Either::Right(_) => None,
        }
    }

    async fn use_lease(&mut self, daemon: &Arc<SimDaemon>, mut lease: Lease) {
        let mut until = self.holds(daemon, &lease);
        self.does(format!("holds {}", lease.name));
        for _ in 0..self.random.below(4) {
            self.pass(Duration::from_millis(1_500)).await;
            if self.random.chance(60) {
                // Any daemon will do.
                let Some(at) = self.another_daemon() else { break };
                let ttl =
                    self.random.chance(30).then(|| Duration::from_millis(500 + self.random.below(4_500)));
                if let Some(ttl) = ttl {
                    until = self.shortens(&lease, until, ttl);
                }
                match self.extend(&at, &lease, ttl).await {
                    Some(Ok(extended)) => {
                        lease = extended;
                        until = self.holds(&at, &lease);
                    }
                    Some(Err(LockError::LeaseLost { .. })) => {
                        self.say(format_args!("has lost {} ({})", lease.name, lease.token));
                        self.lets_go(&lease);
                        self.over(&lease);
                        return;
                    }
                    other => self.say(format_args!("could not extend {}: {}", lease.name, fate(&other))),
                }
            }
        }
        if self.random.chance(80) {
            self.release(&lease).await;
        } else {
            self.say(format_args!("forgets about {} ({})", lease.name, lease.token));
            // It will not ask for it again under its name before that: that would be the same holder.
            self.all.world.sleep_until(until).await;
            self.lets_go(&lease);
        }
    }

    /// Whoever asks for a shorter lease may have it from then on, whether it hears so or not: it relies on the shorter.
    fn shortens(&self, lease: &Lease, until: Moment, ttl: Duration) -> Moment {
        let until = until.min(self.all.world.now() + (ttl - ttl / 200));
        self.all.judge.observe(&Event::Holds(Grant {
            client: self.number,
            name: (&lease.name).into(),
            lease: lease.lease_id,
            token: lease.token,
            until,
        }));
        until
    }

    async fn extend(
        &mut self,
        at: &Arc<SimDaemon>,
        lease: &Lease,
        ttl: Option<Duration>,
    ) -> Option<Result<Lease, LockError>> {
        let (locks, name, lease_id) = (at.locks.clone(), lease.name.clone(), lease.lease_id);
        let deadline = at.now() + Duration::from_secs(2);
        self.say(format_args!("extends {name} at daemon {} to {ttl:?}", at.actor.0));
        at.call(async move { locks.extend(&name, lease_id, ttl, deadline).await }).await
    }

    async fn release(&mut self, lease: &Lease) {
        self.lets_go(lease);
        let Some(at) = self.another_daemon() else { return };
        let (locks, name, lease_id) = (at.locks.clone(), lease.name.clone(), lease.lease_id);
        let deadline = at.now() + Duration::from_secs(3);
        let released = at.call(async move { locks.release(&name, lease_id, deadline).await }).await;
        self.say(format_args!(
            "releases {} ({}) at daemon {}: {}",
            lease.name,
            lease.token,
            at.actor.0,
            fate(&released)
        ));
        if matches!(released, Some(Ok(_))) {
            self.over(lease);
        }
    }

    // ---- a held stream

    async fn hold(&mut self, daemon: &Arc<SimDaemon>, name: &LockName) -> Served {
        let acquire = self.request(name);
        let wait = acquire.wait;
        let disconnect =
            if self.random.chance(50) { DisconnectPolicy::Keep } else { DisconnectPolicy::Release };
        self.say(format_args!(
            "asks daemon {} to hold {name}, ttl {:?}, wait {wait:?}, then {disconnect:?}",
            daemon.actor.0, acquire.ttl
        ));
        self.does(format!("waits to hold {name} at daemon {}", daemon.actor.0));
        if !wait.is_zero() {
            self.wants(name);
        }
        let request = HoldRequest { acquire, hold_limit: None, disconnect };
        let (locks, deadline) = (daemon.locks.clone(), daemon.now() + wait + Duration::from_secs(5));
        let (mut events, hangup) = daemon.stream(move || locks.hold(request, deadline));
        let patience = self.all.world.now() + self.patience();
        let work = Duration::from_millis(self.random.below(8_000));
        let mut lease: Option<Lease> = None;
        let mut until = patience;
        loop {
            let timer = self.all.world.sleep_until(until);
            let event = match future::select(events.next(), timer).await {
                Either::Left((event, _)) => event,
                Either::Right(_) => break,
            };
            match event {
                Some(Ok(HoldEvent::Acquired(held))) => {
                    self.holds(daemon, &held);
                    self.does(format!("holds {name} with a stream"));
                    until = self.all.world.now() + work;
                    lease = Some(held);
                }
                Some(Ok(HoldEvent::Extended(held))) => {
                    self.holds(daemon, &held);
                    lease = Some(held);
                }
                Some(Ok(HoldEvent::Waiting { .. } | HoldEvent::Jeopardy { .. })) => {}
                Some(Ok(HoldEvent::Lost(reason))) => {
                    self.say(format_args!("has lost {name}: {reason:?}"));
                    if let Some(lease) = lease {
                        self.lets_go(&lease);
                        if reason != crate::lock::LostReason::Expired {
                            self.over(&lease);
                        }
                    }
                    return Served::Yes;
                }
                Some(Ok(HoldEvent::TimedOut(_) | HoldEvent::Ended { .. })) | Some(Err(_)) | None => break,
            }
        }
        let Some(lease) = lease else {
            self.say(format_args!("does not get to hold {name}"));
            drop(hangup);
            self.leaves(name);
            return Served::No;
        };
        self.end_of_stream(daemon, &lease, hangup, disconnect).await;
        Served::Yes
    }

    async fn end_of_stream(
        &mut self,
        daemon: &Arc<SimDaemon>,
        lease: &Lease,
        hangup: super::daemon::Hangup,
        disconnect: DisconnectPolicy,
    ) {
        self.say(format_args!("reads no more of {} ({})", lease.name, lease.token));
        if disconnect == DisconnectPolicy::Release || self.random.chance(50) {
            self.lets_go(lease);
            drop(hangup);
            return;
        }
        drop(hangup);
        if self.random.chance(50) {
            return self.release(lease).await;
        }
        self.all.world.sleep_until(daemon.clock.global(lease.valid_until)).await;
        self.lets_go(lease);
    }

    // ---- an operator

    async fn operate(&mut self, daemon: &Arc<SimDaemon>, name: &LockName) -> Served {
        self.does(format!("looks at {name}"));
        let (locks, deadline) = (daemon.locks.clone(), daemon.now() + Duration::from_secs(3));
        let asked = name.clone();
        let view = daemon.call(async move { locks.get(&asked, deadline).await }).await;
        let Some(Ok(view)) = view else {
            self.say(format_args!("can't see who has {name}: {}", fate(&view)));
            return Served::No;
        };
        let holder = view.holder.map(|holder| holder.token);
        self.say(format_args!("sees that {name} has the holder {holder:?}, and {} wait", view.waiters));
        let Some(token) = holder.filter(|_| self.random.chance(30)) else { return Served::Yes };
        self.all.judge.observe(&Event::Forces { name: name.into(), token });
        let (locks, deadline) = (daemon.locks.clone(), daemon.now() + Duration::from_secs(3));
        let asked = name.clone();
        let forced = daemon.call(async move { locks.force_release(&asked, token, deadline).await }).await;
        self.say(format_args!("forces {name} ({token}): {}", fate(&forced)));
        Served::Yes
    }
}

fn fate<T: std::fmt::Debug, E: std::fmt::Display>(ended: &Option<Result<T, E>>) -> String {
    match ended {
        None => "no answer".to_owned(),
        Some(Ok(answer)) => {
            let mut words = format!("{answer:?}");
            words.truncate(60);
            words
        }
        Some(Err(error)) => {
            let words = error.to_string();
            words.chars().take(90).collect()
        }
    }
}
