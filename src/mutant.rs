//! Mutants: switches for tests, one per mechanism that a promise rests on. Each takes its mechanism out.
//!
//! A simulation that finds nothing proves something only if it does find the fault when a mechanism is missing. So each
//! mechanism asks [`is_on`] at the place where it works, and a test that has [`switch_on`]ed its mutant must fail. In a
//! build without the feature `sim` the answer is a constant `false`, and nothing of this is left.
//!
//! A switch is for one thread: a simulation runs on one, and tests side by side do not disturb each other. Mechanisms back
//! each other up, so several can be out at once. What is taken out of a script must be out before the nodes are made.

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A mechanism that is missing. Sections are those of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $($(#[$doc])* $variant,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$variant,)*];

            /// Its name, which stays the same.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Mutant::$variant => $name,)*
                }
            }
        }
    };
}

mutants! {
    // The node's scripts.

    /// `accept` takes a ballot below the promise. One ballot after another decides a register; section 1.
    AcceptIgnoresPromise = "accept-ignores-promise",
    /// `accept` leaves the promise as low as it was. A late accept must not undo a later one; section 1.
    AcceptRaisesNoPromise = "accept-raises-no-promise",
    /// `accept` does not promise the proposer its next ballot. The warm path changes only its own value; section 1.
    NextNotPromised = "next-not-promised",
    /// The gate lets every list pass. No q answers come together by a list that q nodes have left; section 2.
    GateOpen = "gate-open",
    /// A node without a memory takes operations. Whoever forgot is not asked; section 2.
    ServesWithoutMemory = "serves-without-memory",
    /// `prepare` compares whole ballots. No two daemons grant under one token; section 1.
    PrepareByBallot = "prepare-by-ballot",
    /// The floor refuses nothing. What was forgotten does not come back; section 5.
    FloorIgnored = "floor-ignored",
    /// `found` gives the memory whatever has happened since. A late founder takes no member away; section 2.
    FoundUnchecked = "found-unchecked",
    /// The handshake keeps the memory of a server that restarted. A memory is one unbroken run; section 2.
    RestartUnnoticed = "restart-unnoticed",
    /// A new stamp takes over the time of the record's first. An extended lease starts anew; section 3.
    StampsInheritTime = "stamps-inherit-time",
    /// Every accept starts the time of every stamp again. What is not renewed ends; section 3, liveness only.
    StampsRestart = "stamps-restart",
    /// A stamp from before the node's clock was set back keeps its time. Everybody's turn comes; section 3, liveness only.
    StampsFromTheFuture = "stamps-from-the-future",
    /// A soft prepare that only shows a record says that it promised. A promise is kept; section 1.
    SoftPreparePromises = "soft-prepare-promises",
    /// `begin_join` leaves the old data. What was forgotten meanwhile does not come back; section 2.
    KeepsOldData = "keeps-old-data",
    /// An id begins a join again. What was merged for it before counts for nothing; section 2.
    BegunTwice = "begun-twice",
    /// A join begins whatever list the node holds. Only who is joining is emptied; section 2.
    BegunUnderAnyList = "begun-under-any-list",
    /// A node takes merges after the end of its join. Nothing old comes to a member; section 2.
    MergeAfterEnd = "merge-after-end",
    /// A merge leaves the floor as it was. What was forgotten does not come back by way of a copy; section 2.
    MergeForgetsFloor = "merge-forgets-floor",
    /// A merge leaves the promises as they were. Promises outlive the node that gave them; section 2.
    MergeForgetsPromise = "merge-forgets-promise",
    /// A merged record counts as if its node had taken part in the round; section 2.
    MergeUnmarked = "merge-unmarked",
    /// A merge takes over how long the source has held each stamp. Ages are by nodes that have seen them pass; section 2.
    MergeKeepsTimes = "merge-keeps-times",
    /// A node that joins takes operations. Its copy decides nothing before it is complete; section 2.
    ServesWhileJoining = "serves-while-joining",
    /// What is forgotten raises no floor. Old messages bring nothing back; section 5.
    ForgetsWithoutFloor = "forgets-without-floor",
    /// A record is forgotten although it has changed since it was read; section 5.
    ForgetsChanged = "forgets-changed",
    /// Ballots more than a day ahead are taken. One wrong clock does not push all tokens ahead; section 0, liveness only.
    TokensFarAhead = "tokens-far-ahead",

    // Agreement on one register.

    /// A quorum is N/2, so that two need not meet; section 0.
    SmallQuorum = "small-quorum",
    /// The value of the first answer is taken, not that of the highest ballot. What was agreed on stays; section 1.
    NotTheHighest = "not-the-highest",
    /// An answer is given on a value that fewer than q hold. What was read once stays; section 1.
    AnswersUnfinished = "answers-unfinished",
    /// A copied record counts as if its node had taken part in the round; section 1.
    CopiedCounts = "copied-counts",
    /// A change is proposed on records that were only shown to a soft prepare; section 1.
    ProposesOnShown = "proposes-on-shown",
    /// A retry applies the change again, whatever became of the attempt before. At most once; section 1.
    RetryAppliesAgain = "retry-applies-again",
    /// A retry whose base was absent does not look at the floors. At most once; section 1.
    RetryIgnoresFloor = "retry-ignores-floor",
    /// The tokens that a group's changes were given may be those of ballots that follow. A version is used once; section 4.
    TokensNotReserved = "tokens-not-reserved",
    /// After an accept was sent a retry answers without another. A lone old one must not surface later; section 1.
    AnswersWithoutAccept = "answers-without-accept",
    /// On the warm path a change that changes nothing is answered from the cache. Answers are current; section 1.
    WarmAnswers = "warm-answers",
    /// The warm promise is not forgotten when it is sent. One ballot carries one value; section 1.
    WarmTwice = "warm-twice",
    /// A change may be taken back after its accept was sent. "Nothing happened" is true; section 1.
    GroupThaws = "group-thaws",
    /// What was lost on the way counts as refused. "Nothing happened" is true; section 1.
    LostIsRefused = "lost-is-refused",
    /// A late answer counts in whatever round is running. A commit is on q nodes; section 1.
    LateWordsCount = "late-words-count",
    /// Answers given under different lists count together in one round; section 2.
    MixedLists = "mixed-lists",
    /// A round goes on under the list of a recovery. What it goes by may be lost; section 2.
    RoundsCrossRecovery = "rounds-cross-recovery",
    /// Tokens in answers are not taken note of. A daemon whose clock is behind is served; section 0, liveness only.
    TokensUnobserved = "tokens-unobserved",

    // Time.

    /// A stamp is aged when one node says so. Clocks of fewer than q nodes may jump; section 3.
    AgedByOne = "aged-by-one",
    /// The age of any stamp is taken for that of the one asked for. An extension counts; section 3.
    AgedByAnyStamp = "aged-by-any-stamp",
    /// A stamp is aged after half its length. Others wait for the whole lease; section 3.
    AgedEarly = "aged-early",
    /// A lease counts from the answer and not from before the accept was sent; section 3.
    LeaseFromAnswer = "lease-from-answer",
    /// Nothing is taken off a lease for clocks that run unevenly; section 3.
    NoDriftMargin = "no-drift-margin",

    // The member list.

    /// Answers count whatever memory they come out of; section 2.
    MemoryIgnored = "memory-ignored",
    /// A daemon goes by a list that it has not read as agreed on; section 2.
    ListUncommitted = "list-uncommitted",
    /// A founding grants at once although something was there before. Leases run out first; section 2.
    FoundingTrusted = "founding-trusted",
    /// A daemon that has seen a list founds a cluster as if it were new. What was lost is not new; section 2.
    FoundsAgain = "founds-again",
    /// A cluster is founded by q nodes. One left out may know the cluster that there is; section 2.
    FoundsWithQuorum = "founds-with-quorum",
    /// A founding that nobody has confirmed is served by. Until then it may be started over; section 2.
    FoundingServed = "founding-served",
    /// A joining node is made a member before its copy is complete; section 2.
    PromotedEarly = "promoted-early",
    /// A joining node is copied to from one node only; section 2.
    CopiedFromOne = "copied-from-one",
    /// A node that nobody reaches stays a member. Others go on forgetting; section 2, liveness only.
    NeverOut = "never-out",
    /// A node is put out although fewer than q members are left. Who is back in time goes on serving; section 2, liveness
    /// only.
    OutBelowQuorum = "out-below-quorum",
    /// A recovery trusts whoever had the memory that the list names, whatever it has lost of it; section 2.
    CountsIgnored = "counts-ignored",
    /// A recovery is confirmed before its nodes have been merged. What one of them kept is on q; section 2.
    RecoversUnmerged = "recovers-unmerged",
    /// A recovery goes on with q nodes although nobody said that it may. What only the others had is waited for; section 2.
    RecoversWithQuorum = "recovers-with-quorum",
    /// What q members hold is forgotten, whatever the others do; section 5.
    ForgottenByQuorum = "forgotten-by-quorum",
    /// Forgetting goes on while a node is joining; section 5.
    ForgottenWhileJoining = "forgotten-while-joining",
    /// A register in which something has aged is left alone where nobody asks for it; section 7, liveness only.
    NeverSwept = "never-swept",
    /// Locks are granted before the recovery's stamp has aged. Leases run out first; section 2.
    GrantsWhileRecovering = "grants-while-recovering",

    /// Leases are extended before the recovery's stamp has aged, whether they have run out or not. A grant that was lost is
    /// waited for; section 2.
    ExtendsWhileRecovering = "extends-while-recovering",

    // Locks.

    /// Stamps are counted up from the one before and do not name their attempt; section 3.
    StampsWithoutBallot = "stamps-without-ballot",
    /// The same owner gets its lease again under the old lease id. A late release does not hit it; section 4.
    KeepsLeaseId = "keeps-lease-id",
    /// Abandon frees a lease that was granted under another id. The first holder keeps its time; section 4.
    AbandonIgnoresFirst = "abandon-ignores-first",
    /// A lease that was taken over can still be abandoned by the attempt that it was granted to; section 4.
    FirstStays = "first-stays",
    /// A lease that is taken again may end before the one that it voids; section 4.
    TakenShorter = "taken-shorter",
    /// Release ends the lease of whoever holds the lock; section 4.
    ReleaseByAnyone = "release-by-anyone",
    /// Extend starts the lease of whoever holds the lock again, and says that it is the caller's; section 4.
    ExtendByAnyone = "extend-by-anyone",
    /// A round hands out its token a second time. Tokens strictly increase; section 1.
    SecondTokenInRound = "second-token-in-round",
    /// A free lock goes to whoever comes, whoever waits. Every waiter's turn comes; section 4.
    LineIgnored = "line-ignored",
    /// Places in line do not age. Who died does not count as waiting; section 4, liveness only.
    PlacesNeverAge = "places-never-age",
    /// Offers do not age. A turn is not lost with a crashed daemon; section 4, liveness only.
    OffersNeverAge = "offers-never-age",
    /// Nobody who waits looks without being woken. Publishes may be lost; section 4, liveness only.
    NoLook = "no-look",
    /// What a client that went away acquired is left to run out; section 4, liveness only.
    NoAbandon = "no-abandon",

    // Queues.

    /// An item that a claim found is leased as if its node's index were agreed on. The index is a hint; section 4.
    IndexTrusted = "index-trusted",
    /// An item is leased on the promises of fewer than q nodes. A claim prepares; section 4.
    LeasesOnFewer = "leases-on-fewer",
    /// An ack ends whatever lease the item has. Only who has the item says that it is done; section 4.
    AckByAnyone = "ack-by-anyone",
    /// Done items are forgotten at once. What is completed stays completed; section 5.
    DoneForgottenEarly = "done-forgotten-early",
    /// A lease that reached nobody counts as an attempt. Items are not buried unseen; section 4, liveness only.
    LostClaimsCount = "lost-claims-count",
    /// A put whose id is known puts the item again. What is completed stays completed; section 4.
    PutsAgain = "puts-again",
    /// A lease begins again under the token of the one before. Tokens strictly increase; section 4.
    ItemTokenStays = "item-token-stays",
    /// An item is handed to who waits although one before it may be ready. Items come in their order; section 4, order only.
    HandsPastReady = "hands-past-ready",

    // Keys.

    /// A read believes the first answer that it gets. What was acknowledged is seen; section 1.
    ReadsFromOne = "reads-from-one",
    /// A value that has expired is answered as absent although its removal is not agreed on. What is gone stays gone; section 4.
    AbsentUnagreed = "absent-unagreed",
    /// A repeated request is done again. A request id is for one request; section 4.
    RequestIdIgnored = "request-id-ignored",
    /// A write under a lower token than the key has seen is done. Old holders write no more; section 4.
    FenceIgnored = "fence-ignored",
    /// A write under the very token that the key has seen last is refused. A holder writes more than once; section 4, liveness only.
    FenceRefusesEqual = "fence-refuses-equal",
    /// Fences go with the value. Who was fenced off while there was one stays so; section 4.
    FencesGoWithValue = "fences-go-with-value",
    /// A request that found nothing to do is not remembered. Its repeat does nothing either; section 4.
    NoOpUnremembered = "no-op-unremembered",
    /// Requests are remembered for ever. What is removed is forgotten; section 5, liveness only.
    RequestsNeverAge = "requests-never-age",
    /// A watch looks only at what is announced. Announcements may be lost; section 4, liveness only.
    WatchNeverWalks = "watch-never-walks",
    /// A watch tells a removal that is forgotten under the version zero. Versions never go backwards; section 4.
    WatchForgetsVersions = "watch-forgets-versions",
    /// A request is said not to have happened when its last repeat did not. "Nothing happened" is true; section 1.
    RepeatForgetsDoubt = "repeat-forgets-doubt",
    /// Versions are counted, and not given by ballots. They grow over forgetting; section 4.
    VersionsCounted = "versions-counted",
    /// The warm path does not ask whether anything has aged. What is written often ends, too; section 1.
    WarmNeverRipe = "warm-never-ripe",
}

