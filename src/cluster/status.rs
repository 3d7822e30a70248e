//! [`Status`]: the cluster as this daemon sees it, and what follows from that. Pure.

use std::sync::Arc;
use std::time::Duration;

use crate::ids::{NodeIndex, ProposerId};
use crate::members::{Event, JoinProgress, NodeNotes, State, View};
use crate::node::NodeState;
use crate::node::batch::{LastReply, memory_of};
use crate::quorum::ClusterSize;

/// The cluster as this daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// N and q.
    pub size: ClusterSize,
    /// How many nodes count.
    pub counting: usize,
    /// A quorum counts.
    pub serves: bool,
    /// New locks are granted too; false while a founding or a recovery has them wait.
    pub grants: bool,
    /// What may fail besides what has failed already.
    pub tolerates: Tolerance,
    /// All of that in a sentence for people.
    pub summary: String,
    /// Every node, by index.
    pub nodes: Vec<NodeStatus>,
    /// What has happened, oldest first.
    pub events: Vec<Event>,
    /// The daemon that looks.
    pub daemon: Arc<DaemonFacts>,
}

/// What may fail besides what has failed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerance {
    /// So many nodes that count may stop, and a quorum still serves.
    pub stops: usize,
    /// So many more nodes may lose their memory, and nothing acknowledged is lost; if those that can't be asked have kept
    /// theirs.
    pub memory_losses: usize,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its place in the configured list.
    pub index: NodeIndex,
    /// Where it is, without secrets.
    pub address: String,
    /// What the connection to it is.
    pub connection: Connection,
    /// What the member list says of it, if one has been read.
    pub listed: Option<State>,
    /// Its answers count.
    pub counts: bool,
    /// Why they do not, in words.
    pub problem: Option<String>,
    /// It has the memory that the list names; `None` while that can't be known.
    pub has_listed_memory: Option<bool>,
    /// Its join, if one is under way.
    pub join: Option<JoinProgress>,
    /// Registers that it misses a change of.
    pub missed: u64,
    /// What was measured; `None` while it is not connected or has not answered yet.
    pub figures: Option<Figures>,
    /// The server's version, while it is connected.
    pub version: Option<Arc<str>>,
}

/// What a connection to a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Not connected.
    Unreachable,
    /// Connected to what must not be used.
    Refused,
    /// Connected, and fit.
    Ready,
}

/// What changes from answer to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// From question to answer.
    pub round_trip: Duration,
    /// How far the node's clock is ahead of this machine's, in microseconds; off by at most half the round trip, and the
    /// millisecond to which this machine's clock is read.
    pub clock_offset_us: i64,
    /// When, in milliseconds of Unix time by this machine's clock.
    pub measured_unix_ms: u64,
}

/// What does not change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonFacts {
    /// The cluster's name.
    pub cluster: String,
    /// Its version.
    pub version: &'static str,
    /// This run of it.
    pub proposer: ProposerId,
    /// When it started, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// Its settings by name, without secrets.
    pub settings: Vec<(String, String)>,
}

/// One node as the daemon's parts have it.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Its place.
    pub index: NodeIndex,
    /// Where it is, without secrets.
    pub address: String,
    /// The connection.
    pub state: NodeState,
    /// The last reply, of whatever run.
    pub last: Option<LastReply>,
    /// It is a member and connected with the memory that the list names.
    pub counts: bool,
    /// From the board.
    pub notes: NodeNotes,
}

impl Status {
    /// Puts together what was seen of all nodes, in order.
    pub fn new(
        size: ClusterSize,
        view: Option<&View>,
        sightings: Vec<Sighting>,
        events: Vec<Event>,
        daemon: Arc<DaemonFacts>,
    ) -> Self {
        assert_eq!(sightings.len(), size.nodes(), "every node is seen somehow");
        let nodes: Vec<_> = sightings.into_iter().map(|seen| NodeStatus::new(seen, view)).collect();
        let counting = nodes.iter().filter(|node| node.counts).count();
        let serves = counting >= size.quorum();
        let grants = serves && view.is_some_and(|view| view.grants);
        let tolerates = Tolerance::of(size, &nodes);
        let mut status =
            Self { size, counting, serves, grants, tolerates, summary: String::new(), nodes, events, daemon };
        status.summary = status.sum_up(view);
        status
    }

    /// Whether there is more to tell than other figures.
    pub fn differs_from(&self, last: &Status) -> bool {
        self.without_figures() != last.without_figures()
    }

