//! Every item is accounted for: what was acknowledged is done once, and is not lost; a put puts once or never; and what is
//! said of a lease is true of it.
//!
//! At the end of a run everything is drained, so an item that nobody acked and nobody purged is lost.

use std::collections::BTreeSet;

use crate::queue::{ItemState, Settled};
use crate::sim::item::{ItemAsked, ItemTold};
use crate::sim::story::{Effect, LeaseUse, PutCall, Span, Story};
use crate::token::Token;

/// Judges an item.
///
/// # Errors
/// What must not be.
pub fn judge(story: &Story<'_>) -> Result<(), String> {
    judge_puts(story)?;
    if is_outstanding(story) {
        return Err("it was put, and nobody acked or purged it".to_owned());
    }
    judge_acks(story)?;
    story.uses.iter().try_for_each(|one| judge_use(story, one))?;
    judge_looks(story)
}

/// Whether it is still to be delivered and acked, as far as anybody was told.
pub fn is_outstanding(story: &Story<'_>) -> bool {
    let purged = story.purges().map(|purge| purge.end).max();
    let later = || story.puts.iter().filter(|put| purged.is_none_or(|purged| put.span.start > purged));
    let put = later().filter(|put| put.effect == Effect::Done).count();
    // What is known may be what was purged, and is remembered: then a put that finds it known says nothing.
    let known = purged.is_none() && story.puts.iter().any(|put| put.told.is_some());
    let acknowledged = put.max(usize::from(known));
    let acks = story.acks(Effect::Done).chain(story.acks(Effect::Unknown));
    acknowledged > acks.map(|ack| ack.token).collect::<BTreeSet<_>>().len()
}

fn judge_puts(story: &Story<'_>) -> Result<(), String> {
    for put in &story.puts {
        let others = || story.may_have_put().filter(|other| !std::ptr::eq(*other, put));
        if put.told.is_some_and(|told| told.duplicate)
            && !others().any(|other| other.span.start <= put.span.end)
        {
            return Err(format!("put #{} found it known, and nobody else had put it", put.request.number));
        }
    }
    let mut fresh: Vec<&PutCall<'_>> = story.puts.iter().filter(|put| put.effect == Effect::Done).collect();
    fresh.sort_by_key(|put| put.span.end);
    for pair in fresh.windows(2) {
        let [one, next] = pair else { continue };
        let between =
            |removal: &Span| removal.end >= one.span.start && story.may_be_anew(*removal, next.span.end);
        if !story.removals().any(|removal| between(&removal)) {
            return Err(format!(
                "it was put twice: #{} until {:?}, and #{} until {:?}, and it was not done and forgotten between",
                one.request.number, one.span.end, next.request.number, next.span.end
            ));
        }
    }
    Ok(())
}

fn judge_acks(story: &Story<'_>) -> Result<(), String> {
    let mut tokens: Vec<Token> = story.acks(Effect::Done).map(|ack| ack.token).collect();
    tokens.sort_unstable();
    if let Some(pair) = tokens.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two acks of the lease {} say that they did it", pair[0]));
    }
    // Each life ends with one; what was leased after the last begins another.
    let last = tokens.last().copied().unwrap_or(Token::ZERO);
    let goes_on = story.leases.iter().any(|lease| lease.delivery.token > last);
    let lives = tokens.len() + usize::from(goes_on);
    let puts = story.may_have_put().count();
    if lives > puts {
        return Err(format!("it was put {puts} times at most, and was there {lives} times"));
    }
    Ok(())
}

fn judge_use(story: &Story<'_>, one: &LeaseUse<'_>) -> Result<(), String> {
    let Some(told) = one.told else { return Ok(()) };
    let LeaseUse { span, token, asked, .. } = one;
    if one.effect == Effect::Done
        && let Some(newer) =
            story.leases.iter().find(|lease| lease.delivery.token > *token && lease.span.end <= span.start)
    {
        return Err(format!(
            "{asked} was answered {told}, and the item had been leased under {} by then",
            newer.delivery.token
        ));
    }
    if let ItemTold::Settled(settled) = told
        && !is_explained(story, one, *settled)
    {
        return Err(format!("{asked} was answered {told}, while the lease was good"));
    }
    Ok(())
}

