//! Queues: protocol, section 4.

use std::time::Duration;

use bytes::Bytes;
use majorityd::ids::{ItemId, QueueName};
use majorityd::mutant::Mutant;
use majorityd::queue::{
    Leased, NewItem, Put, QueueError, QueueOptionsPatch, ReserveRequest, Reserved, Settled,
};
use majorityd::register::RegisterError;

use super::stage::{ACCEPT, CLAIM, Call, Daemon, RIGHT, Stage, Way};
use super::table::{Found, Table, holds_and_breaks_without, promise};

pub fn queue() -> QueueName {
    QueueName::parse("jobs").expect("a good name")
}

pub fn stage() -> Stage {
    Stage::on(Table::laid(3))
}

pub type Putting = Call<Result<Vec<Result<Put, QueueError>>, QueueError>>;

/// One item sets out, under this id.
pub fn putting(stage: &Stage, daemon: &Daemon, id: &str) -> Putting {
    let item = NewItem {
        id: Some(ItemId::parse(id).expect("a good id")),
        payload: Bytes::from_static(b"work"),
        priority: 0,
        delay: Duration::ZERO,
        attributes: Vec::new(),
    };
    let (queues, deadline) = (daemon.queues.clone(), daemon.deadline());
    stage.call(async move { queues.put(&queue(), vec![item], deadline).await })
}

/// One item is put.
pub fn put(stage: &Stage, daemon: &Daemon, id: &str) -> Put {
    let putting = putting(stage, daemon, id);
    stage.pass(1_000);
    let mut put = putting.ended().expect("it is put by now").expect("q nodes answer");
    put.remove(0).expect("q nodes answer")
}

pub type Reserving = Call<Result<Vec<Reserved>, QueueError>>;

/// Somebody reserves one item, without waiting for one.
fn reserving(stage: &Stage, daemon: &Daemon, ttl: u64) -> Reserving {
    let request = ReserveRequest {
        queue: queue(),
        max_items: 1,
        lease_ttl: Some(Duration::from_secs(ttl)),
        wait: Duration::ZERO,
    };
    let (queues, deadline) = (daemon.queues.clone(), daemon.deadline());
    stage.call(async move { queues.reserve(request, deadline).await })
}

/// The same, until it has an answer.
pub fn reserve(stage: &Stage, daemon: &Daemon, ttl: u64) -> Option<Reserved> {
    let reserving = reserving(stage, daemon, ttl);
    stage.pass(500);
    reserving.ended().expect("it is answered by now").expect("q nodes answer").pop()
}

/// The same, where it may fail.
fn reserving_ended(stage: &Stage, daemon: &Daemon) -> Result<Vec<Reserved>, QueueError> {
    let reserving = reserving(stage, daemon, 30);
    stage.pass(500);
    reserving.ended().expect("it is answered by now")
}

pub fn ack(stage: &Stage, daemon: &Daemon, item: &Reserved) -> Settled {
    let lease = Leased { id: item.id.clone(), lease_id: item.lease_id };
    let (queues, deadline) = (daemon.queues.clone(), daemon.deadline());
    let ack = stage.call(async move { queues.ack(&queue(), vec![lease], deadline).await });
    stage.pass(500);
    ack.ended().expect("it is answered by now").remove(0).expect("q nodes answer")
}

/// Somebody reserves the item and acks it.
pub fn done(stage: &Stage, daemon: &Daemon) {
    let item = reserve(stage, daemon, 30).expect("there is an item");
    assert_eq!(ack(stage, daemon, &item), Settled::Done);
}

/// Done items are remembered for so many seconds.
fn remember(stage: &Stage, daemon: &Daemon, seconds: u64) {
    let done_retention = Some(Duration::from_secs(seconds));
    configure(stage, daemon, QueueOptionsPatch { done_retention, ..QueueOptionsPatch::default() });
}

fn configure(stage: &Stage, daemon: &Daemon, patch: QueueOptionsPatch) {
    let (queues, deadline) = (daemon.queues.clone(), daemon.deadline());
    let call = stage.call(async move { queues.configure(&queue(), patch, deadline).await });
    stage.pass(500);
    call.ended().expect("it is answered by now").expect("q nodes answer");
}

