//! [`Proposer`]: the machine of one round of changes of one register. Pure: words in, actions out.
//!
//! A group of changes is applied together, in order, as one value under one ballot. Until its accept is sent, entries
//! may be withdrawn; from then on the group is frozen, and the retry rule (protocol, section 1) decides it as a whole:
//! nothing is applied twice, and what can't be told is [`Fate::Unknown`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::age::Ages;
use super::reader::agree;
use super::{Attempt, Kind, Promised, Publish, Verdict};
use crate::driver::{Action, Context, Machine, Word};
use crate::ids::{NodeIndex, ProposerId};
use crate::limits;
use crate::mutant::{self, Mutant};
use crate::node::operation::{Accept, Answer, Operation, Record, RegisterKey, Stamp};
use crate::quorum::{self, ClusterSize, Tally};
use crate::runtime::Moment;
use crate::token::{Ballot, Token};

/// How long the machine waits for more answers where clocks differ on whether a stamp has aged.
const SETTLE: Duration = Duration::from_millis(50);
/// A pause after a conflict is drawn from zero up to twice what the round took, and twice that with each further one; within
/// these bounds. It goes by rounds because those do who win meanwhile: once they have made more than
/// [`RECENT_MAX`](crate::limits::RECENT_MAX), nobody can tell what became of an accept.
const CONFLICT_PAUSE: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(250));
/// How often a read that meets a write is repeated before the write is finished, and the longest pause before that.
const LOOKS_MAX: u32 = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(4);
/// Longest pause where nodes could not be asked.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(100);

/// Whether a change may still be taken back. Shared between the change and whoever waits for it.
#[derive(Debug, Default)]
pub struct Claim(AtomicU8);

impl Claim {
    const OPEN: u8 = 0;
    const CLAIMED: u8 = 1;
    const WITHDRAWN: u8 = 2;

    /// Takes the change back. `false` when it has gone out already: nobody knows what becomes of it.
    pub fn withdraw(&self) -> bool {
        let swapped =
            self.0.compare_exchange(Self::OPEN, Self::WITHDRAWN, Ordering::AcqRel, Ordering::Acquire);
        swapped.is_ok() || swapped == Err(Self::WITHDRAWN)
    }

    /// Whether it has been taken back.
    pub fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::WITHDRAWN
    }

    fn claim(&self) -> bool {
        if mutant::is_on(Mutant::GroupThaws) {
            return !self.is_withdrawn();
        }
        let swapped = self.0.compare_exchange(Self::OPEN, Self::CLAIMED, Ordering::AcqRel, Ordering::Acquire);
        swapped.is_ok() || swapped == Err(Self::CLAIMED)
    }

    /// It was agreed that the change was not applied: it may be taken back again.
    pub fn reopen(&self) {
        let _ = self.0.compare_exchange(Self::CLAIMED, Self::OPEN, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// One change in a group.
#[derive(Debug)]
pub struct Entry<K: Kind> {
    /// What is to be done.
    pub change: K::Change,
    /// Whether it may still be taken back.
    pub claim: Arc<Claim>,
}

/// What this daemon knows of a register after its own accept was taken by q and left a promise: the next change takes
/// one round trip. Used once, and forgotten before it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Warm<V> {
    value: V,
    vid: Ballot,
    recent: Vec<Ballot>,
    next: Ballot,
    /// When, at the earliest, each stamp may be aged.
    ripe: Vec<(Stamp, Moment)>,
}

impl<V: Default> Warm<V> {
    /// For a name that nobody else can have proposed anything for: that nothing is there needs no prepare.
    pub fn absent(next: Ballot) -> Self {
        Self { value: V::default(), vid: Ballot::ZERO, recent: Vec::new(), next, ripe: Vec::new() }
    }
}

impl<V> Warm<V> {
    /// The value that was agreed on.
    pub fn value(&self) -> &V {
        &self.value
    }
}

/// What became of one change.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate<A> {
    /// It was agreed on, or it changes nothing and the value it saw is agreed on.
    Done {
        /// The change's answer.
        answer: A,
        /// The ballot that it was applied under; meaningful where it changed something.
        ballot: Ballot,
        /// A moment before the accept with this ballot was first sent; `None` where nothing was changed.
        first_sent: Option<Moment>,
    },
    /// It was not applied and has to be proposed again.
    Deferred,
    /// It was taken back and not applied.
    Withdrawn,
    /// It was not applied and will not be.
    NotApplied,
    /// It may have been applied, may still be, or never.
    Unknown,
    /// It was not applied, because the value can't be read.
    Unreadable(String),
    /// It was not applied, because the nodes refuse ballots so far ahead of their clocks.
    ClockTooFarAhead,
}

