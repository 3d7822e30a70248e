//! Why calls are refused and fail, as clients branch on it; what is certain then; and when to repeat.

use std::time::Duration;

use tonic::Code;

/// Why a call was refused or failed, as clients branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A name or prefix breaks its rules.
    InvalidName,
    /// An owner breaks its rules.
    InvalidOwner,
    /// A TTL is malformed or out of range.
    InvalidTtl,
    /// A time to wait is malformed or negative.
    InvalidWaitTimeout,
    /// A lease id is not 32 hexadecimal digits.
    InvalidLeaseId,
    /// Attributes are too many, or have an empty key or a control character.
    InvalidAttributes,
    /// A page size is negative.
    InvalidPageSize,
    /// A page token is not one that this API made for this list.
    InvalidPageToken,
    /// A fencing token is out of range.
    InvalidFencingToken,
    /// A hold limit is malformed or not above zero.
    InvalidHoldLimit,
    /// A disconnect policy is unknown.
    InvalidDisconnectPolicy,
    /// An interval is malformed or negative.
    InvalidInterval,
    /// A value is not given.
    InvalidValue,
    /// A precondition is given as false.
    InvalidPrecondition,
    /// A version is out of range.
    InvalidVersion,
    /// A request id is not a UUID.
    InvalidRequestId,
    /// A batch asks for the values before.
    InvalidReturnPrevious,
    /// The id of an item breaks its rules.
    InvalidItemId,
    /// A delay, a back-off or a time to remember is malformed or out of range.
    InvalidDelay,
    /// A number of items or attempts is out of range.
    InvalidCount,
    /// The state of an item is unknown or can't be asked for, or none is given.
    InvalidState,
    /// A message of a stream is not one that belongs there.
    InvalidCommand,
    /// The request is not a message of this API.
    InvalidMessage,
    /// A batch sets a key twice.
    DuplicateKey,
    /// A batch puts an item twice.
    DuplicateItem,
    /// Something is larger than it may be.
    TooLarge,
    /// It is not said who calls.
    NoCredentials,
    /// Nobody has these credentials.
    UnknownCredentials,
    /// The certificate of the connection is not good any more.
    CertificateLapsed,
    /// Who calls may not do this.
    AccessDenied,
    /// The lease is not the lock's any more.
    LeaseLost,
    /// The lock is not held under the fencing token given.
    TokenNotHeld,
    /// What a write asks to be there is not.
    PreconditionFailed,
    /// The value to count with is no number.
    NotAnInteger,
    /// The sum does not fit.
    IntegerOverflow,
    /// The key was written under a higher token of the lock.
    Fenced,
    /// The request id names another request.
    RequestIdReused,
    /// There is no queue of that name.
    NoSuchQueue,
    /// There is no such item in the queue.
    NoSuchItem,
    /// Too few nodes answer.
    NoQuorum,
    /// No lock may be granted yet after a founding or a recovery.
    Recovering,
    /// The daemon is stopping.
    ShuttingDown,
    /// Sent to the nodes and not confirmed.
    OutcomeUnknown,
    /// Too many wait in line.
    TooManyWaiters,
    /// The queue has as many items as it may.
    QueueFull,
    /// A key is fenced by as many locks as it may.
    TooManyFences,
    /// A watch of a prefix has more keys than it may.
    TooManyKeys,
    /// The values before this one fill the answer.
    AnswerFull,
    /// Too many changes wait for one record.
    Overloaded,
    /// Too many calls are in flight.
    RateLimited,
    /// The call's deadline passed.
    DeadlineExceeded,
    /// A record was written by a newer version, or is damaged.
    UnreadableRecord,
    /// The daemon's clock is wrong.
    ClockTooFarAhead,
    /// The daemon broke a promise to itself.
    InternalError,
}

/// What is certain about the state of the cluster when a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing was changed by the call and nothing will be.
    Nothing,
    /// The change may have happened, may still happen, or may never.
    Unknown,
}

/// What a repeat of a call does whose first attempt may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The same as the first attempt: the call named its owner, its lease or its token, or only reads.
    Harmless,
    /// Perhaps the same again: nothing in the call says that it is the same.
    Harmful,
}

