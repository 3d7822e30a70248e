//! [`Claimer`]: prepares the first ready items of a queue on all nodes, under one ballot (protocol, section 4). Pure.
//!
//! Each node chooses by its own index, so nodes may choose differently: where they have seen other puts and ends, and
//! where several daemons claim at once. What q nodes promised can be leased without another prepare.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::driver::{Action, Context, Machine, Word};
use crate::ids::{NodeIndex, ProposerId};
use crate::members::View;
use crate::node::operation::{Answer, ClaimRequest, Claimed, Operation, Record};
use crate::quorum::{self, ClusterSize, Tally};
use crate::token::{Ballot, Token};

/// How long it waits for the rest, where the nodes that answered have chosen differently.
const SETTLE: Duration = Duration::from_millis(20);

/// Promises that nodes gave for one register, outside a round of its own.
#[derive(Clone, Debug)]
pub struct Promised {
    /// The ballot.
    pub ballot: Ballot,
    /// Each node's record, with the promise in it.
    pub records: Vec<(NodeIndex, Record)>,
    /// The highest promise that any of them ever forgot.
    pub floor: Ballot,
    /// The list that they were given under.
    pub view: Arc<View>,
}

/// What a claim came to.
#[derive(Debug)]
pub struct Haul {
    /// Members of the queue's index and their promises, in the order of the queue. Fewer than q promises are no lease yet.
    pub items: Vec<(String, Promised)>,
    /// Until the next item is due, by the clocks of q nodes.
    pub next_due: Option<Duration>,
    /// Others claim from the same queue, and may have been promised the same items.
    pub contended: bool,
    /// The first of the nodes that answered.
    pub first: NodeIndex,
}

/// The answers of a claim, without the list that they were given under.
#[derive(Debug)]
pub struct Gathered {
    ballot: Ballot,
    size: ClusterSize,
    answers: Vec<(NodeIndex, Claimed)>,
}

/// The machine. Ends with `None` where fewer than q nodes answered.
#[derive(Debug)]
pub struct Claimer {
    request: ClaimRequest,
    tally: Tally,
    gathered: Gathered,
}

impl Claimer {
    /// A claim. The request's ballot is filled in.
    pub fn new(request: ClaimRequest, size: ClusterSize) -> Self {
        let gathered = Gathered { ballot: request.ballot, size, answers: Vec::new() };
        Self { request, tally: Tally::new(size), gathered }
    }

    fn look(&mut self, settled: bool) -> Action<Option<Gathered>> {
        match self.tally.verdict() {
            quorum::Verdict::Pending => Action::Wait(None),
            quorum::Verdict::Impossible => Action::Done(None),
            quorum::Verdict::Reached => {
                if self.tally.outstanding() > 0 && !settled && self.gathered.is_uneven() {
                    return Action::Wait(Some(SETTLE));
                }
                let empty = Gathered { answers: Vec::new(), ..self.gathered };
                Action::Done(Some(std::mem::replace(&mut self.gathered, empty)))
            }
        }
    }
}

impl Haul {
    /// Some items may be somebody else's, as nodes chose differently while others claimed.
    pub fn is_crowded(&self, size: ClusterSize) -> bool {
        self.contended && self.items.iter().any(|(_, promised)| promised.records.len() < size.quorum())
    }
}

impl Machine for Claimer {
    type Outcome = Option<Gathered>;

    fn start(&mut self, context: &Context<'_>) -> Action<Self::Outcome> {
        // The proposer is the daemon's own, and its clock gives the token.
        let proposer: ProposerId = self.request.ballot.proposer;
        self.request.ballot = Ballot { token: (context.tokens)(Token::ZERO), proposer };
        self.gathered.ballot = self.request.ballot;
        Action::Send(Operation::Claim(self.request.clone()))
    }

    fn on_word(&mut self, node: NodeIndex, word: Word, _: &Context<'_>) -> Action<Self::Outcome> {
        match word {
            Word::Answer(Answer::Claimed(claimed)) => {
                if self.tally.count(node, true) {
                    self.gathered.answers.push((node, claimed));
                }
            }
            Word::Answer(_) | Word::Refused | Word::Lost => {
                self.tally.count(node, false);
            }
        }
        self.look(false)
    }

    fn on_wake(&mut self, _: &Context<'_>) -> Action<Self::Outcome> {
        self.look(true)
    }

    fn on_resend(&mut self) {
        self.tally = Tally::new(self.gathered.size);
        self.gathered.answers.clear();
    }

    fn give_up(&mut self) -> Self::Outcome {
        None
    }
}

impl Gathered {
    /// What one node answered that was asked alone: nobody else is given that.
    pub fn of_one(ballot: Ballot, size: ClusterSize, node: NodeIndex, claimed: Claimed) -> Self {
        let claimed = Claimed { contended: false, ..claimed };
        Self { ballot, size, answers: vec![(node, claimed)] }
    }

    /// Whether some item has been promised by fewer than q of those that answered.
    fn is_uneven(&self) -> bool {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let members = self.answers.iter().flat_map(|(_, claimed)| &claimed.items);
        members.for_each(|(member, _)| *counts.entry(member).or_default() += 1);
        counts.values().any(|count| *count < self.size.quorum())
    }