impl<A> Fate<A> {
    /// For the mutant that counts leases from another moment.
    fn count_from(&mut self, moment: Moment) {
        if let Fate::Done { first_sent: Some(first_sent), .. } = self {
            *first_sent = moment;
        }
    }
}

/// The end of a round.
#[derive(Debug)]
pub struct Decided<K: Kind> {
    /// One per entry, in order.
    pub fates: Vec<Fate<K::Answer>>,
    /// For the next round, if it may be warm.
    pub warm: Option<Warm<K::Value>>,
    /// The agreed value as this round saw or made it.
    pub seen: Option<Seen<K::Value>>,
}

/// An agreed value.
#[derive(Debug)]
pub struct Seen<V> {
    /// The value.
    pub value: V,
    /// The attempt that made it.
    pub vid: Ballot,
    /// For how long stamps have been held.
    pub ages: Ages,
    /// The nodes that showed it.
    pub nodes: Vec<NodeIndex>,
}

/// An accept that was sent with the group's changes in it.
#[derive(Debug)]
struct Sent<A> {
    ballot: Ballot,
    /// The vid of the value that it was applied to.
    base: Ballot,
    fates: Vec<Fate<A>>,
}

/// What a value was before a step, as far as the step needs it.
#[derive(Clone, Debug)]
struct Base<V> {
    value: V,
    raw: Bytes,
    vid: Ballot,
    recent: Vec<Ballot>,
    ripe: Vec<(Stamp, Moment)>,
}

/// What an accept under way stands for.
#[derive(Debug)]
enum Plan<A> {
    /// The group, as the attempt with this index.
    Apply(usize),
    /// Another's value, or an earlier attempt's, is finished; then these are the fates.
    Finish(Vec<Fate<A>>),
}

#[derive(Debug)]
enum Phase<K: Kind> {
    Idle,
    /// Resting before another read.
    Looking,
    Reading {
        tally: Tally,
        answers: Vec<(NodeIndex, Option<Record>)>,
    },
    Preparing(Preparing),
    Accepting {
        tally: Tally,
        maybe_taken: bool,
        plan: Plan<K::Answer>,
        warm: Warm<K::Value>,
    },
}

#[derive(Debug)]
struct Preparing {
    ballot: Ballot,
    tally: Tally,
    promised: Vec<(NodeIndex, Record)>,
    held: usize,
    floor: Ballot,
    too_far_ahead: usize,
}

/// The machine. See the module.
#[derive(Debug)]
pub struct Proposer<K: Kind> {
    key: RegisterKey,
    size: ClusterSize,
    proposer: ProposerId,
    entries: Vec<Entry<K>>,
    warm: Option<Warm<K::Value>>,
    /// Promises that were given before the round.
    promised: Option<Promised>,
    /// An earlier round, whose outcome is unknown, may have applied the changes to "absent" under this ballot or a later one.
    doubt: Option<Ballot>,
    phase: Phase<K>,
    sent: Vec<Sent<K::Answer>>,
    first_ballot: Option<Ballot>,
    /// When the latest round set out.
    set_out: Moment,
    /// How long it took until a node said that the round was lost to another.
    lost_after: Option<Duration>,
    /// How many rounds were.
    lost: u32,
    /// How often a read was repeated.
    looks: u32,
    too_far_ahead: bool,
}

type Step<K> = Action<Decided<K>>;

impl<K: Kind> Proposer<K> {
    /// A round for these entries; with none, it finds out the agreed value.
    pub fn new(
        key: RegisterKey,
        size: ClusterSize,
        proposer: ProposerId,
        entries: Vec<Entry<K>>,
        warm: Option<Warm<K::Value>>,
    ) -> Self {
        Self {
            key,
            size,
            proposer,
            entries,
            warm,
            promised: None,
            doubt: None,
            phase: Phase::Idle,
            sent: Vec::new(),
            first_ballot: None,
            set_out: Moment::ZERO,
            lost_after: None,
            lost: 0,
            looks: 0,
            too_far_ahead: false,
        }
    }

