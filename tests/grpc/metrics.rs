//! `/metrics`: that counts follow what callers do, that the documents know every name, and that no secret is shown.

use std::collections::{BTreeMap, BTreeSet};

use majorityd::config::{NodeAddress, Secret};
use majorityd::ids::NodeIndex;
use majorityd::members::EventKind;
use majorityd::proto::v1;
use tonic::Code;

use crate::operators;
use crate::queue::item;
use crate::stage::*;

const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/majorityd.json");
const METRICS_DOCUMENT: &str = include_str!("../../docs/metrics.md");
const OPERATIONS_DOCUMENT: &str = include_str!("../../docs/operations.md");

const OPEN_METRICS: &str = "Accept: application/openmetrics-text; version=1.0.0\r\n";

/// Name and labels as they are shown, and the value.
pub struct Scrape {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    pub async fn of(served: &Served) -> Self {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{OPEN_METRICS}\r\n");
        let answer = operators::send(served.http, &request).await;
        assert_eq!(answer.code, 200);
        assert!(
            answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{}",
            answer.head
        );
        let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        };
        Self { samples: lines.map(sample).collect(), text: answer.body }
    }

    /// The sum of all samples of this name that have all these labels; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &str, (key, value): &(&str, &str)| sample.contains(&format!("{key}=\"{value}\""));
        let of_name = |sample: &str| sample.split('{').next() == Some(name);
        let fits = |sample: &str| of_name(sample) && labels.iter().all(|label| has(sample, label));
        self.samples.iter().filter(|(sample, _)| fits(sample)).map(|(_, value)| value).sum()
    }

    /// Every family with its type, by the name that its samples or, for a histogram, the buckets' stem have.
    fn families(&self) -> BTreeMap<String, String> {
        let types = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let families = types.map(|family| {
            let (name, kind) = family.split_once(' ').expect("a name and a type");
            let suffix = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{suffix}"), kind.to_owned())
        });
        families.collect()
    }
}

/// How much a sum has grown.
fn grown(before: &Scrape, after: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
    after.sum(name, labels) - before.sum(name, labels)
}

/// Scrapes until it is as wished.
#[track_caller]
pub fn scraped<'a>(
    served: &'a Served,
    wish: impl Fn(&Scrape) -> bool + 'a,
) -> impl Future<Output = Scrape> + 'a {
    within(async move {
        loop {
            let scrape = Scrape::of(served).await;
            if wish(&scrape) {
                return scrape;
            }
            pause().await;
        }
    })
}