    /// Under the list that the answers were given under.
    pub fn under(self, view: Arc<View>) -> Haul {
        let Self { ballot, size, answers } = self;
        let contended = answers.iter().any(|(_, claimed)| claimed.contended);
        let first = answers.iter().map(|(node, _)| *node).min().unwrap_or(NodeIndex(0));
        let floor = answers.iter().map(|(_, claimed)| claimed.floor).max().unwrap_or(Ballot::ZERO);
        // The earliest by which q of them say so; one that has none says never.
        let mut dues: Vec<Duration> = answers.iter().filter_map(|(_, claimed)| claimed.next_due).collect();
        dues.sort();
        let next_due = dues.get(size.quorum() - 1).or(dues.last()).copied();
        let mut items: BTreeMap<String, Promised> = BTreeMap::new();
        for (node, claimed) in answers {
            for (member, record) in claimed.items {
                let promised = items.entry(member).or_insert_with(|| Promised {
                    ballot,
                    records: Vec::new(),
                    floor,
                    view: view.clone(),
                });
                promised.records.push((node, record));
            }
        }
        Haul { items: items.into_iter().collect(), next_due, contended, first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::{Loss, MemberList};

    fn claimed(members: &[&str], next_due: Option<u64>, contended: bool) -> Answer {
        let record = Record {
            promise: Ballot::ZERO,
            ballot: Ballot::ZERO,
            value: "v".into(),
            vid: Ballot::ZERO,
            recent: vec![],
            ages: vec![],
            copied: false,
            listed: true,
            guard: Duration::ZERO,
            place: None,
        };
        let items = members.iter().map(|member| ((*member).to_owned(), record.clone())).collect();
        let next_due = next_due.map(Duration::from_millis);
        Answer::Claimed(Claimed { items, floor: Ballot::ZERO, next_due, contended })
    }

    fn view() -> Arc<View> {
        let list = MemberList {
            entries: Vec::new(),
            founding: false,
            ttl_max_ms: 0,
            recovery: None,
            loss: Loss::None,
            before: Vec::new(),
        };
        Arc::new(View { vid: Ballot::ZERO, list, grants: true })
    }

    fn claimer() -> Claimer {
        let ballot = Ballot { token: Token::ZERO, proposer: ProposerId(7) };
        let request =
            ClaimRequest { queue: "q".into(), count: 2, bytes: 9, mark: Duration::from_secs(1), ballot };
        Claimer::new(request, ClusterSize::new(3).unwrap())
    }

    /// Feeds words to a claim and says what it wants after each: `s`end, `w`ait, `t`imed wait, `d`one, `n`othing came of it.
    fn run(words: &[(u8, Word)]) -> (String, Option<Gathered>) {
        let (tokens, jitter) = (|_| Token::new(5).unwrap(), |most| most);
        let context = Context { now: crate::runtime::Moment::ZERO, tokens: &tokens, jitter: &jitter };
        let mut claimer = claimer();
        let mut steps = String::new();
        let mut last = None;
        let mut step = |action: Action<Option<Gathered>>| match action {
            Action::Send(Operation::Claim(claim)) if claim.ballot.token.get() == 5 => steps.push('s'),
            Action::Send(_) | Action::Look(_) | Action::Rest(_) => steps.push('?'),
            Action::Wait(None) => steps.push('w'),
            Action::Wait(Some(_)) => steps.push('t'),
            Action::Done(None) => steps.push('n'),
            Action::Done(Some(gathered)) => {
                steps.push('d');
                last = Some(gathered);
            }
        };
        step(claimer.start(&context));
        for (node, word) in words {
            step(claimer.on_word(NodeIndex(*node), word.clone(), &context));
        }
        (steps, last)
    }

    #[test]
    fn it_is_done_with_q_answers_that_agree_and_waits_a_little_for_the_others_where_they_do_not() {
        let answer = |members: &[&str]| Word::Answer(claimed(members, None, false));
        for (words, steps) in [
            (vec![(0, answer(&["a", "b"])), (1, answer(&["a", "b"]))], "swd"),
            (vec![(0, answer(&[])), (2, answer(&[]))], "swd"),
            (vec![(0, answer(&["a"])), (1, answer(&["a", "b"]))], "swt"),
            (vec![(0, answer(&["a"])), (1, answer(&["a", "b"])), (2, answer(&["b"]))], "swtd"),
            (vec![(0, answer(&["a"])), (1, answer(&["b"])), (2, Word::Lost)], "swtd"),
            (vec![(0, answer(&["a"])), (1, Word::Refused), (2, Word::Lost)], "swwn"),
        ] {
            assert_eq!(run(&words).0, steps, "{words:?}");
        }
    }

    #[test]
    fn what_nodes_promised_is_put_together_in_the_order_of_the_queue() {
        let words = [
            (0, Word::Answer(claimed(&["a", "b"], Some(9), false))),
            (2, Word::Answer(claimed(&["b", "c"], Some(5), true))),
            (1, Word::Answer(claimed(&["b"], None, false))),
        ];
        let gathered = run(&words).1.expect("done");
        let haul = gathered.under(view());
        let items: Vec<_> = haul
            .items
            .iter()
            .map(|(member, promised)| {
                let nodes: Vec<u8> = promised.records.iter().map(|(node, _)| node.0).collect();
                (member.as_str(), nodes)
            })
            .collect();
        assert_eq!(items, [("a", vec![0]), ("b", vec![0, 2, 1]), ("c", vec![2])]);
        assert_eq!((haul.next_due, haul.contended), (Some(Duration::from_millis(9)), true));
        assert_eq!(haul.first, NodeIndex(0));
        assert!(haul.is_crowded(ClusterSize::new(3).unwrap()));
    }

    #[test]
    fn what_one_node_gave_is_nobody_elses() {
        let Answer::Claimed(claimed) = claimed(&["a", "b"], None, true) else { panic!("it is one") };
        let size = ClusterSize::new(3).unwrap();
        let gathered = Gathered::of_one(Ballot::ZERO, size, NodeIndex(2), claimed);
        let haul = gathered.under(view());
        assert_eq!((haul.items.len(), haul.contended, haul.first), (2, false, NodeIndex(2)));
        assert!(!haul.is_crowded(size));
    }
}