    /// Begins with promises that were given for a claim, in place of a prepare of its own.
    pub fn with_promises(mut self, promised: Promised) -> Self {
        self.promised = Some(promised);
        self
    }

    /// For changes that an earlier round, whose outcome is unknown, may have applied to "absent", under this ballot or a later
    /// one, and that know their own effect where they find it. Where they find nothing it may have been forgotten.
    pub fn after_doubt(mut self, first: Ballot) -> Self {
        self.doubt = Some(first);
        self
    }

    /// The entries, to be handed on.
    pub fn into_entries(self) -> Vec<Entry<K>> {
        self.entries
    }

    // ---- the warm path

    fn start_warm(&mut self, context: &Context<'_>) -> Option<Step<K>> {
        let warm = self.warm.as_ref()?;
        // By this daemon's clock a stamp may have aged: the change must be given the ages.
        let is_ripe = warm.ripe.iter().any(|(_, at)| *at <= context.now);
        if is_ripe && !mutant::is_on(Mutant::WarmNeverRipe) {
            return None;
        }
        let ages = Ages::unasked(self.size);
        let applied = self.apply(&warm.value, &Attempt::new(warm.next, &ages));
        if !applied.changed && mutant::is_on(Mutant::WarmAnswers) {
            let fates = applied.fates.into_iter().map(|fate| fate.unchanged(Ballot::ZERO)).collect();
            return Some(Action::Done(Decided { fates, warm: self.warm.take(), seen: None }));
        }
        if !applied.changed {
            // Never answered from the cache: another daemon may have changed the value since.
            return Some(self.read());
        }
        let kept = self.warm.clone().filter(|_| mutant::is_on(Mutant::WarmTwice));
        let Warm { value, vid, recent, next, ripe } =
            std::mem::replace(&mut self.warm, kept).expect("it was there a moment ago");
        let base = Base { raw: Bytes::new(), value, vid, recent, ripe };
        self.first_ballot.get_or_insert(next);
        Some(self.propose(next, base, applied, context))
    }

    // ---- reading

    fn read(&mut self) -> Step<K> {
        self.phase = Phase::Reading { tally: Tally::new(self.size), answers: Vec::new() };
        Action::Send(Operation::Read { key: self.key.clone() })
    }

    fn on_read(&mut self, context: &Context<'_>) -> Step<K> {
        let Phase::Reading { tally, answers } = &self.phase else { unreachable!("called while reading") };
        let enough = tally.yes() > 0 && mutant::is_on(Mutant::ReadsFromOne);
        match tally.verdict() {
            _ if enough => {}
            quorum::Verdict::Pending => return Action::Wait(None),
            quorum::Verdict::Impossible => return self.prepare(true, context),
            quorum::Verdict::Reached => {}
        }
        let agreement = agree(answers.iter().map(|(_, record)| record.as_ref()), self.size);
        if !agreement.committed && !enough && !mutant::is_on(Mutant::AnswersUnfinished) {
            // A write may be on its way to the slow ones; if waiting does not help, finishing it does.
            return if tally.outstanding() > 0 {
                Action::Wait(Some(SETTLE))
            } else {
                self.look_again(context)
            };
        }
        let base = match self.base_of(agreement.highest, &[]) {
            Ok(base) => base,
            Err(error) => return self.done_all(&Fate::Unreadable(error)),
        };
        let ages = self.ages(answers.iter().filter_map(|(_, record)| record.as_ref()), tally.outstanding());
        let applied = self.apply(&base.value, &Attempt::new(Ballot::ZERO, &ages));
        if applied.changed || applied.fates.contains(&Placeholder::Deferred) {
            return self.prepare(false, context);
        }
        let holds = |record: &Option<Record>| record.as_ref().map_or(Ballot::ZERO, |r| r.ballot);
        let ballot = agreement.highest.map_or(Ballot::ZERO, |record| record.ballot);
        let nodes = answers.iter().filter(|(_, r)| holds(r) == ballot).map(|(node, _)| *node).collect();
        let fates = applied.fates.into_iter().map(|fate| fate.unchanged(Ballot::ZERO)).collect();
        let seen = Some(Seen { value: base.value, vid: base.vid, ages, nodes });
        Action::Done(Decided { fates, warm: self.warm.take(), seen })
    }