impl Reason {
    /// All of them, in the order of `docs/errors.md`.
    pub const ALL: [Reason; 54] = [
        Reason::InvalidName,
        Reason::InvalidOwner,
        Reason::InvalidTtl,
        Reason::InvalidWaitTimeout,
        Reason::InvalidLeaseId,
        Reason::InvalidAttributes,
        Reason::InvalidPageSize,
        Reason::InvalidPageToken,
        Reason::InvalidFencingToken,
        Reason::InvalidHoldLimit,
        Reason::InvalidDisconnectPolicy,
        Reason::InvalidInterval,
        Reason::InvalidValue,
        Reason::InvalidPrecondition,
        Reason::InvalidVersion,
        Reason::InvalidRequestId,
        Reason::InvalidReturnPrevious,
        Reason::InvalidItemId,
        Reason::InvalidDelay,
        Reason::InvalidCount,
        Reason::InvalidState,
        Reason::InvalidCommand,
        Reason::InvalidMessage,
        Reason::DuplicateKey,
        Reason::DuplicateItem,
        Reason::TooLarge,
        Reason::NoCredentials,
        Reason::UnknownCredentials,
        Reason::CertificateLapsed,
        Reason::AccessDenied,
        Reason::LeaseLost,
        Reason::TokenNotHeld,
        Reason::PreconditionFailed,
        Reason::NotAnInteger,
        Reason::IntegerOverflow,
        Reason::Fenced,
        Reason::RequestIdReused,
        Reason::NoSuchQueue,
        Reason::NoSuchItem,
        Reason::NoQuorum,
        Reason::Recovering,
        Reason::ShuttingDown,
        Reason::OutcomeUnknown,
        Reason::TooManyWaiters,
        Reason::QueueFull,
        Reason::TooManyFences,
        Reason::TooManyKeys,
        Reason::AnswerFull,
        Reason::Overloaded,
        Reason::RateLimited,
        Reason::DeadlineExceeded,
        Reason::UnreadableRecord,
        Reason::ClockTooFarAhead,
        Reason::InternalError,
    ];

