//! Items that are put where somebody waits for them.

use std::time::Duration;

use bytes::Bytes;
use majorityd::mutant::Mutant;
use majorityd::queue::{Leased, Nack, NewItem, ReserveRequest, Reserved, Settled};

use super::queues::{Reserving, ack, done, put, putting, queue, relies, reserve, stage};
use super::stage::{ACCEPT, Daemon, RIGHT, Stage, Way};
use super::table::{holds_and_breaks_without, promise};

/// A daemon, and a queue that is there and empty.
fn with_queue() -> (Stage, Daemon) {
    let stage = stage();
    let daemon = stage.daemon(1, RIGHT);
    put(&stage, &daemon, "0");
    done(&stage, &daemon);
    (stage, daemon)
}

/// Somebody waits for an item, and a claim has found that there is none.
fn waiting(stage: &Stage, daemon: &Daemon) -> Reserving {
    waiting_for(stage, daemon, Duration::from_secs(60))
}

fn waiting_for(stage: &Stage, daemon: &Daemon, wait: Duration) -> Reserving {
    let lease_ttl = Some(Duration::from_secs(30));
    let request = ReserveRequest { queue: queue(), max_items: 1, lease_ttl, wait };
    let (queues, deadline) = (daemon.queues.clone(), daemon.deadline());
    let waiting = stage.call(async move { queues.reserve(request, deadline).await });
    stage.pass(10);
    waiting
}

/// The item that it came to, if it has by now.
fn item(waiting: &Reserving) -> Option<Reserved> {
    waiting.ended()?.expect("q nodes answer").pop()
}

/// How many operations the nodes have answered.
fn answered(daemon: &Daemon) -> u64 {
    daemon.cluster.batchers().iter().map(|batcher| batcher.meter().answered.get()).sum()
}

fn nack(stage: &Stage, daemon: &Daemon, item: &Reserved) {
    let lease = Leased { id: item.id.clone(), lease_id: item.lease_id };
    let nack = Nack { lease, delay: Some(Duration::ZERO), reason: String::new() };
    let (queues, deadline) = (daemon.queues.clone(), daemon.deadline());
    stage.call(async move { queues.nack(&queue(), vec![nack], deadline).await });
}

#[test]
fn who_waits_is_handed_an_item_in_the_round_that_puts_it() {
    let (stage, daemon) = with_queue();
    let waiting = waiting(&stage, &daemon);
    let before = answered(&daemon);
    let putting = putting(&stage, &daemon, "i");
    assert!(putting.ended().is_some_and(|put| put.is_ok_and(|put| put[0].is_ok())), "without time passing");
    let item = item(&waiting).expect("without time passing");
    // A prepare and an accept at each of three nodes: the id is the client's.
    assert_eq!((answered(&daemon) - before, item.attempt), (6, 1));
    assert!(relies(&daemon, &item));
    assert_eq!(ack(&stage, &daemon, &item), Settled::Done);
}

#[test]
fn what_is_ready_already_comes_before_what_is_put() {
    holds_and_breaks_without(Mutant::HandsPastReady, || {
        let (stage, daemon) = with_queue();
        put(&stage, &daemon, "first");
        let first = reserve(&stage, &daemon, 30).expect("there is an item");
        let waiting = waiting(&stage, &daemon);
        nack(&stage, &daemon, &first);
        put(&stage, &daemon, "second");
        stage.pass(5_000);
        let next = item(&waiting).expect("there are two");
        promise(next.id == first.id, "an item comes before one that was put earlier")
    });
}

#[test]
fn of_several_items_the_first_in_order_is_handed_over() {
    let (stage, daemon) = with_queue();
    let waiting = waiting(&stage, &daemon);
    let item = |(payload, priority)| NewItem {
        id: None,
        payload: Bytes::from_static(payload),
        priority,
        delay: Duration::ZERO,
        attributes: Vec::new(),
    };
    let items: Vec<_> = [(&b"late"[..], 5), (&b"first"[..], 1), (&b"second"[..], 1)].map(item).into();
    let (queues, deadline) = (daemon.queues.clone(), daemon.deadline());
    let putting = stage.call(async move { queues.put(&queue(), items, deadline).await });
    let put = putting.ended().expect("without time passing").expect("q nodes answer");
    assert!(put.iter().all(Result::is_ok), "{put:?}");
    let mut payloads = vec![self::item(&waiting).expect("without time passing").payload];
    payloads.extend((0..2).map(|_| reserve(&stage, &daemon, 30).expect("there are two more").payload));
    assert_eq!(payloads, ["first", "second", "late"]);
}