    /// A write is half way on all that answered. A prepare would take the promise from whoever is writing, so it is given
    /// a moment to finish.
    fn look_again(&mut self, context: &Context<'_>) -> Step<K> {
        if self.looks == LOOKS_MAX {
            return self.prepare(true, context);
        }
        self.looks += 1;
        self.phase = Phase::Looking;
        Action::Rest((context.jitter)(LOOK_PAUSE))
    }

    // ---- prepare

    fn prepare(&mut self, soft: bool, context: &Context<'_>) -> Step<K> {
        self.set_out = context.now;
        let ballot = Ballot { token: (context.tokens)(Token::ZERO), proposer: self.proposer };
        self.first_ballot.get_or_insert(ballot);
        let glances = self.entries.iter().all(|entry| K::is_glance(&entry.change));
        // Once an accept was sent only a promise will do.
        let soft = soft && glances && self.sent.is_empty();
        self.phase = Phase::Preparing(Preparing {
            ballot,
            tally: Tally::new(self.size),
            promised: Vec::new(),
            held: 0,
            floor: Ballot::ZERO,
            too_far_ahead: 0,
        });
        Action::Send(Operation::Prepare { key: self.key.clone(), ballot, soft })
    }

    /// A claim has prepared the register already: on q nodes, or on fewer, and then the others are asked under the same ballot,
    /// and those that promised promise it again.
    fn start_promised(&mut self, promised: Promised, context: &Context<'_>) -> Step<K> {
        let Promised { ballot, records, floor, .. } = promised;
        self.first_ballot.get_or_insert(ballot);
        let mut tally = Tally::new(self.size);
        let enough = records.len() >= self.size.quorum() || mutant::is_on(Mutant::LeasesOnFewer);
        if !enough {
            self.set_out = context.now;
            let promised = Vec::new();
            self.phase =
                Phase::Preparing(Preparing { ballot, tally, promised, held: 0, floor, too_far_ahead: 0 });
            return Action::Send(Operation::Prepare { key: self.key.clone(), ballot, soft: false });
        }
        // Nobody else is asked, so nobody else is waited for.
        let gave = |node| records.iter().any(|(other, _)| *other == node);
        for node in self.size.indexes() {
            tally.count(node, gave(node) || mutant::is_on(Mutant::LeasesOnFewer));
        }
        self.phase = Phase::Preparing(Preparing {
            ballot,
            tally,
            promised: records,
            held: 0,
            floor,
            too_far_ahead: 0,
        });
        self.on_prepare(true, context)
    }

