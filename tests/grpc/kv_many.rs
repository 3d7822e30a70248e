//! Many keys at once: BatchGet, BatchSet, ListKeys.

use majorityd::proto::v1;
use majorityd::proto::v1::batch_get_response::entry::Outcome as Got;
use majorityd::proto::v1::batch_set_response::result::Outcome as Done;
use majorityd::proto::v1::set_request::{Content, Precondition};
use prost::Message;
use tonic::Code;
use tonic_types::RpcStatusExt;

use crate::kv::*;
use crate::stage::*;

/// What gRPC clients take in one message unless told otherwise.
const ANSWER_BYTES_MAX: usize = 4 << 20;

async fn batch_set(client: &mut KvClient, items: Vec<v1::SetRequest>) -> Vec<Done> {
    let answer = within(client.batch_set(v1::BatchSetRequest { items })).await.unwrap().into_inner();
    answer.results.into_iter().map(|result| result.outcome.expect("set")).collect()
}

async fn batch_get(client: &mut KvClient, keys: &[&str]) -> Vec<Got> {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let answer = within(client.batch_get(v1::BatchGetRequest { keys })).await.unwrap().into_inner();
    assert!(answer.encoded_len() < ANSWER_BYTES_MAX);
    answer.entries.into_iter().map(|entry| entry.outcome.expect("set")).collect()
}

fn reason_in(error: &tonic_types::Status) -> String {
    error.get_error_details().error_info().expect("ErrorInfo").reason.clone()
}

#[tokio::test]
async fn each_item_of_a_batch_stands_by_itself() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let before = set(&mut one, setting("b", "before")).await;
    let absent =
        |key| v1::SetRequest { precondition: Some(Precondition::Absent(true)), ..setting(key, "new") };
    let named = v1::SetRequest { request_id: request_id(1), ..setting("c", "new") };
    let items = vec![absent("a"), absent("b"), named];
    let results = batch_set(&mut one, items.clone()).await;
    assert!(matches!((&results[0], &results[2]), (Done::Set(_), Done::Set(_))), "{results:?}");
    let Done::Error(error) = &results[1] else { panic!("{results:?}") };
    assert_eq!(
        (error.code, reason_in(error).as_str()),
        (Code::FailedPrecondition.into(), "PRECONDITION_FAILED")
    );
    let details = error.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["current_version"], before.to_string());

    let again = batch_set(&mut two, items).await;
    assert!(matches!((&again[0], &again[1]), (Done::Error(_), Done::Error(_))), "{again:?}");
    assert!(matches!(&again[2], Done::Set(set) if set.repeated), "{again:?}");

    let entries = batch_get(&mut two, &["c", "nothing", "b", "a", "c"]).await;
    let values = entries.iter().map(|entry| match entry {
        Got::KeyValue(found) => String::from_utf8(found.value.to_vec()).unwrap(),
        Got::Absent(_) => "-".to_owned(),
        Got::Error(error) => panic!("{error:?}"),
    });
    assert_eq!(values.collect::<Vec<_>>(), ["new", "-", "before", "new", "new"]);
    assert!(batch_get(&mut one, &[]).await.is_empty() && batch_set(&mut one, vec![]).await.is_empty());
}

#[tokio::test]
async fn without_a_quorum_every_key_of_a_batch_says_so() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let mut client = served.kv().await;
    set(&mut client, setting("a", "x")).await;
    cluster.set_network(&[0, 1], Network::Cut);
    for entry in batch_get(&mut client, &["a", "b"]).await {
        let Got::Error(error) = entry else { panic!("{entry:?}") };
        assert_eq!((error.code, reason_in(&error).as_str()), (Code::Unavailable.into(), "NO_QUORUM"));
    }
    for result in batch_set(&mut client, vec![setting("a", "y"), setting("b", "y")]).await {
        let Done::Error(error) = result else { panic!("{result:?}") };
        assert_eq!((error.code, reason_in(&error).as_str()), (Code::Unavailable.into(), "NO_QUORUM"));
    }
    cluster.set_network(&[0, 1], Network::Whole);
    assert_eq!(text(&mut client, "a").await.as_deref(), Some("x"));
}

/// All pages of a list; none may be more than a client takes.
async fn list(client: &mut KvClient, prefix: &str, page_size: i32, with_values: bool) -> Vec<v1::KeyValue> {
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let prefix = prefix.to_owned();
        let request = v1::ListKeysRequest { prefix, page_size, page_token, with_values };
        let page = within(client.list_keys(request)).await.unwrap().into_inner();
        assert!(page.encoded_len() < ANSWER_BYTES_MAX);
        let most = if page_size == 0 { 100 } else { page_size.min(1_000) };
        assert!(page.keys.len() <= most as usize);
        listed.extend(page.keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return listed;
        }
    }
}