impl Mutant {
    /// The mutant of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }
}

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Which of the two scripts a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// The one that runs batches.
    Batch,
    /// The one of the handshake.
    Hello,
}

#[cfg(any(test, feature = "sim"))]
pub use switched::{Guard, is_on, lua, switch_on};

/// Whether the mechanism is missing: in this build none ever is.
#[cfg(not(any(test, feature = "sim")))]
pub const fn is_on(_: Mutant) -> bool {
    false
}

/// The script as it runs: in this build as it is written.
#[cfg(not(any(test, feature = "sim")))]
pub fn lua(_: Script, text: String) -> String {
    text
}

#[cfg(any(test, feature = "sim"))]
mod switched {
    use std::cell::Cell;
    use std::marker::PhantomData;

    use crate::mutant::{Mutant, Script};

    thread_local! {
        /// By bit, in the order of the variants.
        static ON: Cell<u128> = const { Cell::new(0) };
    }

    const fn bit(mutant: Mutant) -> u128 {
        1 << mutant as u32
    }

    /// Whether the mechanism is missing on this thread.
    pub fn is_on(mutant: Mutant) -> bool {
        ON.get() & bit(mutant) != 0
    }

    /// Takes a mechanism out until the guard is dropped.
    #[must_use = "dropping the guard puts the mechanism back"]
    pub fn switch_on(mutant: Mutant) -> Guard {
        let before = ON.replace(ON.get() | bit(mutant));
        Guard { added: bit(mutant) & !before, _here: PhantomData }
    }