    fn on_prepare(&mut self, settled: bool, context: &Context<'_>) -> Step<K> {
        let Phase::Preparing(preparing) = &self.phase else { unreachable!("called while preparing") };
        match preparing.tally.verdict() {
            quorum::Verdict::Pending => return Action::Wait(None),
            quorum::Verdict::Impossible => {
                // Too many refuse for their clocks' sake: no retry helps.
                self.too_far_ahead = preparing.too_far_ahead > self.size.nodes() - self.size.quorum();
                if self.too_far_ahead && self.sent.is_empty() {
                    return self.done_all(&Fate::ClockTooFarAhead);
                }
                return self.rest(context);
            }
            quorum::Verdict::Reached => {}
        }
        let agreement = agree(preparing.promised.iter().map(|(_, record)| Some(record)), self.size);
        let ages = self.ages(preparing.promised.iter().map(|(_, r)| r), preparing.tally.outstanding());
        let ripe = match self.base_of(agreement.highest, &[]) {
            Ok(base) => ripe_by::<K>(&base.value, &ages, context.now),
            Err(error) if self.sent.is_empty() => return self.done_all(&Fate::Unreadable(error)),
            Err(_) => return self.done_all(&Fate::Unknown),
        };
        let base = self.base_of(agreement.highest, &ripe).expect("it was read a moment ago");
        let (ballot, held, floor) = (preparing.ballot, preparing.held, preparing.floor);
        let committed = agreement.committed || mutant::is_on(Mutant::AnswersUnfinished);
        let highest = agreement.highest.map_or(Ballot::ZERO, |record| record.ballot);

        if let Some(found) = self.find_sent(&base) {
            // One of our attempts is in the history: finish it and answer as it would have.
            let fates = self.sent[found].fates.clone();
            return self.finish(ballot, base, fates, context);
        }
        if !self.may_apply(&base, floor) {
            return self.done_all(&Fate::Unknown);
        }
        let applied = self.apply(&base.value, &Attempt::new(ballot, &ages));
        if ages.is_undecided() && !settled {
            return Action::Wait(Some(SETTLE));
        }
        if applied.changed {
            // A record that was only shown is no promise.
            return if held > 0 && !mutant::is_on(Mutant::ProposesOnShown) {
                self.prepare(false, context)
            } else {
                self.propose(ballot, base, applied, context)
            };
        }
        let fates = applied.fates.into_iter().map(|fate| fate.unchanged(ballot)).collect();
        if committed && (self.sent.is_empty() || mutant::is_on(Mutant::AnswersWithoutAccept)) {
            let nodes =
                preparing.promised.iter().filter(|(_, r)| r.ballot == highest).map(|(n, _)| *n).collect();
            // Where every node only showed its record, the warm promise is as good as before.
            let warm = if held == preparing.promised.len() { self.warm.take() } else { None };
            let seen = Some(Seen { value: base.value, vid: base.vid, ages, nodes });
            return Action::Done(Decided { fates, warm, seen });
        }
        if held > 0 {
            return self.prepare(false, context);
        }
        // Once an accept was sent there is no answer without an accept, or a lone old one could surface later.
        self.finish(ballot, base, fates, context)
    }

    /// The latest attempt that is the value or in its history.
    fn find_sent(&self, base: &Base<K::Value>) -> Option<usize> {
        if mutant::is_on(Mutant::RetryAppliesAgain) {
            return None;
        }
        self.sent.iter().rposition(|sent| sent.ballot == base.vid || base.recent.contains(&sent.ballot))
    }

    /// The rest of the retry rule, given that no attempt is in the value's known history: whether that history reaches
    /// back to the last attempt's base, so that it is complete.
    fn may_apply(&self, base: &Base<K::Value>, floor: Ballot) -> bool {
        let is_forgotten = |first| floor >= first && !mutant::is_on(Mutant::RetryIgnoresFloor);
        let Some(last) = self.sent.last() else {
            return base.vid != Ballot::ZERO || !self.doubt.is_some_and(is_forgotten);
        };
        if mutant::is_on(Mutant::RetryAppliesAgain) {
            return true;
        }
        let known = last.base == base.vid || base.recent.contains(&last.base);
        // An attempt on "absent" may have been agreed on, removed and forgotten; then a floor says so.
        let first = self.first_ballot.expect("set before the first accept");
        known && (last.base != Ballot::ZERO || !is_forgotten(first))
    }

    // ---- accept

    fn propose(
        &mut self,
        ballot: Ballot,
        base: Base<K::Value>,
        applied: Applied<K>,
        context: &Context<'_>,
    ) -> Step<K> {
        if !self.claim_all(&applied) {
            // Somebody took a change back between its application and now: once more without it.
            return self.prepare(false, context);
        }
        let recent =
            std::iter::once(base.vid).chain(base.recent.iter().copied()).take(limits::RECENT_MAX).collect();
        let fates = applied.fates.into_iter().map(|fate| fate.applied(ballot, context.now)).collect();
        self.sent.push(Sent { ballot, base: base.vid, fates });
        let publish = K::publish(&base.value, &applied.value);
        let raw = K::encode(&applied.value);
        let made = Base { value: applied.value, raw, vid: ballot, recent, ripe: base.ripe };
        self.accept(ballot, made, publish, Plan::Apply(self.sent.len() - 1), context)
    }

    fn finish(
        &mut self,
        ballot: Ballot,
        base: Base<K::Value>,
        fates: Vec<Fate<K::Answer>>,
        context: &Context<'_>,
    ) -> Step<K> {
        self.accept(ballot, base, Publish::default(), Plan::Finish(fates), context)
    }

