//! One join, and what may come in between at each of its steps: the daemon that copies is killed, or cut off from the node, or
//! the node loses its memory once more. Every step of the copying daemon is tried, so these are not schedules of one
//! mechanism; whatever happens, the node is a member in the end and has everything.

use majorityd::lock::Lease;
use majorityd::members::{MemberList, State};
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;
use majorityd::upkeep::membership::MembershipSettings;

use super::stage::{Daemon, RIGHT, Stage, Way};
use super::table::{Found, Table, holds_and_breaks_without, promise};

/// Locks that are held all the while.
const HELD: usize = 7;
/// Records a second: a page has twice as many keys, so that the copy of one source takes several.
const JOIN_RATE: usize = 3;
/// A join is over, or has been started over by another daemon and is over then, within so many seconds.
const JOINED_WITHIN: u64 = 90;
/// No join makes a daemon call so often.
const CALLS_MAX: u32 = 500;

/// Where a join under way has got to, when its daemon has made so many calls.
struct Joining {
    stage: Stage,
    /// The one that copies.
    copier: Daemon,
    /// The one that has the locks.
    holder: Daemon,
    leases: Vec<Lease>,
}

fn keeper(stage: &Stage, id: u64) -> Daemon {
    let settings = MembershipSettings { join_rate: JOIN_RATE, ..MembershipSettings::default() };
    let daemon = stage.keeper_with(id, settings);
    stage.reports(&daemon);
    stage.forgets(&daemon);
    daemon
}

fn is_whole(list: &MemberList) -> bool {
    list.entries.iter().all(|entry| entry.state == State::Member)
}

/// Node 2 is emptied, and the copier stands still after so many calls. `None` where the join was over before.
fn joining(calls: u32) -> Option<Joining> {
    let stage = Stage::on(Table::laid(3));
    let (copier, holder) = (keeper(&stage, 1), stage.daemon(2, RIGHT));
    stage.pass(1_000);
    let acquire = |number: usize| {
        let acquired = stage.acquire_one(&holder, &format!("held-{number}"), "x", 1_000, 0);
        acquired.lease().expect("it was free")
    };
    let leases = (0..HELD).map(acquire).collect();
    stage.restart(2, After::Wiped, &[&copier, &holder]);
    copier.stands_still_after(calls);
    let mut began = false;
    while !copier.stands_still() {
        stage.pass(10);
        let list = copier.view().list;
        began |= !is_whole(&list);
        if began && is_whole(&list) {
            return None;
        }
    }
    Some(Joining { stage, copier, holder, leases })
}

impl Joining {
    /// The node is a member, has all records, and with either of the others makes up a quorum that knows of every lock.
    fn comes_to_its_end(&self, keeper: &Daemon) -> Found {
        let stage = &self.stage;
        let whole = || {
            stage.pass(1_000);
            let view = keeper.cluster.views.current();
            view.is_some_and(|view| is_whole(&view.list)) && keeper.cluster.reachable() == 3
        };
        promise((0..JOINED_WITHIN).any(|_| whole()), "the node does not become a member")?;
        // What says nothing would be forgotten by now.
        stage.pass(15_000);
        self.holder.cluster.views.install(keeper.view());
        for (number, lease) in self.leases.iter().enumerate() {
            let records = stage.recorded(keeper, &format!("l:{}", lease.name));
            promise(records == [0, 1, 2], "a record is not on all nodes")?;
            let without = (number % 2) as u8;
            [&self.holder, keeper].into_iter().for_each(|daemon| daemon.way(without, Way::Cut));
            let other = stage.acquire_one(keeper, lease.name.as_str(), "y", 10, 0);
            let extended = stage.extend(&self.holder, lease);
            stage.pass(500);
            promise(other.lease().is_none(), "a lock has two holders")?;
            promise(extended.lease().is_some(), "a lock is lost")?;
            [&self.holder, keeper].into_iter().for_each(|daemon| daemon.way(without, Way::Open));
        }
        Ok(())
    }
}

/// Runs a join up to each of its steps, and from there as it is told.
fn at_each_step(from_there: impl Fn(&Joining, u32) -> Found) {
    let mut last = 0;
    for step in 1..CALLS_MAX {
        let Some(joining) = joining(step) else { break };
        assert_eq!(from_there(&joining, step), Ok(()), "step {step}");
        last = step;
    }
    assert!(last > 20 && last + 1 < CALLS_MAX, "a join has some steps, and an end: {last}");
}

#[test]
fn the_copying_daemon_may_be_killed_at_any_step() {
    at_each_step(|joining, _| {
        joining.copier.kill();
        joining.comes_to_its_end(&keeper(&joining.stage, 3))
    });
}

#[test]
fn the_copying_daemon_may_be_cut_off_from_the_node_at_any_step() {
    at_each_step(|joining, _| {
        joining.copier.way(2, Way::Cut);
        joining.copier.goes_on();
        joining.comes_to_its_end(&keeper(&joining.stage, 3))
    });
}

#[test]
fn the_joining_node_may_lose_its_memory_again_at_any_step() {
    at_each_step(|joining, step| {
        let Joining { stage, copier, holder, .. } = joining;
        // By turns with all that it has got, and with nothing.
        let after = if step % 2 == 0 { After::Kept } else { After::Wiped };
        stage.restart(2, after, &[copier, holder]);
        copier.goes_on();
        joining.comes_to_its_end(copier)
    });
}

#[test]
fn a_copy_that_is_not_complete_is_noticed() {
    holds_and_breaks_without(Mutant::PromotedEarly, || {
        let joining = joining(5).expect("a join takes longer");
        joining.copier.goes_on();
        joining.comes_to_its_end(&joining.copier)
    });
}