    /// As it stands in `google.rpc.ErrorInfo`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::InvalidName => "INVALID_NAME",
            Reason::InvalidOwner => "INVALID_OWNER",
            Reason::InvalidTtl => "INVALID_TTL",
            Reason::InvalidWaitTimeout => "INVALID_WAIT_TIMEOUT",
            Reason::InvalidLeaseId => "INVALID_LEASE_ID",
            Reason::InvalidAttributes => "INVALID_ATTRIBUTES",
            Reason::InvalidPageSize => "INVALID_PAGE_SIZE",
            Reason::InvalidPageToken => "INVALID_PAGE_TOKEN",
            Reason::InvalidFencingToken => "INVALID_FENCING_TOKEN",
            Reason::InvalidHoldLimit => "INVALID_HOLD_LIMIT",
            Reason::InvalidDisconnectPolicy => "INVALID_DISCONNECT_POLICY",
            Reason::InvalidInterval => "INVALID_INTERVAL",
            Reason::InvalidValue => "INVALID_VALUE",
            Reason::InvalidPrecondition => "INVALID_PRECONDITION",
            Reason::InvalidVersion => "INVALID_VERSION",
            Reason::InvalidRequestId => "INVALID_REQUEST_ID",
            Reason::InvalidReturnPrevious => "INVALID_RETURN_PREVIOUS",
            Reason::InvalidItemId => "INVALID_ITEM_ID",
            Reason::InvalidDelay => "INVALID_DELAY",
            Reason::InvalidCount => "INVALID_COUNT",
            Reason::InvalidState => "INVALID_STATE",
            Reason::InvalidCommand => "INVALID_COMMAND",
            Reason::InvalidMessage => "INVALID_MESSAGE",
            Reason::DuplicateKey => "DUPLICATE_KEY",
            Reason::DuplicateItem => "DUPLICATE_ITEM",
            Reason::TooLarge => "TOO_LARGE",
            Reason::NoCredentials => "NO_CREDENTIALS",
            Reason::UnknownCredentials => "UNKNOWN_CREDENTIALS",
            Reason::CertificateLapsed => "CERTIFICATE_LAPSED",
            Reason::AccessDenied => "ACCESS_DENIED",
            Reason::LeaseLost => "LEASE_LOST",
            Reason::TokenNotHeld => "TOKEN_NOT_HELD",
            Reason::PreconditionFailed => "PRECONDITION_FAILED",
            Reason::NotAnInteger => "NOT_AN_INTEGER",
            Reason::IntegerOverflow => "INTEGER_OVERFLOW",
            Reason::Fenced => "FENCED",
            Reason::RequestIdReused => "REQUEST_ID_REUSED",
            Reason::NoSuchQueue => "NO_SUCH_QUEUE",
            Reason::NoSuchItem => "NO_SUCH_ITEM",
            Reason::NoQuorum => "NO_QUORUM",
            Reason::Recovering => "RECOVERING",
            Reason::ShuttingDown => "SHUTTING_DOWN",
            Reason::OutcomeUnknown => "OUTCOME_UNKNOWN",
            Reason::TooManyWaiters => "TOO_MANY_WAITERS",
            Reason::QueueFull => "QUEUE_FULL",
            Reason::TooManyFences => "TOO_MANY_FENCES",
            Reason::TooManyKeys => "TOO_MANY_KEYS",
            Reason::AnswerFull => "ANSWER_FULL",
            Reason::Overloaded => "OVERLOADED",
            Reason::RateLimited => "RATE_LIMITED",
            Reason::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Reason::UnreadableRecord => "UNREADABLE_RECORD",
            Reason::ClockTooFarAhead => "CLOCK_TOO_FAR_AHEAD",
            Reason::InternalError => "INTERNAL_ERROR",
        }
    }

    /// The code it travels under. Clients and proxies repeat UNAVAILABLE by themselves, so an unknown outcome has it
    /// only where that does no harm.
    pub fn code(self, repeat: Repeat) -> Code {
        match self {
            Reason::InvalidName
            | Reason::InvalidOwner
            | Reason::InvalidTtl
            | Reason::InvalidWaitTimeout
            | Reason::InvalidLeaseId
            | Reason::InvalidAttributes
            | Reason::InvalidPageSize
            | Reason::InvalidPageToken
            | Reason::InvalidFencingToken
            | Reason::InvalidHoldLimit
            | Reason::InvalidDisconnectPolicy
            | Reason::InvalidInterval
            | Reason::InvalidValue
            | Reason::InvalidPrecondition
            | Reason::InvalidVersion
            | Reason::InvalidRequestId
            | Reason::InvalidReturnPrevious
            | Reason::InvalidItemId
            | Reason::InvalidDelay
            | Reason::InvalidCount
            | Reason::InvalidState
            | Reason::InvalidCommand
            | Reason::InvalidMessage
            | Reason::DuplicateKey
            | Reason::DuplicateItem
            | Reason::TooLarge => Code::InvalidArgument,
            Reason::NoCredentials | Reason::UnknownCredentials | Reason::CertificateLapsed => {
                Code::Unauthenticated
            }
            Reason::AccessDenied => Code::PermissionDenied,
            Reason::LeaseLost
            | Reason::TokenNotHeld
            | Reason::PreconditionFailed
            | Reason::NotAnInteger
            | Reason::Fenced
            | Reason::RequestIdReused => Code::FailedPrecondition,
            Reason::IntegerOverflow => Code::OutOfRange,
            Reason::NoSuchQueue | Reason::NoSuchItem => Code::NotFound,
            Reason::NoQuorum | Reason::Recovering | Reason::ShuttingDown => Code::Unavailable,
            Reason::OutcomeUnknown => match repeat {
                Repeat::Harmless => Code::Unavailable,
                Repeat::Harmful => Code::Unknown,
            },
            Reason::TooManyWaiters
            | Reason::QueueFull
            | Reason::TooManyFences
            | Reason::TooManyKeys
            | Reason::AnswerFull
            | Reason::Overloaded
            | Reason::RateLimited => Code::ResourceExhausted,
            Reason::DeadlineExceeded => Code::DeadlineExceeded,
            // Not the client's fault and not passing by itself: an operator has to act.
            Reason::UnreadableRecord | Reason::ClockTooFarAhead | Reason::InternalError => Code::Internal,
        }
    }

    /// What is certain then. Stated here and nowhere else.
    pub fn effect(self) -> Effect {
        match self {
            // Refused before anything was sent.
            Reason::InvalidName
            | Reason::InvalidOwner
            | Reason::InvalidTtl
            | Reason::InvalidWaitTimeout
            | Reason::InvalidLeaseId
            | Reason::InvalidAttributes
            | Reason::InvalidPageSize
            | Reason::InvalidPageToken
            | Reason::InvalidFencingToken
            | Reason::InvalidHoldLimit
            | Reason::InvalidDisconnectPolicy
            | Reason::InvalidInterval
            | Reason::InvalidValue
            | Reason::InvalidPrecondition
            | Reason::InvalidVersion
            | Reason::InvalidRequestId
            | Reason::InvalidReturnPrevious
            | Reason::InvalidItemId
            | Reason::InvalidDelay
            | Reason::InvalidCount
            | Reason::InvalidState
            | Reason::InvalidCommand
            | Reason::InvalidMessage
            | Reason::DuplicateKey
            | Reason::DuplicateItem
            | Reason::TooLarge
            | Reason::NoCredentials
            | Reason::UnknownCredentials
            | Reason::CertificateLapsed
            | Reason::AccessDenied
            | Reason::TooManyWaiters
            | Reason::Overloaded
            | Reason::RateLimited
            | Reason::DeadlineExceeded
            | Reason::ShuttingDown => Effect::Nothing,
            // Read what there is, and changed nothing because of it.
            Reason::LeaseLost
            | Reason::TokenNotHeld
            | Reason::PreconditionFailed
            | Reason::NotAnInteger
            | Reason::IntegerOverflow
            | Reason::Fenced
            | Reason::RequestIdReused
            | Reason::NoSuchQueue
            | Reason::NoSuchItem
            | Reason::QueueFull
            | Reason::TooManyFences
            | Reason::TooManyKeys
            | Reason::AnswerFull
            | Reason::Recovering
            | Reason::UnreadableRecord
            | Reason::ClockTooFarAhead => Effect::Nothing,
            // No accept was sent.
            Reason::NoQuorum => Effect::Nothing,
            Reason::OutcomeUnknown | Reason::InternalError => Effect::Unknown,
        }
    }

    /// How long to wait before a repeat; `None` where a repeat of the same call does not help.
    pub(super) fn retry_after(self) -> Option<Duration> {
        match self {
            Reason::InvalidName
            | Reason::InvalidOwner
            | Reason::InvalidTtl
            | Reason::InvalidWaitTimeout
            | Reason::InvalidLeaseId
            | Reason::InvalidAttributes
            | Reason::InvalidPageSize
            | Reason::InvalidPageToken
            | Reason::InvalidFencingToken
            | Reason::InvalidHoldLimit
            | Reason::InvalidDisconnectPolicy
            | Reason::InvalidInterval
            | Reason::InvalidValue
            | Reason::InvalidPrecondition
            | Reason::InvalidVersion
            | Reason::InvalidRequestId
            | Reason::InvalidReturnPrevious
            | Reason::InvalidItemId
            | Reason::InvalidDelay
            | Reason::InvalidCount
            | Reason::InvalidState
            | Reason::InvalidCommand
            | Reason::InvalidMessage
            | Reason::DuplicateKey
            | Reason::DuplicateItem
            | Reason::TooLarge
            | Reason::NoCredentials
            | Reason::UnknownCredentials
            | Reason::CertificateLapsed
            | Reason::AccessDenied
            | Reason::LeaseLost
            | Reason::TokenNotHeld
            | Reason::PreconditionFailed
            | Reason::NotAnInteger
            | Reason::IntegerOverflow
            | Reason::Fenced
            | Reason::RequestIdReused
            | Reason::NoSuchQueue
            | Reason::NoSuchItem
            | Reason::TooManyFences
            | Reason::TooManyKeys
            | Reason::AnswerFull
            | Reason::DeadlineExceeded
            | Reason::UnreadableRecord
            | Reason::ClockTooFarAhead
            | Reason::InternalError => None,
            // Nodes that come back are noticed within about a second.
            Reason::NoQuorum | Reason::Recovering => Some(Duration::from_secs(1)),
            // Another daemon may be asked at once; this one will be gone.
            Reason::ShuttingDown => Some(Duration::from_millis(100)),
            Reason::OutcomeUnknown => Some(Duration::from_millis(200)),
            // Others have to leave, or to be done, first.
            Reason::TooManyWaiters | Reason::QueueFull => Some(Duration::from_secs(1)),
            Reason::Overloaded | Reason::RateLimited => Some(Duration::from_millis(500)),
        }
    }
}