/// Whether the lease can have been over, or the item gone, as the answer says.
fn is_explained(story: &Story<'_>, one: &LeaseUse<'_>, settled: Settled) -> bool {
    match settled {
        Settled::Done | Settled::Buried => return true,
        Settled::LeaseLost | Settled::AlreadyDone | Settled::NoSuchItem => {}
    }
    let lease = story.leases.iter().find(|lease| lease.delivery.token == one.token);
    let Some(lease) = lease else { return true };
    let mut until = lease.delivery.until;
    let earlier = |other: &&LeaseUse<'_>| {
        other.token == one.token && !std::ptr::eq(*other, one) && other.span.start <= one.span.end
    };
    for other in story.uses.iter().filter(earlier) {
        match (other.asked, other.told) {
            // Whoever asks for another length may have it, told so or not.
            (ItemAsked::Extend(_, Some(ttl)), told) => {
                until = until.min(other.span.start + (*ttl - *ttl / 200));
                if let Some(ItemTold::Until(longer)) = told.filter(|_| other.span.end <= one.span.start) {
                    until = *longer;
                }
            }
            (ItemAsked::Extend(_, None), Some(ItemTold::Until(longer)))
                if other.span.end <= one.span.start =>
            {
                until = *longer;
            }
            (ItemAsked::Ack(_) | ItemAsked::Nack(..), _) if other.effect != Effect::None => return true,
            _ => {}
        }
    }
    until <= one.span.end
        || story.purges().any(|purge| purge.start <= one.span.end && purge.end >= lease.span.start)
}