#[tokio::test]
async fn what_locks_do_is_counted() {
    let (_cluster, served, mut client) = alone().await;
    let before = Scrape::of(&served).await;
    let first = lease(&mut client, asking("x", "a")).await;
    contention(&mut client, asking("x", "b")).await;
    let first = extend(&mut client, &first).await.unwrap();
    assert!(release(&mut client, &first).await);
    assert_eq!(extend(&mut client, &first).await.unwrap_err().code(), Code::FailedPrecondition);
    let second = lease(&mut client, asking("x", "b")).await;
    let waiter = acquiring(&client, waiting("x", "c"));
    let waits = scraped(&served, |now| now.sum("majorityd_waiters", &[("kind", "lock")]) == 1.0).await;
    assert_eq!(waits.sum("majorityd_grpc_calls_in_flight", &[("method", "Acquire")]), 1.0);
    assert_eq!(waits.sum("majorityd_leases_live", &[("kind", "lock")]), 1.0);
    force(&mut client, "x", second.fencing_token).await.unwrap();
    within(waiter).await.unwrap();

    let after = scraped(&served, |now| now.sum("majorityd_grpc_calls_in_flight", &[]) == 0.0).await;
    let lock = ("kind", "lock");
    for (name, labels, expected) in [
        ("majorityd_grpc_calls_total", &[("method", "Acquire"), ("code", "OK")][..], 4.0),
        ("majorityd_grpc_calls_total", &[("method", "Extend"), ("code", "OK")], 1.0),
        ("majorityd_grpc_calls_total", &[("method", "Extend"), ("code", "FAILED_PRECONDITION")], 1.0),
        ("majorityd_grpc_call_seconds_count", &[("method", "Acquire")], 4.0),
        ("majorityd_grpc_call_seconds_bucket", &[("method", "Acquire"), ("le", "+Inf")], 4.0),
        ("majorityd_leases_granted_total", &[lock], 3.0),
        ("majorityd_leases_extended_total", &[lock], 1.0),
        ("majorityd_leases_ended_total", &[lock], 1.0),
        ("majorityd_leases_lost_total", &[lock, ("reason", "taken")], 1.0),
        ("majorityd_lock_contentions_total", &[], 1.0),
        ("majorityd_lock_forced_releases_total", &[], 1.0),
        ("majorityd_wait_seconds_count", &[lock, ("outcome", "served")], 1.0),
    ] {
        assert_eq!(grown(&before, &after, name, labels), expected, "{name} {labels:?}");
    }
    assert!(grown(&before, &after, "majorityd_register_changes_total", &[lock, ("outcome", "done")]) >= 7.0);
    assert!(grown(&before, &after, "majorityd_register_warm_rounds_total", &[lock]) >= 1.0);
    assert!(grown(&before, &after, "majorityd_node_operations_total", &[("outcome", "answered")]) >= 14.0);
    assert!(grown(&before, &after, "majorityd_node_batch_seconds_count", &[("node", "0")]) >= 1.0);
    assert_eq!(after.sum("majorityd_waiters", &[]), 0.0);
}

#[tokio::test]
async fn a_held_stream_is_a_level_that_falls_when_it_ends() {
    let (_cluster, served, mut client) = alone().await;
    let mut stream = hold(&mut client, holding("x", "a")).await;
    held(&mut stream).await;
    let holds = scraped(&served, |now| now.sum("majorityd_lock_holds", &[]) == 1.0).await;
    assert_eq!(holds.sum("majorityd_grpc_calls_in_flight", &[("method", "Hold")]), 1.0);
    drop(stream);
    let method = [("method", "Hold")];
    scraped(&served, |now| now.sum("majorityd_lock_holds", &[]) == 0.0).await;
    let after = scraped(&served, |now| now.sum("majorityd_grpc_calls_total", &method) == 1.0).await;
    assert_eq!(after.sum("majorityd_grpc_calls_total", &[("method", "Hold"), ("code", "CANCELLED")]), 1.0);
    assert_eq!(
        after.sum("majorityd_grpc_call_seconds_count", &method),
        0.0,
        "how long a stream lasts says nothing"
    );
}