pub fn relies(daemon: &Daemon, item: &Reserved) -> bool {
    daemon.cluster.runtime.clock.now() < item.valid_until
}

// ---- one lease at a time

/// One node misses a lease, so that its index still has the item among the ready; then another daemon claims.
fn claimed_where_a_lease_was_missed() -> Found {
    let stage = stage();
    let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
    put(&stage, &a, "i");
    a.way_of(0, ACCEPT, Way::Cut);
    let one = reserve(&stage, &a, 30).expect("there is an item");
    // What a claim has met is marked for a second.
    stage.pass(2_000);
    let other = reserve(&stage, &b, 30);
    promise(
        !(relies(&a, &one) && other.is_some_and(|other| relies(&b, &other))),
        "two have leased one item at one moment",
    )
}

#[test]
fn what_an_index_says_is_no_lease() {
    holds_and_breaks_without(Mutant::IndexTrusted, claimed_where_a_lease_was_missed);
}

#[test]
fn what_fewer_than_q_promised_is_asked_of_the_others() {
    holds_and_breaks_without(Mutant::LeasesOnFewer, claimed_where_a_lease_was_missed);
}

#[test]
fn a_lease_that_begins_anew_has_a_new_token() {
    holds_and_breaks_without(Mutant::ItemTokenStays, || {
        let stage = stage();
        let a = stage.daemon(1, RIGHT);
        put(&stage, &a, "i");
        let one = reserve(&stage, &a, 1).expect("there is an item");
        stage.pass(3_000);
        let other = reserve(&stage, &a, 1).expect("the lease has run out");
        promise(one.token < other.token, "two leases of one item have one token")
    });
}

/// Two daemons claim at once, and one comes first at one node and the other at another.
fn crowd(stage: &Stage, a: &Daemon, b: &Daemon) {
    let late = [(a, 1), (a, 2), (b, 0), (b, 2)];
    late.iter().for_each(|(daemon, node)| daemon.way_of(*node, CLAIM, Way::KeepRequest));
    let both = [reserving(stage, a, 30), reserving(stage, b, 30)];
    stage.settle();
    late.iter().for_each(|(daemon, node)| {
        daemon.let_go(*node);
        daemon.way_of(*node, CLAIM, Way::Open);
    });
    stage.pass(500);
    let items =
        both.map(|reserving| reserving.ended().expect("it is answered by now").expect("q nodes answer"));
    let ids: Vec<_> = items.iter().flatten().map(|item| &item.id).collect();
    assert!(ids.len() < 2 || ids[0] != ids[1], "{ids:?}");
}

#[test]
fn where_daemons_were_promised_the_same_items_one_node_decides() {
    let stage = stage();
    let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
    ["1", "2", "3", "4", "5", "6"].iter().for_each(|id| drop(put(&stage, &a, id)));
    crowd(&stage, &a, &b);
    // Claims are made at the first node alone, and only claims.
    [1, 2].iter().for_each(|node| a.way_of(*node, CLAIM, Way::Cut));
    assert!(reserve(&stage, &a, 30).is_some());
    // After a while all are asked again.
    stage.pass(3_000);
    assert!(reserving_ended(&stage, &a).is_err());
}

#[test]
fn where_the_node_that_decides_is_silent_the_others_are_asked() {
    let stage = stage();
    let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
    ["1", "2", "3", "4", "5", "6"].iter().for_each(|id| drop(put(&stage, &a, id)));
    crowd(&stage, &a, &b);
    a.way_of(0, CLAIM, Way::Cut);
    assert!(reserve(&stage, &a, 30).is_some());
}

// ---- done once

#[test]
fn only_who_has_the_item_says_that_it_is_done() {
    holds_and_breaks_without(Mutant::AckByAnyone, || {
        let stage = stage();
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        put(&stage, &a, "i");
        let late = reserve(&stage, &a, 1).expect("there is an item");
        stage.pass(3_000);
        let item = reserve(&stage, &b, 30).expect("the lease has run out");
        ack(&stage, &a, &late);
        promise(ack(&stage, &b, &item) == Settled::Done, "an item was done by somebody who had lost it")
    });
}