    fn without_figures(&self) -> Status {
        let mut status = self.clone();
        status.nodes.iter_mut().for_each(|node| node.figures = None);
        status
    }

    fn sum_up(&self, view: Option<&View>) -> String {
        let (nodes, quorum) = (self.size.nodes(), self.size.quorum());
        let Some(view) = view else {
            let ready = self.nodes.iter().filter(|node| node.connection == Connection::Ready).count();
            return format!(
                "not serving: no member list has been read yet; {ready} of {nodes} nodes are connected"
            );
        };
        let count =
            format!("{} of {nodes} nodes count and {quorum} {}", self.counting, are(quorum, "needed"));
        if !self.serves {
            return format!("not serving: {count}");
        }
        let wait = match self.grants {
            true => String::new(),
            false => format!(
                "; no new lock is granted until {} s have passed since the founding or recovery",
                view.list.ttl_max().as_secs()
            ),
        };
        let is_silent =
            |node: &NodeStatus| node.listed == Some(State::Member) && node.has_listed_memory.is_none();
        let silent = self.nodes.iter().any(is_silent);
        format!("serving: {count}; {}{wait}", self.tolerates.in_words(silent))
    }
}

impl Tolerance {
    /// q nodes must count for service. What was acknowledged is on q nodes or more of those that were members then, so that
    /// it is safe as long as fewer than q have lost it.
    fn of(size: ClusterSize, nodes: &[NodeStatus]) -> Self {
        let counting = nodes.iter().filter(|node| node.counts).count();
        let lost =
            |node: &&NodeStatus| node.listed != Some(State::Member) || node.has_listed_memory == Some(false);
        let lost = nodes.iter().filter(lost).count();
        Self {
            stops: counting.saturating_sub(size.quorum()),
            memory_losses: (size.quorum() - 1).saturating_sub(lost),
        }
    }

    /// With the condition that what is `silent` puts on it.
    fn in_words(self, silent: bool) -> String {
        let may = |count: usize, what: &str| match count {
            0 => format!("none may {what}"),
            1 => format!("1 more may {what}"),
            count => format!("{count} more may {what}"),
        };
        let Self { stops, memory_losses } = self;
        if stops == memory_losses {
            return may(stops, "stop or lose its memory");
        }
        let condition = match silent && memory_losses > 0 {
            true => " if those that can't be asked kept theirs, which a restart does not",
            false => "",
        };
        format!("{}, {}{condition}", may(stops, "stop"), may(memory_losses, "lose its memory"))
    }
}

/// `is needed`, `are needed`.
fn are(count: usize, what: &str) -> String {
    if count == 1 { format!("is {what}") } else { format!("are {what}") }
}

impl NodeStatus {
    fn new(seen: Sighting, view: Option<&View>) -> Self {
        let entry = view.and_then(|view| view.list.entry(seen.index));
        let listed = entry.map(|entry| entry.state);
        let (connection, welcome, broken) = match seen.state {
            NodeState::Unreachable(reason) => (Connection::Unreachable, None, Some(reason.to_string())),
            NodeState::Refused(refusal) => (Connection::Refused, None, Some(refusal.to_string())),
            NodeState::Ready(welcome) => (Connection::Ready, Some(welcome), None),
        };
        let last = seen.last.filter(|last| welcome.as_ref().is_some_and(|w| w.run_id == last.run_id));
        let memory = welcome.as_ref().map(|welcome| memory_of(welcome, last.as_ref()));
        let has_listed_memory = memory.zip(entry).map(|(memory, entry)| memory == Some(entry.memory));
        let problem = broken.or_else(|| {
            let words = (!seen.counts).then(|| lack(listed, has_listed_memory));
            words.map(str::to_owned)
        });
        Self {
            index: seen.index,
            address: seen.address,
            connection,
            listed,
            counts: seen.counts,
            problem,
            has_listed_memory,
            join: seen.notes.join,
            missed: seen.notes.missed,
            figures: last.as_ref().map(Figures::of),
            version: welcome.map(|welcome| welcome.version),
        }
    }
}

/// What a node lacks that is connected and does not count.
fn lack(listed: Option<State>, has_listed_memory: Option<bool>) -> &'static str {
    match (listed, has_listed_memory) {
        (None, _) => "the member list has not been read yet",
        (Some(State::Joining), _) => "it lost its memory and does not count until it has joined again",
        (Some(State::Out), _) => "it was out of reach for long and does not count until it has joined again",
        (Some(State::Member), Some(false) | None) => {
            "it lost its memory (a restart?) and does not count until it has joined again"
        }
        // The connection changed while it was looked at.
        (Some(State::Member), Some(true)) => "its connection has just changed",
    }
}

