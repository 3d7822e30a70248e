//! The status page: what [`Status`] says, in HTML that needs nothing from elsewhere. Pure.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::cluster::{Connection, Event, EventKind, NodeStatus, State, Status};

/// The latest events that are shown.
const EVENTS_SHOWN: usize = 50;

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="5"><title>majorityd</title><style>
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top }
th { font-weight: 600; border-bottom: 1px solid #8886 } .good { color: #1a7f37 } .bad { color: #cf222e } .summary { font-size: 1.15rem }
code, .number { font-family: ui-monospace, monospace }
</style></head><body>
"#;

/// The page as of `now_unix_ms`, by this machine's clock.
pub(super) fn page(status: &Status, stopping: bool, now_unix_ms: u64) -> String {
    let mut page = String::from(HEAD);
    let daemon = &status.daemon;
    add(&mut page, format_args!("<h1>majorityd: {}</h1>", Escaped(&daemon.cluster)));
    let (class, words) = match (stopping, status.serves) {
        (true, _) => ("bad", "shutting down"),
        (false, true) => ("good", status.summary.as_str()),
        (false, false) => ("bad", status.summary.as_str()),
    };
    add(&mut page, format_args!("<p class=\"summary {class}\">{}</p>", Escaped(words)));
    add_nodes(&mut page, &status.nodes);
    add_events(&mut page, &status.events, now_unix_ms);
    let up = ago(daemon.started_unix_ms, now_unix_ms);
    add(
        &mut page,
        format_args!(
            "<h2>This daemon</h2><p>Version {}, run <code>{}</code>, started {up}. What other daemons see may differ.</p>",
            Escaped(daemon.version),
            daemon.proposer
        ),
    );
    add_settings(&mut page, &daemon.settings);
    page.push_str("<p><a href=\"/metrics\">/metrics</a> <a href=\"/readyz\">/readyz</a> <a href=\"/livez\">/livez</a></p>\n");
    page.push_str("</body></html>\n");
    page
}

fn add_nodes(page: &mut String, nodes: &[NodeStatus]) {
    page.push_str(
        "<h2>Nodes</h2><table><tr><th>node<th>address<th>counts<th>connection<th>member list<th>round trip",
    );
    page.push_str("<th>clock ahead<th>misses<th>version<th>what is wrong</tr>\n");
    for node in nodes {
        let (class, counts) = if node.counts { ("good", "yes") } else { ("bad", "no") };
        let round_trip =
            node.figures.map(|figures| format!("{:.2} ms", figures.round_trip.as_secs_f64() * 1e3));
        let offset = node.figures.map(|figures| format!("{:+.1} ms", figures.clock_offset_us as f64 / 1e3));
        add(
            page,
            format_args!(
                "<tr><td>{}<td>{}<td class=\"{class}\">{counts}<td>{}<td>{}<td class=\"number\">{}<td class=\"number\">{}\
                 <td class=\"number\">{}<td>{}<td>{}</tr>\n",
                node.index,
                Escaped(&node.address),
                connection(node.connection),
                listed(node),
                round_trip.as_deref().unwrap_or("–"),
                offset.as_deref().unwrap_or("–"),
                node.missed,
                Escaped(node.version.as_deref().unwrap_or("–")),
                Escaped(node.problem.as_deref().unwrap_or("")),
            ),
        );
    }
    page.push_str("</table>\n");
}

fn connection(connection: Connection) -> &'static str {
    match connection {
        Connection::Ready => "ready",
        Connection::Refused => "refused",
        Connection::Unreachable => "unreachable",
    }
}

/// What the member list says, with how far a join is.
fn listed(node: &NodeStatus) -> String {
    let state = match node.listed {
        Some(State::Member) => "member",
        Some(State::Joining) => "joining",
        Some(State::Out) => "out",
        None => "unknown",
    };
    match node.join {
        Some(join) if join.wiping => format!("{state}, its old data goes"),
        Some(join) => format!("{state}, {} records copied", join.merged),
        None => state.to_owned(),
    }
}

