//! How the sends of one request become one operation.

use super::*;

fn token(number: u64) -> Token {
    Token::new(number).unwrap()
}

/// A send at these places.
fn send(began: u64, ended: u64, fate: Fate<KeyTold>) -> KeyCall {
    let write = Write::Increment { delta: 1, initial: 0, ttl: None };
    let asked = KeyAsked::Write(Mutation { request: Some(RequestId(1, 1)), ..write.into() });
    let at = |place| Moment::from_start(Duration::from_millis(place));
    let (start, end) = (at(began), Some(at(ended)));
    Call { client: 1, asked, start, end, began, ended: Some(ended), fate }
}

fn told(number: i64, repeated: bool) -> Fate<KeyTold> {
    let effect = Effect::Counted { number, version: token(5) };
    Fate::Answered(KeyTold::Written(crate::kv::Written { effect, previous: None, repeated }))
}

fn lost() -> Fate<KeyTold> {
    Fate::Unknown(String::new())
}

fn refused() -> Fate<KeyTold> {
    Fate::Answered(KeyTold::Refused(Refused::NotAnInteger))
}

fn nothing() -> Fate<KeyTold> {
    Fate::NotApplied(String::new())
}

#[test]
fn all_sends_of_a_request_are_one_operation() {
    // Sends; then the operations, by number, beginning and end.
    for (sends, expected) in [
        (vec![send(1, 2, lost()), send(3, 4, told(1, false))], vec![(1, 3, Some(4))]),
        (vec![send(1, 2, lost()), send(3, 4, told(1, true))], vec![(1, 1, Some(4))]),
        (vec![send(1, 2, told(1, false)), send(3, 4, told(1, true))], vec![(0, 1, Some(2))]),
        (vec![send(1, 9, told(1, true)), send(2, 4, told(1, true))], vec![(1, 1, Some(4))]),
        (vec![send(1, 2, lost()), send(3, 4, lost())], vec![(0, 1, None)]),
        (vec![send(1, 2, lost()), send(3, 4, nothing())], vec![(0, 1, None)]),
        (vec![send(1, 2, nothing()), send(3, 4, nothing())], vec![]),
        // It was still undone when the second was refused.
        (vec![send(1, 2, lost()), send(3, 4, refused())], vec![(1, 3, Some(4)), (0, 3, None)]),
        (
            vec![send(1, 2, lost()), send(3, 4, refused()), send(5, 6, told(1, true))],
            vec![(1, 3, Some(4)), (2, 3, Some(6))],
        ),
    ] {
        let found = operations(&Calls(sends.clone())).expect("nothing contradicts");
        let found: Vec<_> = found.iter().map(|seen| (seen.number, seen.began, seen.ended)).collect();
        assert_eq!(found, expected, "{}", Calls(sends));
    }
}

#[test]
fn answers_that_contradict_each_other_are_found() {
    for sends in [
        vec![send(1, 2, told(1, false)), send(3, 4, told(2, true))],
        vec![send(1, 3, told(1, false)), send(2, 4, told(1, false))],
        vec![send(1, 2, told(1, true)), send(3, 4, told(1, false))],
        vec![send(1, 2, told(1, false)), send(3, 4, refused())],
    ] {
        assert!(operations(&Calls(sends.clone())).is_err(), "{}", Calls(sends));
    }
}
