//! `majorityd check`: is the configuration good, are the servers fit, and what should somebody know before they need them?

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;

use super::{ConfigFlags, EXIT_OK, Output, print_json, print_line, table};
use crate::config::Problems;
use crate::config::validate::NodesFrom;
use crate::server::check::{self, NodeReport};
use crate::server::findings::{Finding, Kind, Severity};

/// Exit code: something was found, but a quorum counts.
const EXIT_FINDINGS: u8 = 1;
/// Exit code: no quorum of nodes can be used, or the configuration is wrong.
const EXIT_NO_QUORUM: u8 = 2;

/// The command line of `majorityd check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Errors are what does not work or will not be kept; warnings what works and will not always; notes are worth knowing, and do not
change the exit code. docs/operations.md lists the kinds.

Exit codes:
  0   all is well, but for notes and what is accepted
  1   something was found, but a quorum of nodes counts
  2   no quorum of nodes counts, or the configuration is wrong
  64  wrong command line")]
pub struct Check {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,

    /// A kind of warning that is meant to be so, such as persistence: it is printed and does not change the exit code
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::as_str)), hide_possible_values = true)]
    pub accept: Vec<String>,

    /// Where settings come from.
    #[command(flatten)]
    pub config: ConfigFlags,
}

/// The outcome, in the shape of its JSON.
#[derive(Serialize)]
struct Report {
    problems: Vec<String>,
    nodes: Vec<NodeLine>,
    findings: Vec<Shown>,
    usable: usize,
    quorum: usize,
    verdict: &'static str,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    finding: Finding,
    accepted: bool,
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
}

impl Check {
    /// Checks and prints.
    pub async fn run(self) -> u8 {
        let (report, code) = match self.config.load(NodesFrom::Addresses) {
            Ok(settings) => judge(check::check(&settings).await, &self.accept),
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
    let problems: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
    let advice = "correct it; deploy/majorityd.toml explains each setting";
    let finding =
        |problem: &String| Finding::overall(Severity::Error, Kind::Configuration, problem.as_str(), advice);
    let findings = problems.iter().map(finding).map(|finding| Shown { finding, accepted: false }).collect();
    let verdict = "the configuration can't be used";
    (Report { problems, nodes: Vec::new(), findings, usable: 0, quorum: 0, verdict }, EXIT_NO_QUORUM)
}

fn judge(report: check::Report, accept: &[String]) -> (Report, u8) {
    let nodes: Vec<NodeLine> = report.nodes.into_iter().map(line).collect();
    let is_accepted = |finding: &Finding| {
        finding.severity == Severity::Warning && accept.iter().any(|kind| kind == finding.kind.as_str())
    };
    let findings: Vec<Shown> = report
        .findings
        .into_iter()
        .map(|finding| Shown { accepted: is_accepted(&finding), finding })
        .collect();
    let usable = nodes.iter().filter(|node| node.usable).count();
    let quorum = nodes.len() / 2 + 1;
    let counts_against = |shown: &Shown| shown.finding.severity < Severity::Note && !shown.accepted;
    let clean = nodes.iter().all(|node| node.usable) && !findings.iter().any(counts_against);
    let counting = nodes.iter().filter(|node| node.counts).count();
    let (verdict, code) = match (clean, counting >= quorum) {
        (true, _) => ("all is well", EXIT_OK),
        (false, true) => ("something was found, but a quorum of nodes counts", EXIT_FINDINGS),
        (false, false) => ("no quorum of nodes counts: the cluster does not serve", EXIT_NO_QUORUM),
    };
    (Report { problems: Vec::new(), nodes, findings, usable, quorum, verdict }, code)
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
    }
}

fn render(report: &Report) -> String {
    let mut lines = Vec::new();
    if !report.nodes.is_empty() {
        let rows: Vec<Vec<String>> = report.nodes.iter().map(row).collect();
        lines.push(table(&["NODE", "ADDRESS", "USABLE", "VERSION", "MEMORY", "MEMBER"], &rows));
    }
    lines.extend(report.findings.iter().map(told));
    let Report { usable, quorum, verdict, nodes, .. } = report;
    if nodes.is_empty() {
        lines.insert(0, format!("{verdict}:"));
    } else {
        lines.push(format!("{verdict}: {usable} of {} usable, {quorum} needed", nodes.len()));
    }
    lines.join("\n")
}

/// Two lines: what it is, and what to do.
fn told(shown: &Shown) -> String {
    let Finding { severity, kind, node, found, advice } = &shown.finding;
    let severity = if shown.accepted { "accepted" } else { severity.as_str() };
    let node = node.map(|node| format!("node {node}: ")).unwrap_or_default();
    format!("{severity} ({}): {node}{found}\n    {advice}", kind.as_str())
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

    fn node(index: u8, usable: bool) -> NodeReport {
        let welcome = Welcome { version: "7.2.4".into(), run_id: "r".into(), memory: Some(MemoryId(1)) };
        NodeReport {
            index: NodeIndex(index),
            address: format!("redis://n{index}:6379"),
            state: if usable { Ok(welcome) } else { Err("nobody answers".into()) },
            counts: usable,
            member_state: "member".into(),
        }
    }

    fn found(severity: Severity, kind: Kind) -> Finding {
        Finding::of(NodeIndex(1), severity, kind, "it is odd", "mend it")
    }

    fn report(usable: [bool; 3], findings: &[Finding]) -> check::Report {
        let nodes = (0..).zip(usable).map(|(index, usable)| node(index, usable)).collect();
        check::Report { nodes, findings: findings.to_vec() }
    }

    #[test]
    fn the_exit_code_says_how_bad_it_is() {
        let note = found(Severity::Note, Kind::Replicas);
        let warning = found(Severity::Warning, Kind::Persistence);
        let error = found(Severity::Error, Kind::Memory);
        let all = [true; 3];
        for (usable, findings, accept, code) in [
            (all, vec![], "", 0),
            (all, vec![note.clone()], "", 0),
            (all, vec![note, warning.clone()], "", 1),
            (all, vec![warning.clone()], "persistence", 0),
            (all, vec![warning], "latency", 1),
            (all, vec![error.clone()], "memory", 1),
            ([true, true, false], vec![], "", 1),
            ([true, false, false], vec![], "", 2),
            ([false; 3], vec![error], "", 2),
        ] {
            let (judged, given) = judge(report(usable, &findings), &[accept.to_owned()]);
            assert_eq!(given, code, "{usable:?} {findings:?}: {}", judged.verdict);
        }
    }

    #[test]
    fn people_see_every_node_and_every_finding() {
        let findings = [found(Severity::Error, Kind::Memory), found(Severity::Warning, Kind::ClockOffset)];
        let (judged, _) = judge(report([true, false, true], &findings), &["clock".to_owned()]);
        let text = render(&judged);
        for expected in [
            "redis://n1:6379",
            "7.2.4",
            "error (memory): node 1: it is odd\n    mend it",
            "accepted (clock): node 1: it is odd",
            "2 of 3 usable",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn machines_see_the_same() {
        let findings = [found(Severity::Warning, Kind::OpenFiles)];
        let (judged, _) = judge(report([true; 3], &findings), &[]);
        let json = serde_json::to_value(&judged).unwrap();
        let expected = serde_json::json!({
            "severity": "warning", "kind": "open_files", "node": 1, "found": "it is odd", "advice": "mend it", "accepted": false
        });
        assert_eq!(json["findings"][0], expected);
    }
}