    fn accept(
        &mut self,
        ballot: Ballot,
        made: Base<K::Value>,
        publish: Publish,
        plan: Plan<K::Answer>,
        context: &Context<'_>,
    ) -> Step<K> {
        let next = (context.tokens)(self.last_token(ballot));
        let stamps = K::stamps(&made.value);
        let guard = match stamps.first() {
            Some((_, length)) if K::is_guarded(&made.value) => *length,
            _ => Duration::ZERO,
        };
        let ripe = stamps.iter().map(|(stamp, length)| {
            let known = made.ripe.iter().find(|(name, _)| name == stamp).map(|(_, at)| *at);
            (*stamp, known.unwrap_or(context.now + *length))
        });
        let accept = Accept {
            key: self.key.clone(),
            ballot,
            value: made.raw,
            vid: made.vid,
            recent: made.recent.clone(),
            stamps: stamps.iter().map(|(stamp, _)| *stamp).collect(),
            guard,
            listed: K::is_listed(&made.value),
            next,
            announce: publish.announce,
            wake: publish.wake,
            place: self.key.parts().and_then(|(_, name)| K::place(name, &made.value)),
        };
        let warm = Warm {
            ripe: ripe.collect(),
            value: made.value,
            vid: made.vid,
            recent: made.recent,
            next: Ballot { token: next, proposer: self.proposer },
        };
        self.set_out = context.now;
        self.phase = Phase::Accepting { tally: Tally::new(self.size), maybe_taken: false, plan, warm };
        Action::Send(Operation::Accept(Arc::new(accept)))
    }

    fn on_accept(&mut self, context: &Context<'_>) -> Step<K> {
        let Phase::Accepting { tally, maybe_taken, plan, .. } = &self.phase else {
            unreachable!("called while accepting")
        };
        match tally.verdict() {
            quorum::Verdict::Pending => Action::Wait(None),
            quorum::Verdict::Impossible => {
                let so_far_refused = tally.yes() == 0 && !maybe_taken;
                if so_far_refused && tally.outstanding() > 0 {
                    // The last word may make the outcome certain.
                    return Action::Wait(Some(SETTLE));
                }
                let refused_by_all = so_far_refused;
                if refused_by_all && matches!(plan, Plan::Apply(_)) {
                    // It is nowhere and can come nowhere: as if never sent.
                    self.sent.pop();
                    if self.sent.is_empty() {
                        self.entries.iter().for_each(|entry| entry.claim.reopen());
                    }
                }
                self.rest(context)
            }
            quorum::Verdict::Reached => {
                let Phase::Accepting { plan, warm, .. } = std::mem::replace(&mut self.phase, Phase::Idle)
                else {
                    unreachable!("matched above")
                };
                let mut fates = match plan {
                    Plan::Apply(sent) => self.sent.swap_remove(sent).fates,
                    Plan::Finish(fates) => fates,
                };
                if mutant::is_on(Mutant::LeaseFromAnswer) {
                    fates.iter_mut().for_each(|fate| fate.count_from(context.now));
                }
                let ages = Ages::unasked(self.size);
                let seen = Seen { value: warm.value.clone(), vid: warm.vid, ages, nodes: Vec::new() };
                Action::Done(Decided { fates, warm: Some(warm), seen: Some(seen) })
            }
        }
    }

    // ---- small things

    /// The last token that an attempt with this ballot can have given to a change of the group: [`Attempt::token`].
    fn last_token(&self, ballot: Ballot) -> Token {
        if mutant::is_on(Mutant::TokensNotReserved) {
            return Token::ZERO;
        }
        ballot.token.plus(self.entries.len().saturating_sub(1) as u64)
    }

    fn rest(&mut self, context: &Context<'_>) -> Step<K> {
        self.phase = Phase::Idle;
        let (shortest, longest) = CONFLICT_PAUSE;
        let most = match self.lost_after.take() {
            Some(round) => {
                self.lost = (self.lost + 1).min(10);
                (round.max(shortest / 2) * 2u32.pow(self.lost)).min(longest)
            }
            None => UNREACHABLE_PAUSE,
        };
        Action::Rest((context.jitter)(most))
    }