#[tokio::test]
async fn what_queues_and_keys_do_is_counted() {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let (mut queues, mut kv) = (served.queues().await, served.kv().await);
    let before = Scrape::of(&served).await;
    for ids in [&["a", "b"][..], &["a"]] {
        let items = ids.iter().map(|id| item(id, "x")).collect();
        within(queues.put(v1::PutRequest { queue: "q".into(), items })).await.unwrap();
    }
    let reserve = v1::ReserveRequest { queue: "q".into(), max_items: Some(2), ..Default::default() };
    let mut items = Vec::new();
    while items.len() < 2 {
        items.extend(within(queues.reserve(reserve.clone())).await.unwrap().into_inner().items);
    }
    assert_eq!(Scrape::of(&served).await.sum("majorityd_leases_live", &[("kind", "item")]), 2.0);
    let lease =
        |item: &v1::ReservedItem| v1::ItemLease { id: item.id.clone(), lease_id: item.lease_id.clone() };
    let ack = v1::AckRequest { queue: "q".into(), leases: vec![lease(&items[0])] };
    within(queues.ack(ack.clone())).await.unwrap();
    within(queues.ack(ack)).await.unwrap();
    let v1::ItemLease { id, lease_id } = lease(&items[1]);
    let nack = v1::ItemNack { id, lease_id, ..Default::default() };
    within(queues.nack(v1::NackRequest { queue: "q".into(), items: vec![nack] })).await.unwrap();
    within(queues.reserve(v1::ReserveRequest { queue: "empty".into(), ..Default::default() })).await.unwrap();
    within(kv.get(v1::GetRequest { key: "k".into() })).await.unwrap();
    within(kv.delete(v1::DeleteRequest { key: "k".into(), ..Default::default() })).await.unwrap();

    let after = Scrape::of(&served).await;
    let kind = ("kind", "item");
    for (name, labels, expected) in [
        ("majorityd_queue_items_total", &[("event", "put")][..], 2.0),
        ("majorityd_queue_items_total", &[("event", "duplicate")], 1.0),
        ("majorityd_queue_items_total", &[("event", "acked")], 1.0),
        ("majorityd_queue_items_total", &[("event", "nacked")], 1.0),
        ("majorityd_leases_granted_total", &[kind], 2.0),
        ("majorityd_leases_ended_total", &[kind], 2.0),
        ("majorityd_register_changes_total", &[("kind", "queue"), ("outcome", "done")], 1.0),
    ] {
        assert_eq!(grown(&before, &after, name, labels), expected, "{name} {labels:?}");
    }
    assert!(grown(&before, &after, "majorityd_wait_seconds_count", &[kind, ("outcome", "in_vain")]) >= 1.0);
    assert!(grown(&before, &after, "majorityd_register_round_seconds_count", &[("kind", "key")]) >= 1.0);
    assert_eq!(after.sum("majorityd_leases_live", &[kind]), 0.0);
    assert_eq!(after.sum("majorityd_writes_bytes", &[]), 0.0);
}

#[tokio::test]
async fn the_margin_follows_the_nodes_and_events_are_counted() {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let whole = scraped(&served, |now| now.sum("majorityd_cluster_quorum_margin", &[]) == 1.0).await;
    assert_eq!(whole.sum("majorityd_node_counts", &[]), 3.0);
    assert_eq!(whole.sum("majorityd_node_connection", &[("state", "ready")]), 3.0);
    assert_eq!(whole.sum("majorityd_node_member", &[("state", "member")]), 3.0);
    assert_eq!(
        (whole.sum("majorityd_cluster_serves", &[]), whole.sum("majorityd_cluster_grants", &[])),
        (1.0, 1.0)
    );
    assert!(whole.sum("majorityd_node_round_trip_seconds", &[]) > 0.0);
    cluster.stop_servers(&[1, 2]);
    let broken = scraped(&served, |now| now.sum("majorityd_cluster_quorum_margin", &[]) == -1.0).await;
    let down = [("node", "2"), ("state", "unreachable")];
    assert_eq!(broken.sum("majorityd_node_connection", &down), 1.0);
    assert_eq!(broken.sum("majorityd_cluster_serves", &[]), 0.0);
    let of_2 = |(sample, _): (&String, &f64)| sample.contains("node=\"2\"") && sample.contains("round_trip");
    assert!(!broken.samples.iter().any(of_2), "what was measured once says nothing now");

    let before = Scrape::of(&served).await;
    let board = served.board();
    board.happened(1, EventKind::PossibleLoss, Some(NodeIndex(1)), "planted".into());
    let after = Scrape::of(&served).await;
    let loss = [("kind", "possible_loss")];
    assert_eq!(grown(&before, &after, "majorityd_cluster_events_total", &loss), 1.0);
    // What is noted of a node is noted anew every second or so.
    let missed = async {
        loop {
            board.note(NodeIndex(1), |notes| notes.missed = 12);
            if Scrape::of(&served).await.sum("majorityd_node_missed_registers", &[("node", "1")]) == 12.0 {
                return;
            }
        }
    };
    within(missed).await;
}

