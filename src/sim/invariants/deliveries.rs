//! What is delivered is what was put, as it was put, and not before its time; what is done is never delivered again; and
//! attempts count up from lease to lease.

use crate::queue::{QueueOptions, Settled};
use crate::sim::item::{ItemAsked, ItemTold};
use crate::sim::story::{Effect, LeaseCall, Story, at_least};

/// Judges an item of a queue with these settings.
///
/// # Errors
/// What must not be.
pub fn judge(story: &Story<'_>, options: &QueueOptions) -> Result<(), String> {
    story.leases.iter().try_for_each(|lease| judge_lease(story, lease, options))?;
    story.leases.windows(2).try_for_each(|pair| judge_pair(story, &pair[0], &pair[1]))?;
    judge_done(story)?;
    judge_backoffs(story, options)
}

fn judge_lease(story: &Story<'_>, lease: &LeaseCall<'_>, options: &QueueOptions) -> Result<(), String> {
    let delivery = lease.delivery;
    let mut puts = story.may_have_put().filter(|put| put.request.number == delivery.request);
    let Some(put) = puts.next() else {
        return Err(format!("#{} was delivered, and did not put it", delivery.request));
    };
    let other_id = |id| id != &delivery.id;
    let told = puts.chain([put]).filter_map(|put| put.told).map(|told| &told.id);
    if let Some(id) = told.chain(&put.request.id).find(|id| other_id(*id)) {
        return Err(format!("it was put as {id}, and delivered as {}", delivery.id));
    }
    if put.request.priority != delivery.priority {
        return Err(format!("#{} was delivered with the priority {}", delivery.request, delivery.priority));
    }
    // The first send may be the one that did it.
    let ready = put.span.start + at_least(put.request.delay);
    if lease.span.end < ready {
        return Err(format!("#{} was delivered at {:?}, before {ready:?}", delivery.request, lease.span.end));
    }
    if options.max_attempts > 0 && delivery.attempt > options.max_attempts || delivery.attempt == 0 {
        return Err(format!("it was delivered as attempt {}", delivery.attempt));
    }
    Ok(())
}

/// Two leases, the one right after the other as far as clients were told.
fn judge_pair(story: &Story<'_>, one: &LeaseCall<'_>, next: &LeaseCall<'_>) -> Result<(), String> {
    if story.may_differ(one, next) {
        return Ok(());
    }
    let (first, later) = (one.delivery, next.delivery);
    if (first.request, &first.id) != (later.request, &later.id) {
        return Err(format!("it was delivered as put by #{}, and then by #{}", first.request, later.request));
    }
    let redriven = story.redrives().any(|span| span.start <= next.span.end && span.end >= one.span.start);
    if later.attempt <= first.attempt && !redriven {
        return Err(format!(
            "its lease {} was attempt {}, and the later one {} attempt {}",
            first.token, first.attempt, later.token, later.attempt
        ));
    }
    Ok(())
}

fn judge_done(story: &Story<'_>) -> Result<(), String> {
    for ack in story.acks(Effect::Done) {
        let again = story
            .leases
            .iter()
            .find(|lease| lease.delivery.token > ack.token && !story.may_be_anew(ack.span, lease.span.end));
        if let Some(lease) = again {
            return Err(format!(
                "it was done with {}, and leased again under {}",
                ack.token, lease.delivery.token
            ));
        }
    }
    let known = story.uses.iter().filter(|one| one.told == Some(&ItemTold::Settled(Settled::AlreadyDone)));
    for one in known {
        let again = story.leases.iter().find(|lease| {
            let anew = story.removals().any(|removal| story.may_be_anew(removal, lease.span.end));
            lease.span.start >= one.span.end && !anew
        });
        if let Some(lease) = again {
            return Err(format!(
                "{} found it done, and it was leased again under {}",
                one.asked, lease.delivery.token
            ));
        }
    }
    Ok(())
}