    fn done_all(&mut self, fate: &Fate<K::Answer>) -> Step<K> {
        let of = |entry: &Entry<K>| if entry.claim.is_withdrawn() { Fate::Withdrawn } else { fate.clone() };
        let warm = self.warm.take().filter(|_| mutant::is_on(Mutant::WarmTwice));
        Action::Done(Decided { fates: self.entries.iter().map(of).collect(), warm, seen: None })
    }

    fn ages<'a>(&self, records: impl Iterator<Item = &'a Record>, outstanding: usize) -> Ages {
        Ages::of(self.size, records.map(|record| record.ages.clone()).collect(), outstanding)
    }

    fn base_of(&self, highest: Option<&Record>, ripe: &[(Stamp, Moment)]) -> Result<Base<K::Value>, String> {
        let Some(record) = highest else {
            let raw = K::encode(&K::Value::default());
            return Ok(Base {
                value: K::Value::default(),
                raw,
                vid: Ballot::ZERO,
                recent: Vec::new(),
                ripe: Vec::new(),
            });
        };
        Ok(Base {
            value: K::decode(&record.value)?,
            raw: record.value.clone(),
            vid: record.vid,
            recent: record.recent.clone(),
            ripe: ripe.to_vec(),
        })
    }

    fn apply(&self, old: &K::Value, attempt: &Attempt<'_>) -> Applied<K> {
        let mut applied =
            Applied { value: old.clone(), changed: false, fates: Vec::with_capacity(self.entries.len()) };
        let mut closed = false;
        for (entry, place) in self.entries.iter().zip(0..) {
            let attempt = &Attempt { place, ..*attempt };
            let fate = if entry.claim.is_withdrawn() {
                Placeholder::Withdrawn
            } else if closed {
                Placeholder::Deferred
            } else {
                match K::apply(&entry.change, &applied.value, attempt) {
                    Verdict::Unchanged(answer) => Placeholder::Answer { answer, changed: false },
                    Verdict::Changed(value, answer) => {
                        applied.value = value;
                        applied.changed = true;
                        Placeholder::Answer { answer, changed: true }
                    }
                    // What comes after it keeps its place behind it.
                    Verdict::Deferred => {
                        closed = true;
                        Placeholder::Deferred
                    }
                }
            };
            applied.fates.push(fate);
        }
        applied
    }

    /// From here on the group is frozen. `false` if a change was taken back after all.
    fn claim_all(&self, applied: &Applied<K>) -> bool {
        let mut all = true;
        for (entry, fate) in self.entries.iter().zip(&applied.fates) {
            if *fate != Placeholder::Withdrawn && !entry.claim.claim() {
                all = false;
            }
        }
        if !all && self.sent.is_empty() {
            self.entries.iter().for_each(|entry| entry.claim.reopen());
        }
        all
    }
}

/// A group applied to a value, before anybody agreed.
struct Applied<K: Kind> {
    value: K::Value,
    changed: bool,
    fates: Vec<Placeholder<K::Answer>>,
}

/// A fate that still depends on agreement.
#[derive(Debug)]
enum Placeholder<A> {
    Answer { answer: A, changed: bool },
    Deferred,
    Withdrawn,
}

/// By kind alone: answers need not be comparable.
impl<A> PartialEq for Placeholder<A> {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl<A> Placeholder<A> {
    fn applied(self, ballot: Ballot, now: Moment) -> Fate<A> {
        match self {
            Placeholder::Answer { answer, changed } => {
                Fate::Done { answer, ballot, first_sent: changed.then_some(now) }
            }
            Placeholder::Deferred => Fate::Deferred,
            Placeholder::Withdrawn => Fate::Withdrawn,
        }
    }

    fn unchanged(self, ballot: Ballot) -> Fate<A> {
        match self {
            Placeholder::Answer { answer, .. } => Fate::Done { answer, ballot, first_sent: None },
            Placeholder::Deferred => Fate::Deferred,
            Placeholder::Withdrawn => Fate::Withdrawn,
        }
    }
}

/// When, at the earliest, each stamp of a value may be aged, by what the answers said.
fn ripe_by<K: Kind>(value: &K::Value, ages: &Ages, now: Moment) -> Vec<(Stamp, Moment)> {
    K::stamps(value).into_iter().map(|(stamp, length)| (stamp, now + ages.remaining(stamp, length))).collect()
}

impl<K: Kind> Machine for Proposer<K> {
    type Outcome = Decided<K>;

