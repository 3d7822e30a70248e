//! `majorityd check`: is the configuration good, and are the servers fit?

use clap::Args;
use serde::Serialize;

use super::{ConfigFlags, EXIT_OK, Output, print_json, print_line, table};
use crate::config::Problems;
use crate::config::validate::NodesFrom;
use crate::server::check::{NodeReport, check_nodes};

/// Exit code: some nodes can't be used, but a quorum can.
const EXIT_FINDINGS: u8 = 1;
/// Exit code: no quorum of nodes can be used, or the configuration is wrong.
const EXIT_NO_QUORUM: u8 = 2;

/// The command line of `majorityd check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0   all is well
  1   something was found, but a quorum of nodes counts
  2   no quorum of nodes counts, or the configuration is wrong
  64  wrong command line")]
pub struct Check {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,

    /// Where settings come from.
    #[command(flatten)]
    pub config: ConfigFlags,
}

/// The outcome, in the shape of its JSON.
#[derive(Serialize)]
struct Report {
    problems: Vec<String>,
    nodes: Vec<NodeLine>,
    usable: usize,
    quorum: usize,
    verdict: &'static str,
}

#[derive(Serialize)]
struct NodeLine {
    index: u8,
    address: String,
    usable: bool,
    counts: bool,
    version: Option<String>,
    run_id: Option<String>,
    has_memory: bool,
    member_state: String,
    refusal: Option<String>,
    notes: Vec<String>,
}

impl Check {
    /// Checks and prints.
    pub async fn run(self) -> u8 {
        let (report, code) = match self.config.load(NodesFrom::Addresses) {
            Ok(settings) => judge(check_nodes(&settings).await),
            Err(problems) => refuse(&problems),
        };
        match self.output {
            Output::Text => print_line(&render(&report)),
            Output::Json => print_json(&report),
        }
        code
    }
}

fn refuse(problems: &Problems) -> (Report, u8) {
    let problems = problems.0.iter().map(ToString::to_string).collect();
    let verdict = "the configuration can't be used";
    (Report { problems, nodes: Vec::new(), usable: 0, quorum: 0, verdict }, EXIT_NO_QUORUM)
}

fn judge(reports: Vec<NodeReport>) -> (Report, u8) {
    let nodes: Vec<NodeLine> = reports.into_iter().map(line).collect();
    let usable = nodes.iter().filter(|node| node.usable).count();
    let quorum = nodes.len() / 2 + 1;
    let clean = nodes.iter().all(|node| node.usable && node.notes.is_empty());
    let counting = nodes.iter().filter(|node| node.counts).count();
    let (verdict, code) = match (clean, counting >= quorum) {
        (true, _) => ("all is well", EXIT_OK),
        (false, true) => ("something was found, but a quorum of nodes counts", EXIT_FINDINGS),
        (false, false) => ("no quorum of nodes counts: the cluster does not serve", EXIT_NO_QUORUM),
    };
    (Report { problems: Vec::new(), nodes, usable, quorum, verdict }, code)
}

fn line(report: NodeReport) -> NodeLine {
    let (welcome, refusal) = match report.state {
        Ok(welcome) => (Some(welcome), None),
        Err(reason) => (None, Some(reason)),
    };
    NodeLine {
        index: report.index.0,
        address: report.address,
        usable: welcome.is_some(),
        counts: welcome.is_some() && report.counts,
        version: welcome.as_ref().map(|welcome| welcome.version.to_string()),
        run_id: welcome.as_ref().map(|welcome| welcome.run_id.to_string()),
        has_memory: welcome.is_some_and(|welcome| welcome.memory.is_some()),
        member_state: report.member_state,
        refusal,
        notes: report.notes,
    }
}

fn render(report: &Report) -> String {
    let mut lines: Vec<String> = report.problems.iter().map(|problem| format!("  {problem}")).collect();
    if !report.nodes.is_empty() {
        let rows: Vec<Vec<String>> = report.nodes.iter().map(row).collect();
        lines.push(table(&["NODE", "ADDRESS", "USABLE", "VERSION", "MEMORY", "MEMBER"], &rows));
    }
    for node in &report.nodes {
        for finding in node.refusal.iter().chain(&node.notes) {
            lines.push(format!("node {}: {finding}", node.index));
        }
    }
    let Report { usable, quorum, verdict, nodes, .. } = report;
    if nodes.is_empty() {
        lines.insert(0, format!("{verdict}:"));
    } else {
        lines.push(format!("{verdict}: {usable} of {} usable, {quorum} needed", nodes.len()));
    }
    lines.join("\n")
}

fn row(node: &NodeLine) -> Vec<String> {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    vec![
        node.index.to_string(),
        node.address.clone(),
        yes_no(node.usable),
        node.version.clone().unwrap_or_else(|| "-".into()),
        if node.usable { yes_no(node.has_memory) } else { "-".into() },
        node.member_state.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{MemoryId, NodeIndex};
    use crate::node::handshake::Welcome;

    fn report(index: u8, usable: bool, notes: &[&str]) -> NodeReport {
        let welcome = Welcome { version: "7.2.4".into(), run_id: "r".into(), memory: Some(MemoryId(1)) };
        NodeReport {
            index: NodeIndex(index),
            address: format!("redis://n{index}:6379"),
            state: if usable { Ok(welcome) } else { Err("nobody answers".into()) },
            counts: usable,
            member_state: "member".into(),
            notes: notes.iter().map(|&note| note.to_owned()).collect(),
        }
    }

    #[test]
    fn the_exit_code_says_how_bad_it_is() {
        for (usable, notes, code) in [
            ([true, true, true], [].as_slice(), 0),
            ([true, true, true], &["appendonly is no"], 1),
            ([true, true, false], &[], 1),
            ([true, false, false], &[], 2),
            ([false, false, false], &[], 2),
        ] {
            let reports = (0..).zip(usable).map(|(index, usable)| report(index, usable, notes)).collect();
            let (judged, found) = judge(reports);
            assert_eq!(found, code, "{usable:?} {notes:?}: {}", judged.verdict);
        }
    }

    #[test]
    fn people_see_every_node_and_every_finding() {
        let (judged, _) = judge(vec![report(0, true, &["odd"]), report(1, false, &[]), report(2, true, &[])]);
        let text = render(&judged);
        for expected in ["redis://n1:6379", "7.2.4", "node 0: odd", "node 1: nobody answers", "2 of 3 usable"]
        {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }
}