/// Two daemons of one process count for themselves.
#[tokio::test]
async fn nothing_is_counted_for_the_neighbour() {
    let (_cluster, [one, two], [mut client, _]) = pair().await;
    lease(&mut client, asking("x", "a")).await;
    let granted = [("kind", "lock")];
    assert_eq!(Scrape::of(&one).await.sum("majorityd_leases_granted_total", &granted), 1.0);
    assert_eq!(Scrape::of(&two).await.sum("majorityd_leases_granted_total", &granted), 0.0);
}

#[tokio::test]
async fn no_secret_and_no_name_is_shown() {
    let mut cluster = Cluster::new();
    cluster.settings.nodes.password = Some(Secret::new("hunter2-for-all"));
    let address = NodeAddress::parse("redis://me:hunter2-for-one@a:1").unwrap();
    cluster.settings.nodes.addresses = vec![address];
    let served = cluster.daemon().await;
    let (mut client, mut queues, mut kv) = (served.client().await, served.queues().await, served.kv().await);
    let held = lease(&mut client, asking("planted-lock", "planted-owner")).await;
    extend(&mut client, &held).await.unwrap();
    let items = vec![item("planted-item", "planted-payload")];
    within(queues.put(v1::PutRequest { queue: "planted-queue".into(), items })).await.unwrap();
    let reserve =
        v1::ReserveRequest { queue: "planted-queue".into(), max_items: Some(1), ..Default::default() };
    let items = within(queues.reserve(reserve)).await.unwrap().into_inner().items;
    within(kv.get(v1::GetRequest { key: "planted-key".into() })).await.unwrap();
    // A path is a client's word, too.
    let odd = tonic::codegen::http::uri::PathAndQuery::from_static("/planted-service/planted-method");
    let mut raw = tonic::client::Grpc::new(served.channel().await);
    raw.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetRequest, v1::GetRequest>::default();
    within(raw.unary(tonic::Request::new(v1::GetRequest::default()), odd, codec)).await.unwrap_err();

    let mut planted = vec!["hunter2".to_owned(), "planted".to_owned(), held.lease_id];
    planted.extend(items.into_iter().map(|item| item.lease_id));
    assert!(planted.len() > 3, "an item was leased");
    let open_metrics = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{OPEN_METRICS}\r\n");
    let plain = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    for request in
        [open_metrics, plain("/metrics"), plain("/"), plain("/readyz"), plain("/livez"), plain("/planted")]
    {
        let answer = operators::send(served.http, &request).await;
        for secret in &planted {
            assert!(
                !answer.body.contains(secret) && !answer.head.contains(secret),
                "{secret}: {}",
                answer.body
            );
        }
    }
    let page = operators::get(served.http, "/").await.body;
    assert!(
        page.contains("redis://***@a:1") && page.contains("nodes.password"),
        "shown, without what is secret: {page}"
    );
    let other = [("method", "other"), ("code", "UNIMPLEMENTED")];
    assert_eq!(Scrape::of(&served).await.sum("majorityd_grpc_calls_total", &other), 1.0);
}

#[tokio::test]
async fn both_formats_show_the_same_and_end_as_they_must() {
    let (_cluster, served, _client) = alone().await;
    let scrape = Scrape::of(&served).await;
    assert!(scrape.text.ends_with("# EOF\n"));
    let text = operators::get(served.http, "/metrics").await;
    assert!(text.head.contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    let names = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names(&text.body), names(&scrape.text));
    for name in scrape.families().keys() {
        assert!(name.starts_with("majorityd_"), "{name}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The documents

/// Of a table: name, type, labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let rows = METRICS_DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `majorityd_"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = format!("majorityd_{}", cells[0].trim_end_matches('`'));
        let labels = cells[2].split_whitespace().map(|label| label.trim_matches('`').to_owned()).collect();
        assert!(!cells[3].is_empty(), "{name} has no meaning");
        (name, (cells[1].to_owned(), labels))
    });
    rows.collect()
}

/// Names of labels, without the one that buckets have.
fn labels_of(sample: &str) -> BTreeSet<String> {
    let labels = sample.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
    let names =
        labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
    names.filter(|name| name != "le").collect()
}

