//! Nothing is left behind: when all clients are gone, no daemon keeps waiters, tasks or changes for them, and no register
//! says that anybody holds a lock or waits for one.

/// What one daemon still has, after all clients have gone and all leases and places have aged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Which daemon.
    pub daemon: u32,
    /// Waiters.
    pub waiters: usize,
    /// Tasks beyond those that it has while nobody calls.
    pub tasks: usize,
    /// Locks that its list shows.
    pub listed: Vec<String>,
}

/// Judges what is left.
///
/// # Errors
/// What should be gone.
pub fn judge(remaining: &[Remaining]) -> Result<(), String> {
    let clean = |r: &&Remaining| r.waiters == 0 && r.tasks == 0 && r.listed.is_empty();
    match remaining.iter().find(|remaining| !clean(remaining)) {
        None => Ok(()),
        Some(Remaining { daemon, waiters, tasks, listed }) => Err(format!(
            "daemon {daemon} has {waiters} waiters and {tasks} tasks left when all clients have gone, and lists {listed:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_left_is_named() {
        let clean = Remaining { daemon: 1, waiters: 0, tasks: 0, listed: vec![] };
        assert_eq!(judge(&[clean.clone(), clean.clone()]), Ok(()));
        assert!(judge(&[clean.clone(), Remaining { tasks: 1, ..clean.clone() }]).is_err());
        assert!(judge(&[Remaining { listed: vec!["n0".into()], ..clean }]).unwrap_err().contains("n0"));
    }
}