/// Nobody gets what was given back before its time.
fn judge_backoffs(story: &Story<'_>, options: &QueueOptions) -> Result<(), String> {
    for nack in &story.uses {
        let ItemAsked::Nack(token, delay) = nack.asked else { continue };
        if nack.told != Some(&ItemTold::Settled(Settled::Done)) {
            continue;
        }
        let ready = nack.span.start + at_least(delay.unwrap_or(options.backoff_min));
        let next = story.leases.iter().find(|lease| lease.delivery.token > *token);
        if let Some(next) = next.filter(|next| next.span.end < ready) {
            return Err(format!(
                "it was given back until {ready:?}, and leased under {} at {:?}",
                next.delivery.token, next.span.end
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::story::tests::Script;

    /// Put by request 1, leased under the token 5 and acked.
    fn acked() -> Script {
        Script::default().put((0, 1), 1, false).lease((2, 3), (5, 2), 9, 1).ack((4, 5), 5, Settled::Done)
    }

    #[test]
    fn what_is_delivered_was_put_and_not_before_its_time() {
        for (script, fine) in [
            (Script::default().put((0, 1), 1, false).lease((2, 3), (5, 1), 9, 1), true),
            (Script::default().put((0, 1), 1, false).lease((2, 3), (5, 1), 9, 2), false),
            (Script::default().put((0, 1), 1, false).put((1, 2), 2, true).lease((2, 3), (5, 1), 9, 2), false),
            (Script::default().not_put((0, 1), 1).lease((2, 3), (5, 1), 9, 1), false),
            (Script::default().put_delayed((0, 1), 1, false, 2).lease((1, 3), (5, 1), 9, 1), true),
            (Script::default().put_delayed((0, 1), 1, false, 4).lease((2, 3), (5, 1), 9, 1), false),
            (Script::default().put((0, 1), 1, false).lease((2, 3), (5, 11), 9, 1), false),
        ] {
            assert_eq!(script.judge(judge).is_ok(), fine, "{:?}", script.judge(judge));
        }
    }

    #[test]
    fn attempts_count_up_and_one_put_is_one_item() {
        let once = Script::default().put((0, 1), 1, false).lease((2, 3), (5, 1), 9, 1);
        for (script, fine) in [
            (once.clone().lease((10, 11), (6, 2), 20, 1), true),
            (once.clone().lease((10, 11), (6, 3), 20, 1), true),
            (once.clone().lease((10, 11), (6, 1), 20, 1), false),
            (once.clone().operate((10, 11), false).lease((10, 11), (6, 1), 20, 1), true),
            (once.clone().put((4, 5), 2, false).lease((10, 11), (6, 2), 20, 2), false),
            (once.put((4, 5), 2, false).ack_unknown((4, 5), 5).lease((20, 21), (6, 1), 30, 2), false),
            (acked().put((20, 21), 2, false).lease((22, 23), (6, 1), 30, 2), true),
        ] {
            assert_eq!(script.judge(judge).is_ok(), fine, "{:?}", script.judge(judge));
        }
    }

    #[test]
    fn what_is_done_stays_done_and_what_was_given_back_waits() {
        let given_back = Script::default().put((0, 1), 1, false).lease((2, 3), (5, 1), 9, 1);
        let given_back = given_back.nack((4, 5), 5, 3, Settled::Done);
        for (script, fine) in [
            (acked().lease((2, 6), (4, 1), 9, 1), true),
            (acked().lease((6, 7), (6, 3), 9, 1), false),
            (acked().put((6, 7), 2, false).lease((20, 21), (6, 1), 30, 2), false),
            (acked().put_unknown((16, 17), 2).lease((20, 21), (6, 1), 30, 2), true),
            (given_back.clone().lease((7, 8), (6, 2), 9, 1), true),
            (given_back.lease((5, 6), (6, 2), 9, 1), false),
        ] {
            assert_eq!(script.judge(judge).is_ok(), fine, "{:?}", script.judge(judge));
        }
    }
}