fn judge_looks(story: &Story<'_>) -> Result<(), String> {
    for look in &story.looks {
        let gone = look.state.is_none_or(|state| state == ItemState::Done);
        if gone {
            let was_put = story.puts.iter().any(|put| put.told.is_some() && put.span.end <= look.span.start);
            let removed = story.removals().any(|removal| removal.start <= look.span.end);
            if was_put && !removed {
                return Err(format!(
                    "it was put, nobody acked or purged it, and a look saw {:?}",
                    look.state
                ));
            }
            continue;
        }
        if !story.may_have_put().any(|put| put.span.start <= look.span.end) {
            return Err(format!("nobody had put it, and a look saw {:?}", look.state));
        }
        let done = story
            .acks(Effect::Done)
            .find(|ack| ack.span.end <= look.span.start && !story.may_be_anew(ack.span, look.span.end));
        if let Some(ack) = done {
            return Err(format!("it was done with {}, and a look saw {:?}", ack.token, look.state));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::story::tests::Script;

    fn check(script: &Script) -> Result<(), String> {
        script.judge(|story, _| judge(story))
    }

    /// Put by request 1, and leased under the token 5 until second 9.
    fn leased() -> Script {
        Script::default().put((0, 1), 1, false).lease((2, 3), (5, 1), 9, 1)
    }

    /// The same, and acked.
    fn acked() -> Script {
        leased().ack((4, 5), 5, Settled::Done)
    }

    #[test]
    fn what_was_put_is_acked_or_purged_or_lost() {
        for (script, fine) in [
            (Script::default().put((0, 1), 1, false), false),
            (Script::default().put((0, 1), 1, false).operate((0, 2), true), true),
            (Script::default().operate((0, 1), true).put((2, 3), 1, false), false),
            (Script::default().put((0, 1), 1, false).operate((0, 2), false), false),
            (Script::default().put((0, 1), 1, false).operate((2, 3), true).put((4, 5), 1, true), true),
            (Script::default().put_unknown((0, 1), 1), true),
            (Script::default().not_put((0, 1), 1), true),
            (Script::default().put_unknown((0, 1), 1).put((2, 3), 1, true), false),
            (leased(), false),
            (acked(), true),
            (leased().ack_unknown((4, 5), 5), true),
            (leased().not_acked((4, 5), 5), false),
            (leased().ack((10, 11), 5, Settled::LeaseLost), false),
        ] {
            assert_eq!(check(&script).is_ok(), fine, "{:?}", check(&script));
        }
    }

    #[test]
    fn what_is_known_was_put_and_is_put_again_only_when_it_was_done_and_forgotten() {
        for (script, fine) in [
            (acked().put((6, 7), 1, true), true),
            (acked().put((6, 7), 2, false).ack_unknown((8, 9), 6), false),
            (acked().put((20, 21), 2, false).ack_unknown((22, 23), 6), true),
            (acked().put((20, 21), 2, false), false),
            (Script::default().not_put((0, 1), 1).put((2, 3), 1, true).ack_unknown((4, 5), 5), false),
            (Script::default().put_unknown((0, 1), 1).put((2, 3), 1, true).ack_unknown((4, 5), 5), true),
        ] {
            assert_eq!(check(&script).is_ok(), fine, "{:?}", check(&script));
        }
    }

    #[test]
    fn an_item_is_done_once_for_each_put() {
        for (script, fine) in [
            (acked().ack((5, 6), 5, Settled::AlreadyDone), true),
            (acked().ack((5, 6), 5, Settled::Done), false),
            (acked().lease((6, 7), (6, 1), 9, 1).ack((8, 9), 6, Settled::Done), false),
            (
                acked().put_unknown((6, 7), 2).lease((20, 21), (6, 1), 30, 2).ack((22, 23), 6, Settled::Done),
                true,
            ),
        ] {
            assert_eq!(check(&script).is_ok(), fine, "{:?}", check(&script));
        }
    }

    #[test]
    fn a_lease_that_is_good_is_honoured_and_one_that_is_over_is_not() {
        for (script, fine) in [
            (leased().ack((4, 5), 5, Settled::LeaseLost).ack_unknown((7, 8), 5), false),
            (leased().ack((4, 9), 5, Settled::LeaseLost).ack_unknown((10, 11), 5), true),
            (
                leased().extend((4, 5), 5, 20).ack((9, 10), 5, Settled::LeaseLost).ack_unknown((11, 12), 5),
                false,
            ),
            (
                leased()
                    .nack((4, 5), 5, 0, Settled::Done)
                    .ack((5, 6), 5, Settled::LeaseLost)
                    .ack_unknown((6, 7), 6),
                true,
            ),
            (
                leased().not_acked((4, 5), 5).ack((5, 6), 5, Settled::AlreadyDone).ack_unknown((7, 8), 5),
                false,
            ),
            (leased().operate((3, 4), true).ack((5, 6), 5, Settled::AlreadyDone), true),
            // Somebody else has it by now.
            (leased().lease((10, 11), (6, 2), 20, 1).ack((12, 13), 5, Settled::Done), false),
            (
                leased().lease((10, 11), (6, 2), 20, 1).extend((12, 13), 5, 30).ack(
                    (14, 15),
                    6,
                    Settled::Done,
                ),
                false,
            ),
            (
                leased().lease((10, 13), (6, 2), 20, 1).ack((12, 13), 5, Settled::LeaseLost).ack(
                    (14, 15),
                    6,
                    Settled::Done,
                ),
                true,
            ),
        ] {
            assert_eq!(check(&script).is_ok(), fine, "{:?}", check(&script));
        }
    }

    #[test]
    fn a_look_sees_what_there_is() {
        for (script, fine) in [
            (leased().look((3, 4), Some(ItemState::Leased)).ack((4, 5), 5, Settled::Done), true),
            (leased().look((3, 4), None).ack((4, 5), 5, Settled::Done), true),
            (leased().look((2, 3), None).ack((4, 5), 5, Settled::Done), false),
            (acked().look((6, 7), Some(ItemState::Done)), true),
            (acked().look((6, 7), None), true),
            (acked().look((6, 7), Some(ItemState::Ready)), false),
            (Script::default().not_put((0, 1), 1).look((2, 3), Some(ItemState::Ready)), false),
        ] {
            assert_eq!(check(&script).is_ok(), fine, "{:?}", check(&script));
        }
    }
}