#[tokio::test]
async fn large_values_are_read_in_as_many_answers_as_they_need() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let names: Vec<String> = (0..7).map(|number| format!("large/{number}")).collect();
    for (name, fill) in names.iter().zip(0..) {
        let content = Some(Content::Value(vec![fill; 1 << 20].into()));
        set(&mut one, v1::SetRequest { content, ..setting(name, "") }).await;
    }
    let whole = |listed: &[v1::KeyValue]| {
        listed.iter().zip(0..).all(|(found, fill)| found.value == vec![fill; 1 << 20])
    };
    let listed = list(&mut two, "large/", 0, true).await;
    assert_eq!(listed.iter().map(|found| &found.key).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    assert!(whole(&listed));
    let bare = list(&mut two, "large/", 0, false).await;
    assert!(bare.len() == 7 && bare.iter().all(|found| found.value.is_empty() && found.version > 0));

    let mut left: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    while !left.is_empty() {
        let entries = batch_get(&mut two, &left).await;
        let full = entries.iter().position(|entry| matches!(entry, Got::Error(_))).unwrap_or(left.len());
        assert!(full > 0, "every answer has something");
        for entry in &entries[full..] {
            let Got::Error(error) = entry else { panic!("nothing after what did not fit") };
            assert_eq!(
                (error.code, reason_in(error).as_str()),
                (Code::ResourceExhausted.into(), "ANSWER_FULL")
            );
        }
        found.extend(entries.into_iter().take(full).filter_map(|entry| match entry {
            Got::KeyValue(found) => Some(found),
            Got::Absent(_) | Got::Error(_) => None,
        }));
        left.drain(..full);
    }
    assert!(found.len() == 7 && whole(&found));

    // Four together are within the bytes of a batch, with their names they are not.
    let item = |number: usize, bytes| {
        let content = Some(Content::Value(vec![7; bytes].into()));
        v1::SetRequest { content, ..setting(&format!("l{number}"), "") }
    };
    let answer =
        within(one.batch_set(v1::BatchSetRequest { items: (0..4).map(|n| item(n, 1 << 20)).collect() }));
    crate::refusals::refused(answer.await, &[("items", "TOO_LARGE")]);
    let fits = batch_set(&mut one, (0..4).map(|n| item(n, (1 << 20) - 2)).collect()).await;
    assert!(fits.iter().all(|result| matches!(result, Done::Set(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_has_every_key_once_in_byte_order_whatever_the_page_size() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let mut names: Vec<String> = (0..2_000).map(|number| format!("job/{number}")).collect();
    // A prefix of a name, names around the prefix, and one past ASCII.
    names.extend(["job/", "job", "jobs", "job0", "job/ü", "a", "z"].map(str::to_owned));
    for names in names.chunks(1_000) {
        let results = batch_set(&mut one, names.iter().map(|name| setting(name, name)).collect()).await;
        assert!(results.iter().all(|result| matches!(result, Done::Set(_))));
    }
    let mut expected: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| name.starts_with("job/")).collect();
    expected.sort_unstable();
    let names_of = |listed: &[v1::KeyValue]| listed.iter().map(|found| found.key.clone()).collect::<Vec<_>>();
    for page_size in [0, 333, 1_000, i32::MAX] {
        assert_eq!(
            names_of(&list(&mut two, "job/", page_size, false).await),
            expected,
            "page size {page_size}"
        );
    }
    let all = list(&mut one, "", 1_000, true).await;
    assert!(all.len() == names.len() && all.is_sorted_by_key(|found| found.key.clone()));
    assert!(all.iter().all(|found| found.value == found.key.as_bytes()));

    // What is gone is not listed, and a token belongs to its prefix.
    for name in ["job/7", "job/8"] {
        let request = v1::DeleteRequest { key: name.to_owned(), ..Default::default() };
        within(one.delete(request)).await.unwrap();
    }
    expected.retain(|name| !["job/7", "job/8"].contains(name));
    assert_eq!(names_of(&list(&mut two, "job/", 1_000, false).await), expected);
    let first = v1::ListKeysRequest { prefix: "job/".to_owned(), page_size: 7, ..Default::default() };
    let page_token = within(two.list_keys(first)).await.unwrap().into_inner().next_page_token;
    let other = v1::ListKeysRequest { prefix: "other/".to_owned(), page_token, ..Default::default() };
    crate::refusals::refused(within(two.list_keys(other)).await, &[("page_token", "INVALID_PAGE_TOKEN")]);
}
