//! What becomes of items in the runs: all of it occurs, or the runs would show little.

use std::collections::BTreeMap;

use majorityd::sim::history::Fate;
use majorityd::sim::item::{ItemAsked, ItemTold};
use majorityd::sim::run::run;

/// What a client was told, in a word.
fn word(asked: &ItemAsked, fate: &Fate<ItemTold>) -> String {
    let asked = match asked {
        ItemAsked::Put(request) if request.id.is_some() => "put with an id",
        ItemAsked::Put(_) => "put",
        ItemAsked::Lease => "reserve",
        ItemAsked::Extend(..) => "extend",
        ItemAsked::Ack(_) => "ack",
        ItemAsked::Nack(..) => "nack",
        ItemAsked::Look => "look",
    };
    let fate = match fate {
        Fate::UnderWay => "under way".to_owned(),
        Fate::NotApplied(_) => "not applied".to_owned(),
        Fate::Unknown(_) => "unknown".to_owned(),
        Fate::Answered(ItemTold::Put(put)) if put.duplicate => "known".to_owned(),
        Fate::Answered(ItemTold::Put(_)) => "put".to_owned(),
        Fate::Answered(ItemTold::Leased(delivery)) if delivery.attempt > 1 => "again".to_owned(),
        Fate::Answered(ItemTold::Leased(_)) => "leased".to_owned(),
        Fate::Answered(ItemTold::Until(_)) => "until".to_owned(),
        Fate::Answered(ItemTold::Settled(settled)) => format!("{settled:?}"),
        Fate::Answered(ItemTold::Seen(state)) => format!("{state:?}"),
    };
    format!("{asked}: {fate}")
}

#[test]
fn all_fates_of_items_occur() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 1..=super::number("SIM_SEEDS", 30) {
        let notes = run(seed).queues;
        for call in notes.items.keys().flat_map(|(_, calls)| &calls.0) {
            *seen.entry(word(&call.asked, &call.fate)).or_default() += 1;
        }
    }
    println!("{seen:#?}");
    for wanted in [
        "put with an id: put",
        "put with an id: known",
        "put with an id: unknown",
        "put with an id: not applied",
        "put: put",
        "put: unknown",
        "reserve: leased",
        "reserve: again",
        "extend: until",
        "ack: Done",
        "ack: AlreadyDone",
        "ack: LeaseLost",
        "ack: unknown",
        "nack: Done",
    ] {
        assert!(seen.contains_key(wanted), "{wanted}");
    }
}
