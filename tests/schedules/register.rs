//! Agreement on one register: protocol, section 1.

use majorityd::limits::RECENT_MAX;
use majorityd::lock::change::{LockAnswer, LockChange};
use majorityd::mutant::Mutant;
use majorityd::register::proposer::Fate;
use majorityd::token::Token;

use super::table::{
    Append, Table, each_is_enough, extend, holds_and_breaks_without, one_holder, promise, release,
};

#[test]
fn a_late_accept_is_refused_by_who_promised_more() {
    holds_and_breaks_without(Mutant::AcceptIgnoresPromise, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        let y = table.take(&b, &table.acquire("y"));
        x.to(&[0, 1]);
        one_holder(&x, &y)
    });
}

#[test]
fn an_accept_that_was_never_promised_is_a_promise_too() {
    holds_and_breaks_without(Mutant::AcceptRaisesNoPromise, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 2]);
        let mut y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]);
        y.to(&[0, 1]);
        // Node 2 takes it without having promised it: what it promised is still the lower ballot.
        y.to(&[1, 2]);
        x.to(&[2]);
        x.lose(&[0, 1]);
        a.tokens_from(300);
        one_holder(&x.run(&[0, 2]), &y)
    });
}

#[test]
fn a_warm_change_is_of_a_value_that_nobody_else_has_changed() {
    holds_and_breaks_without(Mutant::NextNotPromised, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 120));
        let first = table.acquire("x");
        let mut x = table.take(&a, &first);
        // The release leaves a promise for 150, and daemon 2 comes with 120.
        a.tokens_from(150);
        let mut free = table.warm_round(&a, release(first.lease_id), x.warm()).run(&[0, 1]);
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[0, 1]);
        let z = table.warm_round(&a, LockChange::Acquire(table.acquire("z")), free.warm()).run(&[0, 1]);
        one_holder(&y, &z)
    });
}

/// X holds the lock; daemon 2 glances at it for the same owner, and is shown the record. Then x releases, and z gets the
/// lock under a token below that of the glance.
fn what_was_shown_is_no_promise() -> super::table::Found {
    let table = Table::laid(3);
    let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 110));
    let first = table.acquire("x");
    let mut x = table.take(&a, &first);
    let mut again = table.round(&b, &[LockChange::Acquire(table.acquire("x"))]);
    again.to(&[0, 1]);
    table.warm_round(&a, release(first.lease_id), x.warm()).run(&[0, 1]);
    let z = table.round(&c, &[LockChange::Acquire(table.acquire("z"))]).run(&[0, 1]);
    again.to(&[0, 1]);
    one_holder(&again, &z)
}

#[test]
fn a_node_that_shows_a_guarded_record_does_not_say_that_it_promised() {
    holds_and_breaks_without(Mutant::SoftPreparePromises, what_was_shown_is_no_promise);
}

#[test]
fn what_was_shown_to_a_soft_prepare_is_prepared_before_it_is_changed() {
    holds_and_breaks_without(Mutant::ProposesOnShown, what_was_shown_is_no_promise);
}

#[test]
fn two_daemons_with_one_token_do_not_both_grant_under_it() {
    // Three mechanisms see to it; any of them would do for locks that are not forgotten.
    let mutants = [Mutant::PrepareByBallot, Mutant::NextNotPromised, Mutant::SecondTokenInRound];
    each_is_enough(&mutants, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 100));
        let x = table.take(&a, &table.acquire("x"));
        table.pass(11);
        let mut y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]);
        y.to(&[0, 1]);
        y.to(&[0, 1]);
        promise(y.tokens() != x.tokens(), "two were granted the lock under one token")
    });
}

#[test]
fn two_quorums_meet() {
    holds_and_breaks_without(Mutant::SmallQuorum, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]).run(&[0]);
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1]);
        one_holder(&x, &y)
    });
}

#[test]
fn the_highest_value_among_the_promises_is_the_one_to_change() {
    holds_and_breaks_without(Mutant::NotTheHighest, || {
        let table = Table::laid(3);
        let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 300));
        let first = table.acquire("x");
        table.take(&a, &first);
        table.round(&a, &[release(first.lease_id)]).run(&table.all());
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        // Node 0 still has it free.
        let z = table.round(&c, &[LockChange::Acquire(table.acquire("z"))]).run(&[0, 1]);
        one_holder(&y, &z)
    });
}

#[test]
fn what_fewer_than_q_hold_is_finished_before_it_is_told() {
    holds_and_breaks_without(Mutant::AnswersUnfinished, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[0]);
        let (earlier, later) = (table.holder(&b, &[0, 1]), table.holder(&b, &[1, 2]));
        promise(earlier == later, "who was read as holder is not the holder by a later read")
    });
}

#[test]
fn a_retry_does_not_apply_again_what_was_agreed_on() {
    holds_and_breaks_without(Mutant::RetryAppliesAgain, || {
        let table = Table::laid(3);
        let a = table.daemon(1, 100);
        let mut change = table.numbers(&a, &[Append(7)]);
        change.to(&[0, 1]);
        change.reach(&[0, 1]);
        change.lose(&[0, 1, 2]);
        let change = change.run(&[0, 1]);
        promise(change.answer() == Some(&vec![7]), "a change was applied twice")
    });
}