    /// Puts the mechanism back when it is dropped.
    #[derive(Debug)]
    pub struct Guard {
        /// Nothing, if it was out before.
        added: u128,
        /// Of one thread.
        _here: PhantomData<*const ()>,
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            ON.set(ON.get() & !self.added);
        }
    }

    /// The script as it runs: with the snippets of the mutants replaced.
    ///
    /// # Panics
    /// If a snippet is not there exactly once: the script has changed under its mutant.
    pub fn lua(script: Script, mut text: String) -> String {
        for mutant in Mutant::ALL.iter().filter(|mutant| is_on(**mutant)) {
            let Some((of, old, new)) = mutant.swap().filter(|(of, ..)| *of == script) else { continue };
            assert_eq!(text.matches(old).count(), 1, "{mutant}: {old:?} in the script {of:?}");
            text = text.replacen(old, new, 1);
        }
        text
    }

    impl Mutant {
        /// What it changes in a script: which one, what stands there, and what is put there instead.
        pub(super) fn swap(self) -> Option<(Script, &'static str, &'static str)> {
            use Script::{Batch, Hello};
            Some(match self {
                Mutant::AcceptIgnoresPromise => (
                    Batch,
                    "if not is_promised and below(token, proposer, promise_token, promise_proposer) then",
                    "if false then",
                ),
                Mutant::AcceptRaisesNoPromise => (
                    Batch,
                    "store(slot, head ..",
                    "local was = raw and { unpack_limit(raw, 2, 0) } or { 0, 0, NO_PROPOSER }
                    head = cmsgpack.pack(was[2], was[3]) .. string.sub(head, 1 + unpack_limit(head, 2, 0), -1)
                    store(slot, head ..",
                ),
                Mutant::StampsFromTheFuture => {
                    (Batch, "return since > now_us and now_us or since", "return since")
                }
                Mutant::GateOpen => {
                    (Batch, "if own_list == '' or list_vid ~= own_list then", "if own_list == '' then")
                }
                Mutant::ServesWithoutMemory => (Batch, "if memory == '' then", "if false then"),
                Mutant::PrepareByBallot => (
                    Batch,
                    "if token > promised then",
                    "if below(promised, promised_to, token, proposer) then",
                ),
                Mutant::FloorIgnored => (Batch, "return token <= forgotten", "return false"),
                Mutant::FoundUnchecked => (
                    Batch,
                    "if list[VID] ~= vid or not promised or node[NODE_MEMORY] ~= '' then",
                    "if false then",
                ),
                Mutant::RestartUnnoticed => (Hello, "and node[5] ~= run_id then", "and false then"),
                Mutant::StampsInheritTime => (
                    Batch,
                    "return name .. (now_as_digits or digits_of_now())",
                    "return name .. (not at and held ~= '' and string.sub(held, 18, 33) or digits_of_now())",
                ),
                Mutant::StampsRestart => {
                    (Batch, "if not_ahead(tonumber(digits)) ~= now_us then", "if false then")
                }
                Mutant::SoftPreparePromises => {
                    (Batch, "return { HELD, raw }", "return { PROMISED, raw, forgotten }")
                }
                Mutant::TokensFarAhead => (Batch, "local last_token = (", "local last_token = 1e300 + ("),
                Mutant::KeepsOldData => (Batch, "= WIPING, '0', ''", "= MERGING, '0', ''"),
                Mutant::BegunTwice => (Batch, " or node[NODE_BEGUN] == memory then", " then"),
                Mutant::BegunUnderAnyList => (Batch, "if own_list ~= vid or", "if"),
                Mutant::MergeAfterEnd => (
                    Batch,
                    "node[NODE_MEMORY] ~= memory or node[NODE_PHASE] == SERVING or is_over()",
                    "node[NODE_MEMORY] ~= memory or is_over()",
                ),
                Mutant::MergeForgetsFloor => (Batch, "raise_floor(operation[3], operation[4])", ""),
                Mutant::MergeForgetsPromise => {
                    (Batch, "ipairs({ own or theirs, theirs })", "ipairs({ own })")
                }
                Mutant::MergeUnmarked => (Batch, "record[COPIED] = 1", "record[COPIED] = 0"),
                Mutant::MergeKeepsTimes => (Batch, "record[STAMPS] = started_anew(record[STAMPS])", ""),
                Mutant::ServesWhileJoining => (Batch, "if phase ~= SERVING then", "if false then"),
                Mutant::ForgetsWithoutFloor => {
                    (Batch, "raise_floor(record[PROMISE_TOKEN], record[PROMISE_PROPOSER])", "")
                }
                Mutant::ForgetsChanged => (
                    Batch,
                    "if same and key ~= MEMBERS and record[PROMISE_TOKEN] <= promise then",
                    "if record and key ~= MEMBERS then",
                ),
                _ => return None,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeIndex, ProposerId};
    use crate::node::{Identity, embedded, script};

    #[test]
    fn every_mutant_has_a_name_of_its_own_and_a_bit() {
        assert!(Mutant::ALL.len() <= 128, "one bit each");
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::by_name(mutant.name()), Some(*mutant));
            assert!(mutant.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{mutant}");
        }
        assert_eq!(Mutant::by_name("none-of-them"), None);
    }

    #[test]
    fn a_switch_holds_until_its_guard_is_dropped_and_on_its_own_thread() {
        let (one, other) = (Mutant::GateOpen, Mutant::FloorIgnored);
        let outer = switch_on(one);
        {
            let _again = switch_on(one);
            let _other = switch_on(other);
            assert!(is_on(one) && is_on(other));
            assert!(!std::thread::spawn(move || is_on(one)).join().unwrap());
        }
        assert!(is_on(one) && !is_on(other), "the outer guard is still there");
        drop(outer);
        assert!(!is_on(one));
    }

    #[test]
    fn every_snippet_is_in_its_script_once_and_leaves_a_script_that_runs() {
        let identity = Identity { cluster: "blue".into(), nodes: 3, daemon: ProposerId(1) };
        let texts = || (script::batch(&identity, NodeIndex(0)), script::hello(&identity, NodeIndex(0)));
        let plain = texts();
        for mutant in Mutant::ALL.iter().filter(|mutant| mutant.swap().is_some()) {
            let _on = switch_on(*mutant);
            let mutated = texts();
            assert_ne!(plain, mutated, "{mutant}");
            for text in [mutated.0, mutated.1] {
                // A batch of nothing; the handshake takes anything.
                assert!(embedded::eval(&text, &[0xa0, 0, 0, 0]).is_ok(), "{mutant}");
            }
        }
        assert_eq!(plain, texts(), "all are back");
    }
}
