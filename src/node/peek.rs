//! A look without the script: what a server is asked, and how its reply is judged.
//!
//! A read changes nothing, so it needs no script, and a server shows stored values for a tenth of what the script takes to.
//! The node record, the record of the member list and the records in question are shown by one MGET, so all are of one
//! moment. TIME is asked before it on the same connection and so is not past that moment: no age is overstated. SCRIPT
//! EXISTS, asked between them, proves what an EVALSHA that works does: that some daemon has inspected this run of the server
//! ([`super::handshake`]). The gate is that of the scripts (`lua/gate.lua`), kept here.
//!
//! What MGET does not show counts as absent, also where something stands under the key that is no string.

use std::sync::Arc;

use bytes::Bytes;

use super::Identity;
use super::handshake::recorded;
use super::keyspace::{NODE_KEY, RECORD_PREFIX};
use super::operation::{Answer, Looked, RegisterKey};
use super::wire::{BatchReply, Malformed, decode_record, show};
use crate::ids::NodeIndex;
use crate::token::Ballot;

/// What is asked: the keys of the node record, of the list's, and of some registers'. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question(Arc<[Bytes]>);

/// How many keys come before the registers'.
const OWN_KEYS: usize = 2;

/// What a server showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Its clock before it showed them, in microseconds of Unix time.
    pub now_us: u64,
    /// In the order of the question.
    pub values: Vec<Option<Bytes>>,
}

impl Question {
    /// About these registers.
    pub fn about(registers: &[RegisterKey]) -> Self {
        let own = [RegisterKey::members()];
        let records =
            own.iter().chain(registers).map(|key| [RECORD_PREFIX.as_bytes(), key.as_bytes()].concat());
        Self(std::iter::once(NODE_KEY.into()).chain(records.map(Bytes::from)).collect())
    }

    /// The keys as the server has them.
    pub fn keys(&self) -> &[Bytes] {
        &self.0
    }

    /// How many registers it is about.
    pub fn registers(&self) -> usize {
        self.0.len() - OWN_KEYS
    }

    /// What it comes to for a daemon that goes by the list `list`: as if the script had been run with one operation.
    ///
    /// # Errors
    /// [`Malformed`] for what no server of ours shows.
    pub fn judge(
        &self,
        identity: &Identity,
        index: NodeIndex,
        list: Ballot,
        peeked: &Peeked,
    ) -> Result<BatchReply, Malformed> {
        let Peeked { now_us, values } = peeked;
        if values.len() != self.0.len() {
            return Err(Malformed::VALUES);
        }
        let Some(record) = &values[0] else { return Ok(BatchReply::NoRecord) };
        let Ok(record) = recorded(identity, index, record) else { return Ok(BatchReply::Foreign) };
        let own = match &values[1] {
            Some(own) => decode_record(own, *now_us)?.vid,
            None => Ballot::ZERO,
        };
        let answer = if own == Ballot::ZERO || own != list {
            None
        } else if record.memory.is_none() || !record.serving {
            Some(Answer::NotServing)
        } else {
            let rows = values[OWN_KEYS..].iter().map(|raw| raw.as_ref().map(show).transpose());
            Some(Answer::Looked(Looked { now_us: *now_us, rows: rows.collect::<Result<_, _>>()? }))
        };
        let (memory, now_us, writes) = (record.memory, *now_us, None);
        Ok(BatchReply::Done { memory, list: own, now_us, answers: vec![answer], writes })
    }
}