/// Of a sample, the name that its family is documented under.
fn family_of<'a>(sample: &str, families: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let name = sample.split('{').next().unwrap_or(sample);
    let stems = ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
    let stem = stems.into_iter().find(|stem| families.get(*stem).is_some_and(|kind| kind == "histogram"));
    families.get_key_value(stem.unwrap_or(name)).map(|(name, _)| name.as_str())
}

#[tokio::test]
async fn every_metric_is_documented_with_its_type_and_labels_and_no_other() {
    let (_cluster, served, mut client) = alone().await;
    lease(&mut client, asking("x", "a")).await;
    let scrape = Scrape::of(&served).await;
    let (shown, documented) = (scrape.families(), documented());
    let types = documented.iter().map(|(name, (kind, _))| (name.clone(), kind.clone())).collect();
    assert_eq!(shown, types, "docs/metrics.md");
    for sample in scrape.samples.keys() {
        let family = family_of(sample, &shown).unwrap_or_else(|| panic!("{sample} belongs to no family"));
        assert_eq!(labels_of(sample), documented[family].1, "{sample}");
    }
    assert_eq!(scrape.text.matches("# HELP ").count(), shown.len(), "each once, with its help");
}

/// Whatever in a text looks like the name of a metric.
fn names_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("majorityd_")).collect()
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_nothing_that_is_not_there() {
    let (_cluster, served, _client) = alone().await;
    let shown = Scrape::of(&served).await.families();
    for (file, text) in [("alerts.yml", ALERTS), ("majorityd.json", DASHBOARD)] {
        let names = names_in(text);
        assert!(names.len() > 10, "{file}");
        for name in names {
            assert!(family_of(name, &shown).is_some(), "{file} asks for {name}");
            let is_stem = shown.get(name).is_some_and(|kind| kind == "histogram");
            assert!(!is_stem, "{file}: {name} has samples only with _bucket, _sum or _count behind it");
        }
    }
    // Whatever is measured can be seen.
    let families: BTreeSet<&str> =
        names_in(DASHBOARD).into_iter().filter_map(|name| family_of(name, &shown)).collect();
    let unseen: Vec<&String> = shown
        .keys()
        .filter(|name| !families.contains(name.as_str()) && !name.ends_with("_queued_max"))
        .collect();
    assert!(unseen.is_empty(), "no panel shows {unseen:?}");
}

#[test]
fn every_alert_says_what_is_wrong_and_where_to_read_on() {
    let alerts: Vec<&str> = ALERTS.split("- alert: ").skip(1).collect();
    let mut names = BTreeSet::new();
    assert!(alerts.len() >= 8);
    for alert in alerts {
        let name = alert.lines().next().expect("a name");
        assert!(names.insert(name), "{name} is there twice");
        let value = |key: &str| {
            let lines = alert.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
            lines.map(|value| value.trim_matches('"')).find(|value| !value.is_empty())
        };
        assert!(value("expr").is_some() && value("summary").is_some(), "{name}");
        assert!(matches!(value("severity"), Some("critical" | "warning")), "{name}");
        let anchor = name.to_lowercase();
        assert_eq!(value("runbook_url"), Some(format!("docs/operations.md#{anchor}").as_str()), "{name}");
        let headings = OPERATIONS_DOCUMENT.lines().filter_map(|line| line.strip_prefix("### "));
        assert!(
            headings.into_iter().any(|heading| heading == name),
            "docs/operations.md has no section {name}"
        );
    }
    let sections = OPERATIONS_DOCUMENT.lines().filter_map(|line| line.strip_prefix("### Majorityd"));
    assert_eq!(sections.count(), names.len(), "a section for each alert and no other");
}

#[test]
fn the_dashboard_is_one_and_each_panel_says_what_it_shows() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{panel}");
        if panel["type"] == "row" {
            continue;
        }
        let is_text = |key: &str| panel[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(is_text("title") && is_text("description"), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty() && targets.iter().all(|target| target["expr"].is_string()), "{panel}");
    }
}
