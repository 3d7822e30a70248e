//! Looks without the script ([`crate::node::peek`]): they show what reads show, and keep the script's gate.

use super::*;
use crate::node::operation::{Looked, Shown};
use crate::node::peek::Question;

impl Connection {
    /// What a look at these locks comes to for a daemon that goes by a list.
    async fn look(&self, list: Ballot, names: &[&str]) -> BatchReply {
        let keys: Vec<_> = names.iter().map(|name| lock(name)).collect();
        let question = Question::about(&keys);
        let peeked = self.node.peek(question.clone()).await.expect("it answers");
        question.judge(self.node.identity(), INDEX, list, &peeked).expect("it can be read")
    }

    async fn looked(&self, names: &[&str]) -> Looked {
        match self.look(founding(), names).await {
            BatchReply::Done { answers, .. } => match answers.into_iter().next() {
                Some(Some(Answer::Looked(looked))) => looked,
                other => panic!("a look answered {other:?}"),
            },
            other => panic!("a look came to {other:?}"),
        }
    }

    /// How the gate is for a look, which must be as it is for a read: the memory, the node's list, and what is answered where
    /// nothing is shown.
    async fn gate(&self, list: Ballot) -> (Option<MemoryId>, Ballot, Option<Option<Answer>>) {
        let gate = |reply| match reply {
            BatchReply::Done { memory, list, mut answers, .. } => {
                let shut = answers.pop().expect("one answer").map(|answer| match answer {
                    Answer::Record(_) | Answer::Looked(_) => None,
                    other => Some(other),
                });
                (memory, list, shut)
            }
            other => panic!("it came to {other:?}"),
        };
        let read = gate(self.send(list, &[read("a")]).await.expect("it answers"));
        assert_eq!(gate(self.look(list, &["a"]).await), read, "under {list}");
        read
    }
}

pub(super) async fn a_look_shows_what_reads_show(subject: &dyn Subject) {
    let connection = member(subject).await;
    let stamped = Accept {
        stamps: vec![stamp(ballot(3, 1)), Stamp { ordinal: 1, ..stamp(ballot(3, 1)) }],
        ..accept(lock("stamped"), ballot(3, 1), "s")
    };
    connection.run(Operation::Accept(Arc::new(stamped))).await;
    connection.run(put("plain", ballot(2, u64::MAX), "x")).await;
    connection.run(put("large", ballot(2, 1), &"x".repeat(200_000))).await;
    connection.run(prepare("plain", ballot(5, 2))).await;
    connection.run(prepare("bare", ballot(4, 2))).await;
    subject.set_time(START + 7);
    let names = ["plain", "none", "stamped", "bare", "large"];
    let before = subject.dump();
    let Looked { now_us, rows } = connection.looked(&names).await;
    assert_eq!(now_us / 1_000_000, START + 7);
    assert_eq!(rows.len(), names.len());
    for (name, shown) in names.iter().zip(&rows) {
        let decode = |shown: &Shown| shown.record(now_us).expect("as it is stored");
        let record = shown.as_ref().map(decode);
        let head = shown.as_ref().map(|Shown { promise, ballot, copied, .. }| (*promise, *ballot, *copied));
        assert_eq!(head, record.as_ref().map(|record| (record.promise, record.ballot, record.copied)));
        assert_eq!(connection.record(name).await, record, "{name}");
    }
    assert_eq!(connection.looked(&[]).await.rows, [], "of none");
    assert_eq!(subject.dump(), before, "a look changes nothing");
}

pub(super) async fn looks_are_gated_like_reads(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let lists = [Ballot::ZERO, founding(), ballot(7, 7)];
    for list in lists {
        assert_eq!(connection.gate(list).await, (None, Ballot::ZERO, None), "there is no list yet");
    }
    let [list, found] = found();
    connection.done(Ballot::ZERO, &[list]).await;
    assert_eq!(connection.gate(founding()).await, (None, founding(), Some(Some(Answer::NotServing))));
    connection.done(Ballot::ZERO, &[found]).await;
    for list in lists {
        let open = (list == founding()).then_some(None);
        assert_eq!(connection.gate(list).await, (Some(MEMORY), founding(), open));
    }
    // While it joins, and after it.
    let (next, memory) = (ballot(10, 9), MemoryId(0xbeef));
    let list = accept(RegisterKey::members(), next, "list");
    connection.ungated(Operation::Accept(Arc::new(list))).await;
    connection.ungated(Operation::BeginJoin { list: next, memory, recovery: None }).await;
    assert_eq!(connection.gate(next).await, (Some(memory), next, Some(Some(Answer::NotServing))));
    let merge = Operation::Merge { memory, floor: Ballot::ZERO, rows: Vec::new() };
    while connection.ungated(merge.clone()).await == Answer::Wiping {}
    assert_eq!(connection.gate(next).await, (Some(memory), next, Some(Some(Answer::NotServing))));
    connection.ungated(Operation::EndJoin { memory }).await;
    assert_eq!(connection.gate(next).await, (Some(memory), next, Some(None)));
    // After a start the memory is gone.
    let connection = restarted(subject).await;
    assert_eq!(connection.gate(next).await, (None, next, Some(Some(Answer::NotServing))));
}

pub(super) async fn a_look_at_a_flushed_or_foreign_node_shows_nothing(subject: &dyn Subject) {
    let connection = member(subject).await;
    for record in [foreign_record(subject), Entry::Bytes(Bytes::from_static(b"x"))] {
        subject.put(NODE_KEY.as_bytes(), record);
        assert_eq!(connection.look(founding(), &["a"]).await, BatchReply::Foreign);
    }
    subject.wipe();
    assert_eq!(connection.look(founding(), &["a"]).await, BatchReply::NoRecord);
}

pub(super) async fn where_no_record_stands_a_look_shows_nothing(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.run(put("plain", ballot(2, 1), "x")).await;
    subject.put(b"majorityd:r:l:odd", Entry::Sorted(["member".to_owned()].into_iter().collect()));
    let rows = connection.looked(&["odd", "none", "plain"]).await.rows;
    assert_eq!(rows.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);
    subject.put(b"majorityd:r:l:odd", Entry::Bytes("no record".into()));
    let keys = [lock("odd")];
    let question = Question::about(&keys);
    let peeked = connection.node.peek(question.clone()).await.expect("it answers");
    let judged = question.judge(connection.node.identity(), INDEX, founding(), &peeked);
    assert!(judged.is_err(), "what is no record is not shown as one: {judged:?}");
}