impl Figures {
    fn of(last: &LastReply) -> Self {
        let half_us = i128::try_from(last.round_trip.as_micros() / 2).unwrap_or(i128::MAX);
        let here_us = i128::from(last.here_ms) * 1_000 - half_us;
        let ahead_us = i128::from(last.node_us) - here_us;
        let clock_offset_us =
            i64::try_from(ahead_us).unwrap_or(if ahead_us < 0 { i64::MIN } else { i64::MAX });
        Self { round_trip: last.round_trip, clock_offset_us, measured_unix_ms: last.here_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MemoryId;
    use crate::members::{Entry, MemberList};
    use crate::node::handshake::Welcome;
    use crate::token::Ballot;

    const T: Duration = Duration::from_millis(4);

    fn facts() -> Arc<DaemonFacts> {
        Arc::new(DaemonFacts {
            cluster: "blue".into(),
            version: "0.1.0",
            proposer: ProposerId(7),
            started_unix_ms: 1,
            settings: Vec::new(),
        })
    }

    fn memory(index: u8) -> MemoryId {
        MemoryId(100 + u64::from(index))
    }

    fn view(states: &[State]) -> View {
        let entry = |(index, state): (u8, &State)| Entry { state: *state, memory: memory(index) };
        let entries = (0..).zip(states).map(entry).collect();
        let list = MemberList {
            entries,
            founding: false,
            ttl_max_ms: 300_000,
            recovery: None,
            loss: crate::members::Loss::None,
            before: Vec::new(),
        };
        View { vid: Ballot::ZERO, list, grants: true }
    }

    /// A node as a letter: `+` ready with its memory, `-` unreachable, `x` refused, `?` ready without its memory.
    fn sighting(index: u8, letter: char, view: Option<&View>) -> Sighting {
        let index = NodeIndex(index);
        let welcome = |memory| {
            let run_id = "r".into();
            NodeState::Ready(Welcome { version: "7.2".into(), run_id, memory })
        };
        let state = match letter {
            '+' => welcome(Some(memory(index.0))),
            '?' => welcome(None),
            'x' => NodeState::Refused(crate::node::handshake::Refusal::ClusterMode),
            _ => NodeState::Unreachable("Connection refused".into()),
        };
        let counts = letter == '+' && view.is_some_and(|view| view.counts(index, Some(memory(index.0))));
        let address = format!("redis://n{index}:6379");
        Sighting { index, address, state, last: None, counts, notes: NodeNotes::default() }
    }

    fn status(letters: &str, view: Option<&View>) -> Status {
        let size = ClusterSize::new(letters.len()).unwrap();
        let sightings = (0..).zip(letters.chars()).map(|(index, letter)| sighting(index, letter, view));
        Status::new(size, view, sightings.collect(), Vec::new(), facts())
    }

    #[test]
    fn what_may_still_fail_follows_from_what_has() {
        use State::{Joining as J, Member as M, Out as O};
        for (letters, states, counting, serves, stops, losses) in [
            ("+", &[M][..], 1, true, 0, 0),
            ("+++", &[M, M, M], 3, true, 1, 1),
            ("++-", &[M, M, M], 2, true, 0, 1),
            ("++x", &[M, M, M], 2, true, 0, 1),
            ("++?", &[M, M, M], 2, true, 0, 0),
            ("+++", &[M, M, J], 2, true, 0, 0),
            ("++-", &[M, M, O], 2, true, 0, 0),
            ("+--", &[M, M, M], 1, false, 0, 1),
            ("---", &[M, M, M], 0, false, 0, 1),
            ("+??", &[M, M, M], 1, false, 0, 0),
            ("+++++", &[M, M, M, M, M], 5, true, 2, 2),
            ("++++-", &[M, M, M, M, M], 4, true, 1, 2),
            ("++++-", &[M, M, M, J, M], 3, true, 0, 1),
            ("+++--", &[M, M, M, J, O], 3, true, 0, 0),
            ("+++++++", &[M, M, M, M, M, M, J], 6, true, 2, 2),
        ] {
            let found = status(letters, Some(&view(states)));
            let tolerates = Tolerance { stops, memory_losses: losses };
            assert_eq!((found.counting, found.serves), (counting, serves), "{letters} {states:?}");
            assert_eq!(found.tolerates, tolerates, "{letters} {states:?}");
        }
    }

    #[test]
    fn a_sentence_says_it_all() {
        use State::Member as M;
        let of = |letters: &str, view: Option<&View>| status(letters, view).summary;
        let three = view(&[M, M, M]);
        assert_eq!(
            of("+++", Some(&three)),
            "serving: 3 of 3 nodes count and 2 are needed; 1 more may stop or lose its memory"
        );
        assert_eq!(
            of("++-", Some(&three)),
            "serving: 2 of 3 nodes count and 2 are needed; none may stop, 1 more may lose its memory if those that can't be \
             asked kept theirs, which a restart does not"
        );
        let out = view(&[M, M, M, M, State::Out]);
        assert_eq!(
            of("++++-", Some(&out)),
            "serving: 4 of 5 nodes count and 3 are needed; 1 more may stop or lose its memory"
        );
        assert_eq!(of("+--", Some(&three)), "not serving: 1 of 3 nodes count and 2 are needed");
        assert_eq!(
            of("++-", None),
            "not serving: no member list has been read yet; 2 of 3 nodes are connected"
        );
        let waiting = View { grants: false, ..view(&[M]) };
        let found = status("+", Some(&waiting));
        assert!(found.serves && !found.grants);
        assert_eq!(
            found.summary,
            "serving: 1 of 1 nodes count and 1 is needed; none may stop or lose its memory; no new lock is granted until \
             300 s have passed since the founding or recovery"
        );
    }

    #[test]
    fn each_node_that_does_not_count_says_why() {
        use State::{Joining, Member, Out};
        let view = view(&[Member, Member, Member, Joining, Out]);
        let found = status("+-?++", Some(&view));
        let problems: Vec<_> = found.nodes.iter().map(|node| node.problem.as_deref()).collect();
        assert_eq!(problems[0], None);
        assert_eq!(problems[1], Some("Connection refused"));
        assert!(problems[2].unwrap().contains("a restart?"), "{problems:?}");
        assert!(problems[3].unwrap().contains("until it has joined again"), "{problems:?}");
        assert!(problems[4].unwrap().contains("out of reach"), "{problems:?}");
        let memories: Vec<_> = found.nodes.iter().map(|node| node.has_listed_memory).collect();
        assert_eq!(memories, [Some(true), None, Some(false), Some(true), Some(true)]);
        let refused = status("x", Some(&view)).nodes.remove(0);
        assert!(refused.problem.unwrap().contains("cluster mode"));
        assert_eq!(refused.connection, Connection::Refused);
        assert!(status("+", None).nodes[0].problem.as_ref().unwrap().contains("member list"));
    }

    fn reply(run_id: &str, node_us: u64) -> LastReply {
        let (run_id, memory) = (run_id.into(), Some(memory(0)));
        LastReply { run_id, memory, node_us, here_ms: 1_000, round_trip: T, writes: 0 }
    }

    #[test]
    fn a_clock_is_measured_at_the_middle_of_the_round_trip() {
        // Here it was 998 ms when the node looked at its clock.
        assert_eq!(Figures::of(&reply("r", 998_000)).clock_offset_us, 0);
        assert_eq!(Figures::of(&reply("r", 1_998_500)).clock_offset_us, 1_000_500);
        assert_eq!(Figures::of(&reply("r", 0)).clock_offset_us, -998_000);
        assert_eq!(Figures::of(&reply("r", u64::MAX)).clock_offset_us, i64::MAX);
    }

    #[test]
    fn figures_and_memory_of_an_earlier_run_say_nothing() {
        let view = view(&[State::Member]);
        let of = |last| {
            let seen = Sighting { last: Some(last), ..sighting(0, '?', Some(&view)) };
            NodeStatus::new(seen, Some(&view))
        };
        let (earlier, same) = (of(reply("q", 0)), of(reply("r", 0)));
        assert_eq!((earlier.figures, earlier.has_listed_memory), (None, Some(false)));
        assert!(same.figures.is_some());
        assert_eq!(same.has_listed_memory, Some(true), "it was given after the handshake");
    }

    #[test]
    fn other_figures_are_no_news() {
        let view = view(&[State::Member]);
        let with = |last| {
            let seen = Sighting { last, ..sighting(0, '+', Some(&view)) };
            Status::new(ClusterSize::new(1).unwrap(), Some(&view), vec![seen], Vec::new(), facts())
        };
        let status = with(None);
        assert!(!with(Some(reply("r", 5))).differs_from(&status));
        let mut other = status.clone();
        other.nodes[0].missed = 1;
        assert!(other.differs_from(&status));
    }
}
