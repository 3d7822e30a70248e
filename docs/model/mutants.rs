//! What can be switched off, one mechanism each. A model that finds nothing wrong says little until it is shown what
//! it would find.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A node accepts below its promise.
    AcceptIgnoresPromise,
    /// A node acts whatever list the batch names.
    NoGate,
    /// A daemon goes by a list that one node holds.
    GoesByUncommittedList,
    /// Memory ids are neither compared nor missed: a restarted node serves on.
    MemoryNotChecked,
    /// `joining → member` without waiting for the copy.
    PromotedEarly,
    /// A copy from one source is thought complete.
    CopiedFromOne,
    /// The copy's reads begin before the list with `joining` was read as committed.
    CopiedTooSoon,
    /// `begin_join` leaves the old data.
    KeepsOldData,
    /// A merge is taken after `end_join`.
    MergedAfterEnd,
    /// `begin_join` arrives again, and acts again.
    BegunTwice,
    /// `begin_join` arrives again, and acts if the node does not have that memory.
    BegunAfterRestart,
    /// A copied record counts like an accepted one.
    CopiedCounts,
    /// "The same accept again" goes for a copied record too.
    CopiedAnswersAgain,
    /// A merge does not raise the promise.
    MergeForgetsPromise,
    /// A joining node takes live prepares and accepts.
    LiveWhileJoining,
    /// A retry applies its change again without looking.
    NoRetryRule,
    /// The floor refuses nothing.
    NoFloor,
    /// A merge does not carry the floor.
    MergeForgetsFloor,
    /// q members are enough to forget.
    ForgottenByQuorum,
    /// Forgetting goes on while a node is joining.
    ForgottenWhileJoining,
    /// The retry of a change that began with an absent record does not look at floors.
    RetryIgnoresFloor,
}