    fn start(&mut self, context: &Context<'_>) -> Step<K> {
        if let Some(promised) = self.promised.take() {
            return self.start_promised(promised, context);
        }
        let looks = self.entries.iter().all(|entry| K::is_look(&entry.change));
        match self.start_warm(context) {
            Some(step) => step,
            None if looks => self.read(),
            None => self.prepare(true, context),
        }
    }

    fn on_word(&mut self, node: NodeIndex, word: Word, context: &Context<'_>) -> Step<K> {
        if matches!(word, Word::Answer(Answer::Conflict { .. })) {
            self.lost_after = Some(context.now.since(self.set_out));
        }
        match &mut self.phase {
            Phase::Idle | Phase::Looking => Action::Wait(None),
            Phase::Reading { tally, answers } => {
                let Word::Answer(Answer::Record(record)) = word else {
                    tally.count(node, false);
                    return self.on_read(context);
                };
                if tally.count(node, true) {
                    answers.push((node, record));
                }
                self.on_read(context)
            }
            Phase::Preparing(preparing) => {
                preparing.count(node, word);
                self.on_prepare(false, context)
            }
            Phase::Accepting { tally, maybe_taken, .. } => {
                match word {
                    Word::Answer(Answer::Accepted) => {
                        tally.count(node, true);
                    }
                    Word::Answer(Answer::Conflict { .. } | Answer::TooFarAhead) | Word::Refused => {
                        tally.count(node, false);
                    }
                    Word::Answer(_) | Word::Lost => {
                        *maybe_taken |= !mutant::is_on(Mutant::LostIsRefused);
                        tally.count(node, false);
                    }
                }
                self.on_accept(context)
            }
        }
    }

    fn on_wake(&mut self, context: &Context<'_>) -> Step<K> {
        match &self.phase {
            Phase::Preparing(_) => self.on_prepare(true, context),
            Phase::Accepting { .. } => self.rest(context),
            Phase::Looking => self.read(),
            Phase::Idle | Phase::Reading { .. } => self.prepare(false, context),
        }
    }

    fn on_resend(&mut self) {
        if mutant::is_on(Mutant::MixedLists) {
            return;
        }
        let fresh = Tally::new(self.size);
        match &mut self.phase {
            Phase::Idle | Phase::Looking => {}
            Phase::Reading { tally, answers } => {
                *tally = fresh;
                answers.clear();
            }
            Phase::Preparing(preparing) => {
                *preparing = Preparing {
                    tally: fresh,
                    promised: Vec::new(),
                    held: 0,
                    floor: Ballot::ZERO,
                    too_far_ahead: 0,
                    ..*preparing
                };
            }
            Phase::Accepting { tally, maybe_taken, .. } => {
                *tally = fresh;
                // Some node may have taken it under the other list.
                *maybe_taken = true;
            }
        }
    }

    fn give_up(&mut self) -> Decided<K> {
        let fate = if !self.sent.is_empty() {
            Fate::Unknown
        } else if self.too_far_ahead {
            Fate::ClockTooFarAhead
        } else {
            Fate::NotApplied
        };
        let Action::Done(decided) = self.done_all(&fate) else { unreachable!("done_all is done") };
        decided
    }
}

impl Preparing {
    fn count(&mut self, node: NodeIndex, word: Word) {
        match word {
            Word::Answer(Answer::Promised { record, floor }) => {
                if self.tally.count(node, true) {
                    self.promised.push((node, record));
                    self.floor = self.floor.max(floor);
                }
            }
            Word::Answer(Answer::Held { record }) => {
                if self.tally.count(node, true) {
                    self.held += 1;
                    self.promised.push((node, record));
                }
            }
            Word::Answer(answer) => {
                self.too_far_ahead += usize::from(answer == Answer::TooFarAhead);
                self.tally.count(node, false);
            }
            Word::Refused | Word::Lost => {
                self.tally.count(node, false);
            }
        }
    }
}