#[test]
fn an_item_that_is_known_is_handed_to_nobody() {
    let (stage, daemon) = with_queue();
    put(&stage, &daemon, "i");
    let held = reserve(&stage, &daemon, 30).expect("there is an item");
    let waiting = waiting(&stage, &daemon);
    assert!(put(&stage, &daemon, "i").duplicate);
    assert_eq!(item(&waiting), None);
    assert_eq!(ack(&stage, &daemon, &held), Settled::Done);
    // Whoever waits is in line still.
    put(&stage, &daemon, "j");
    stage.pass(5_000);
    assert_eq!(item(&waiting).map(|item| item.id.to_string()), Some("j".to_owned()));
}

#[test]
fn whoever_puts_may_go_away_meanwhile() {
    let (stage, daemon) = with_queue();
    let waiting = waiting(&stage, &daemon);
    (0..3).for_each(|node| daemon.way_of(node, ACCEPT, Way::KeepReply));
    putting(&stage, &daemon, "i").go_away(&stage);
    assert_eq!(item(&waiting), None);
    (0..3).for_each(|node| daemon.let_go_replies(node));
    stage.settle();
    assert!(item(&waiting).is_some_and(|item| relies(&daemon, &item)));
}

#[test]
fn whoever_waits_may_go_away_meanwhile_and_the_item_is_given_back() {
    let (stage, daemon) = with_queue();
    let waiting = waiting(&stage, &daemon);
    (0..3).for_each(|node| daemon.way_of(node, ACCEPT, Way::KeepReply));
    let putting = putting(&stage, &daemon, "i");
    waiting.go_away(&stage);
    for node in 0..3 {
        daemon.way_of(node, ACCEPT, Way::Open);
        daemon.let_go_replies(node);
    }
    stage.pass(100);
    assert!(putting.ended().is_some_and(|put| put.is_ok_and(|put| put[0].is_ok())));
    let item = reserve(&stage, &daemon, 30).expect("it was given back");
    assert_eq!(item.attempt, 1, "nobody got it before");
}

#[test]
fn where_nobody_knows_whether_the_item_was_put_it_comes_in_the_end_and_to_one() {
    let (stage, daemon) = with_queue();
    let other = stage.daemon(2, RIGHT);
    let waiting = waiting(&stage, &daemon);
    // The put reaches one node, and its answer comes when it has been given up. Whoever looks for it meets that node.
    daemon.way(2, Way::Cut);
    daemon.way_of(0, ACCEPT, Way::KeepReply);
    daemon.way_of(1, ACCEPT, Way::Cut);
    let putting = putting(&stage, &daemon, "i");
    stage.pass(3_500);
    [0, 1].iter().for_each(|node| daemon.way_of(*node, ACCEPT, Way::Open));
    daemon.let_go_replies(0);
    stage.pass(10_000);
    let put = putting.ended();
    assert!(matches!(&put, Some(Ok(put)) if put[0].is_ok()), "{put:?}");
    let item = item(&waiting).expect("it came");
    assert!(relies(&daemon, &item));
    assert_eq!(reserve(&stage, &other, 30), None, "it is one item");
    assert_eq!(ack(&stage, &daemon, &item), Settled::Done);
}

#[test]
fn who_comes_soon_after_a_claim_that_found_nothing_makes_none() {
    let (stage, daemon) = with_queue();
    let _first = waiting(&stage, &daemon);
    let before = answered(&daemon);
    let _second = waiting(&stage, &daemon);
    assert_eq!(answered(&daemon), before);
    // But it is not gone by for long.
    stage.pass(300);
    assert_eq!(answered(&daemon) - before, 3);
    // Nor by who would be gone before the next one.
    let before = answered(&daemon);
    let hasty = waiting_for(&stage, &daemon, Duration::from_millis(100));
    assert_eq!(answered(&daemon) - before, 3);
    stage.pass(100);
    assert_eq!(hasty.ended().map(|items| items.expect("q nodes answer").len()), Some(0));
}