fn add_events(page: &mut String, events: &[Event], now_unix_ms: u64) {
    page.push_str("<h2>What has happened</h2>\n");
    if events.is_empty() {
        page.push_str("<p>Nothing, as far as this daemon has seen.</p>\n");
        return;
    }
    page.push_str("<table><tr><th>when<th>what<th>node<th></tr>\n");
    for event in events.iter().rev().take(EVENTS_SHOWN) {
        let class = if event.kind == EventKind::PossibleLoss { "bad" } else { "" };
        let node = event.node.map(|node| node.to_string());
        add(
            page,
            format_args!(
                "<tr><td>{}<td class=\"{class}\">{}<td>{}<td>{}</tr>\n",
                ago(event.unix_ms, now_unix_ms),
                event_words(event.kind),
                node.as_deref().unwrap_or(""),
                Escaped(&event.text)
            ),
        );
    }
    page.push_str("</table>\n");
}

fn event_words(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Founded => "founded",
        EventKind::MemoryLost => "memory lost",
        EventKind::Joined => "joined",
        EventKind::PutOut => "put out",
        EventKind::ClockJumped => "clock jumped",
        EventKind::Recovered => "recovered",
        EventKind::PossibleLoss => "possible loss",
    }
}

fn add_settings(page: &mut String, settings: &[(String, String)]) {
    page.push_str("<details><summary>Settings</summary><table>\n");
    for (name, value) in settings {
        add(page, format_args!("<tr><td>{}<td><code>{}</code></tr>\n", Escaped(name), Escaped(value)));
    }
    page.push_str("</table></details>\n");
}

fn ago(then_unix_ms: u64, now_unix_ms: u64) -> String {
    let seconds = now_unix_ms.saturating_sub(then_unix_ms) / 1_000;
    match seconds {
        0 => "just now".to_owned(),
        seconds => format!("{} ago", humantime::format_duration(Duration::from_secs(seconds))),
    }
}

fn add(page: &mut String, what: std::fmt::Arguments<'_>) {
    page.write_fmt(what).expect("a String takes everything that is written to it");
}

/// Text in which nothing is markup, in an element or in a quoted attribute.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{DaemonFacts, Figures, JoinProgress, Tolerance};
    use crate::ids::{NodeIndex, ProposerId};
    use crate::quorum::ClusterSize;

    const ODD: &str = "<script>alert('x')</script>&\"";

    fn node() -> NodeStatus {
        NodeStatus {
            index: NodeIndex(0),
            address: ODD.into(),
            connection: Connection::Refused,
            listed: Some(State::Joining),
            counts: false,
            problem: Some(ODD.into()),
            has_listed_memory: None,
            join: Some(JoinProgress { wiping: false, merged: 1234, expected: None }),
            missed: 7,
            figures: Some(Figures {
                round_trip: Duration::from_micros(1_500),
                clock_offset_us: -250_000,
                measured_unix_ms: 0,
            }),
            version: Some(ODD.into()),
        }
    }

    fn status() -> Status {
        let event =
            |number, kind| Event { number, unix_ms: 1_000, kind, node: Some(NodeIndex(0)), text: ODD.into() };
        Status {
            size: ClusterSize::new(1).unwrap(),
            counting: 0,
            serves: false,
            grants: false,
            tolerates: Tolerance { stops: 0, memory_losses: 0 },
            summary: ODD.into(),
            nodes: vec![node()],
            events: (0..60).map(|number| event(number, EventKind::PossibleLoss)).collect(),
            daemon: Arc::new(DaemonFacts {
                cluster: ODD.into(),
                version: "0.1.0",
                proposer: ProposerId(7),
                started_unix_ms: 1_000,
                settings: vec![(ODD.into(), ODD.into())],
            }),
        }
    }

    #[test]
    fn nothing_that_comes_from_elsewhere_is_markup() {
        let page = page(&status(), false, 61_000);
        assert!(!page.contains("<script") && !page.contains("alert('"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;"), "{page}");
        assert!(!page.contains("src=") && !page.contains("//"), "nothing is loaded: {page}");
    }

    #[test]
    fn the_page_says_what_there_is_and_bounds_the_events() {
        let shown = page(&status(), false, 61_000);
        for words in [
            "joining, 1234 records copied",
            "1.50 ms",
            "-250.0 ms",
            "possible loss",
            "started 1m ago",
            "<td class=\"number\">7",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        assert_eq!(shown.matches("possible loss").count(), EVENTS_SHOWN);
        assert!(page(&status(), true, 0).contains("summary bad\">shutting down"));
        let serving = Status { serves: true, events: Vec::new(), ..status() };
        let shown = page(&serving, false, 0);
        assert!(shown.contains("summary good") && shown.contains("Nothing, as far"), "{shown}");
    }
}