#[test]
fn once_an_accept_was_sent_there_is_no_answer_without_an_accept() {
    holds_and_breaks_without(Mutant::AnswersWithoutAccept, || {
        let table = Table::laid(3);
        let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 300));
        table.take(&a, &table.acquire("x"));
        table.pass(11);
        // By the clock of node 2 the lease still runs; z sees the two others first.
        table.jump(2, -5);
        let mut z = table.round(&b, &[LockChange::Acquire(table.acquire("z"))]);
        z.to(&[0, 1]);
        z.to(&[0]);
        z.lose(&[1, 2]);
        let z = z.run(&[1, 2]);
        assert!(matches!(z.answer(), Some(LockAnswer::Contended(_))), "{:?}", z.fates());
        let holder = table.holder(&c, &[0, 1]).expect("somebody");
        promise(holder.as_str() == "x", "z was told that x has the lock, and then has it")
    });
}

#[test]
fn a_change_that_changes_nothing_is_not_answered_from_the_cache() {
    holds_and_breaks_without(Mutant::WarmAnswers, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        let mut x = table.take(&a, &first);
        table.round(&b, &[release(first.lease_id)]).run(&table.all());
        a.tokens_from(300);
        let y = table.warm_round(&a, LockChange::Acquire(table.acquire("y")), x.warm()).run(&[0, 1]);
        promise(y.holds(), "y was told that x has the lock after x had released it")
    });
}

#[test]
fn a_warm_promise_is_forgotten_before_it_is_sent() {
    holds_and_breaks_without(Mutant::WarmTwice, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        let mut x = table.take(&a, &first);
        let mut longer = table.warm_round(&a, extend(first.lease_id), x.warm());
        longer.to(&[0]);
        longer.give_up();
        let over = table.warm_round(&a, release(first.lease_id), longer.warm()).run(&[1, 2]);
        assert_eq!(over.answer(), Some(&LockAnswer::Ended));
        promise(table.holder(&b, &[0, 1]).is_none(), "x released the lock, and a read says that it holds it")
    });
}

#[test]
fn a_change_whose_accept_was_sent_is_not_taken_back() {
    holds_and_breaks_without(Mutant::GroupThaws, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.reach(&[0, 1]);
        // The deadline of the caller: what can be taken back has certainly not happened.
        let told_that_nothing_happened = x.claim().withdraw();
        let holds = table.holder(&b, &[0, 1]).is_some();
        promise(!(told_that_nothing_happened && holds), "x was told that nothing happened, and has the lock")
    });
}

#[test]
fn what_was_lost_on_the_way_may_have_happened() {
    holds_and_breaks_without(Mutant::LostIsRefused, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.reach(&[0, 1]);
        x.lose(&[0, 1, 2]);
        x.give_up();
        let told_that_nothing_happened = matches!(x.fates(), [Fate::NotApplied]);
        let holds = table.holder(&b, &[0, 1]).is_some();
        promise(!(told_that_nothing_happened && holds), "x was told that nothing happened, and has the lock")
    });
}

#[test]
fn a_round_hands_out_its_token_once() {
    holds_and_breaks_without(Mutant::SecondTokenInRound, || {
        let table = Table::laid(3);
        let a = table.daemon(1, 100);
        let (x, y) = (table.acquire("x"), table.acquire("y"));
        let free = release(x.lease_id);
        let round = table.round(&a, &[LockChange::Acquire(x), free, LockChange::Acquire(y)]).run(&[0, 1]);
        promise(round.tokens().len() < 2, "two were granted the lock under one token")
    });
}

#[test]
fn a_daemon_whose_clock_is_days_ahead_does_not_take_all_with_it() {
    holds_and_breaks_without(Mutant::TokensFarAhead, || {
        let table = Table::laid(3);
        let token = Token::at_unix_ms(table.unix_ms() + 2 * 86_400_000).get();
        let a = table.daemon(1, token);
        let x = table.take(&a, &table.acquire("x"));
        promise(!x.holds(), "a token of the day after tomorrow was granted")
    });
}

#[test]
fn an_attempt_is_told_from_a_lost_one_for_as_many_changes_as_a_value_remembers() {
    for (others, fate) in [(RECENT_MAX, "done"), (RECENT_MAX + 1, "unknown")] {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 1_000));
        let mut change = table.numbers(&a, &[Append(7)]);
        change.to(&[0, 1]);
        // It is agreed on, and its daemon hears nothing of that.
        let _lost = change.reach(&[0, 1]);
        change.lose(&[0, 1, 2]);
        for _ in 0..others {
            assert!(table.numbers(&b, &[Append(1)]).run(&[0, 1, 2]).answer().is_some());
        }
        a.tokens_from(100_000);
        let change = change.run(&[0, 1, 2]);
        let found = match change.fates() {
            [Fate::Done { answer, .. }] if *answer == [7] => "done",
            [Fate::Unknown] => "unknown",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, fate, "{others} changes later");
    }
}
