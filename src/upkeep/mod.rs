//! What a daemon does without being asked. For now the member list; what heals comes beside it.

pub mod membership;