#[test]
fn what_is_done_is_not_put_again() {
    holds_and_breaks_without(Mutant::PutsAgain, || {
        let stage = stage();
        let a = stage.daemon(1, RIGHT);
        put(&stage, &a, "i");
        done(&stage, &a);
        let again = put(&stage, &a, "i");
        let delivered = reserve(&stage, &a, 30);
        promise(again.duplicate && delivered.is_none(), "an item that was done is delivered again")
    });
}

#[test]
fn what_is_done_is_remembered_for_a_while() {
    holds_and_breaks_without(Mutant::DoneForgottenEarly, || {
        let stage = stage();
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        stage.forgets(&a);
        remember(&stage, &a, 2);
        put(&stage, &a, "i");
        done(&stage, &a);
        // That time is over when the item is put anew, and so it is looked at soon; but now it is done for longer.
        stage.pass(2_000);
        assert!(!put(&stage, &b, "i").duplicate);
        remember(&stage, &b, 60);
        done(&stage, &b);
        stage.pass(30_000);
        promise(put(&stage, &b, "i").duplicate, "an item that was done a moment ago is put again")
    });
}

#[test]
fn what_is_done_is_forgotten_at_last() {
    let stage = stage();
    let a = stage.daemon(1, RIGHT);
    stage.forgets(&a);
    stage.compares(&a);
    put(&stage, &a, "i");
    done(&stage, &a);
    assert_eq!(stage.recorded(&a, "q:jobs\x1fi").len(), 3);
    stage.pass(180_000);
    assert_eq!(stage.recorded(&a, "q:jobs\x1fi").len(), 0);
}

#[test]
fn a_put_that_is_tried_for_long_does_not_put_again_what_was_done_and_forgotten() {
    let stage = stage();
    let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
    stage.forgets(&b);
    remember(&stage, &a, 0);
    // It arrives, and its daemon does not hear of it.
    [0, 1, 2].iter().for_each(|node| a.way_of(*node, ACCEPT, Way::KeepReply));
    let putting = putting(&stage, &a, "i");
    stage.pass(100);
    [0, 1, 2].iter().for_each(|node| a.way(*node, Way::Cut));
    stage.pass(5_000);
    done(&stage, &b);
    stage.pass(20_000);
    assert_eq!(stage.recorded(&b, "q:jobs\x1fi").len(), 0);
    [0, 1, 2].iter().for_each(|node| a.way(*node, Way::Open));
    stage.pass(20_000);
    let told = putting.ended().expect("it is answered by now").expect("it was tried").remove(0);
    assert!(matches!(told, Err(QueueError::Register(RegisterError::OutcomeUnknown))), "{told:?}");
    assert_eq!(reserve(&stage, &b, 30), None, "one put has put two items");
}

#[test]
fn of_two_puts_with_one_token_one_finds_it_known() {
    let stage = stage();
    let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
    remember(&stage, &stage.daemon(3, RIGHT), 60);
    // No time passes between them, so their daemons give them the same token.
    let puts = [putting(&stage, &a, "i"), putting(&stage, &b, "i")];
    stage.pass(1_000);
    let told = puts.map(|put| put.ended().expect("it is put by now").expect("q nodes answer").remove(0));
    assert_eq!(told.map(|put| put.expect("q nodes answer").duplicate), [false, true]);
}

// ---- attempts

#[test]
fn an_item_is_not_buried_unseen() {
    holds_and_breaks_without(Mutant::LostClaimsCount, || {
        let stage = stage();
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        configure(&stage, &a, QueueOptionsPatch { max_attempts: Some(1), ..QueueOptionsPatch::default() });
        put(&stage, &a, "i");
        let all = [0, 1, 2];
        all.iter().for_each(|node| a.way_of(*node, ACCEPT, Way::KeepReply));
        let gone = reserving(&stage, &a, 5);
        stage.pass(100);
        gone.go_away(&stage);
        all.iter().for_each(|node| a.way(*node, Way::Open));
        all.iter().for_each(|node| a.let_go(*node));
        stage.pass(10_000);
        promise(reserve(&stage, &b, 30).is_some(), "an item that nobody has got is buried")
    });
}
