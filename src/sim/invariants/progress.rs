//! Everybody is served in the end: after the faults each client gets what it waits for, and comes to an end.

use std::collections::BTreeMap;

use crate::runtime::Moment;

/// What clients are about, and who has come to an end.
#[derive(Default)]
pub struct Progress {
    doing: BTreeMap<u32, (Moment, String)>,
}

impl Progress {
    /// A client that is to be served.
    pub fn begin(&mut self, client: u32) {
        self.doing.insert(client, (Moment::ZERO, "has not begun".to_owned()));
    }

    /// What a client does from now on.
    pub fn does(&mut self, client: u32, now: Moment, what: String) {
        if let Some(doing) = self.doing.get_mut(&client) {
            *doing = (now, what);
        }
    }

    /// A client has come to an end.
    pub fn end(&mut self, client: u32) {
        self.doing.remove(&client);
    }

    /// Whether all have.
    pub fn is_over(&self) -> bool {
        self.doing.is_empty()
    }

    /// Judges the end of a run.
    ///
    /// # Errors
    /// Who did not come to an end, and what it was about.
    pub fn judge(&self) -> Result<(), String> {
        if self.is_over() {
            return Ok(());
        }
        let stuck = self
            .doing
            .iter()
            .map(|(client, (since, what))| format!("client {client} since {since:?}: {what}"));
        Err(format!("not served after the faults were over: {}", stuck.collect::<Vec<_>>().join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    #[test]
    fn who_did_not_come_to_an_end_is_named() {
        let mut progress = Progress::default();
        progress.begin(1);
        progress.begin(2);
        progress.does(2, at(3), "waits for n0".to_owned());
        progress.end(1);
        let stuck = progress.judge().unwrap_err();
        assert!(stuck.contains("client 2 since 3s: waits for n0") && !stuck.contains("client 1"), "{stuck}");
        progress.end(2);
        assert_eq!(progress.judge(), Ok(()));
    }
}
