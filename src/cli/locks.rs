//! `majorityd locks`: who holds what, and releasing by force.

use clap::{Args, Subcommand};
use serde::Serialize;
use tonic::Status;

use super::client::{CALL_TIMEOUT, Client, ClientFlags, Daemons, exit_code, explain, from_proto, request};
use super::{EXIT_OK, Output, print_json, print_line, table};
use crate::limits;
use crate::proto::v1;

/// The command line of `majorityd locks`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0   done
  1   refused
  64  wrong command line or argument
  69  no daemon answers, or no quorum of nodes
  75  try again later")]
pub struct Locks {
    /// What to do.
    #[command(subcommand)]
    command: LocksCommand,

    /// Which daemon.
    #[command(flatten)]
    client: ClientFlags,

    /// How to print
    #[arg(long, value_enum, default_value_t, global = true)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum LocksCommand {
    /// List the locks that are held or waited for
    List {
        /// Only names that start with this
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Show one lock
    Get {
        /// The lock
        name: String,
    },
    /// Release a lock by force, whoever holds it
    ///
    /// The holder is not asked, and learns of it only when it extends. Resources that compare fencing tokens refuse it
    /// once the next holder has been there.
    Release {
        /// The lock
        name: String,
        /// The fencing token of the lease to end, as `locks get` shows it, so that no later holder is hit
        #[arg(long)]
        fencing_token: u64,
    },
}

/// A lock as this command prints it.
#[derive(Serialize)]
struct LockLine {
    name: String,
    holder: Option<HolderLine>,
    waiters: u32,
    nodes: Vec<u32>,
}

#[derive(Serialize)]
struct HolderLine {
    owner: String,
    fencing_token: u64,
    ttl_ms: u128,
    remaining_ms: u128,
    acquired: Option<String>,
    attributes: std::collections::BTreeMap<String, String>,
}

impl Locks {
    /// Asks and prints.
    pub async fn run(self) -> u8 {
        let daemons = match Daemons::new(&self.client) {
            Ok(daemons) => daemons,
            Err(code) => return code,
        };
        let client = daemons.client();
        let done = match self.command {
            LocksCommand::List { prefix } => list(client, prefix, self.output).await,
            LocksCommand::Get { name } => get(client, name, self.output).await,
            LocksCommand::Release { name, fencing_token } => {
                release(client, name, fencing_token, self.output).await
            }
        };
        match done {
            Ok(()) => EXIT_OK,
            Err(status) => {
                eprintln!("majorityd: {}", explain(&status, daemons.address()));
                exit_code(&status)
            }
        }
    }
}

async fn list(mut client: Client, prefix: String, output: Output) -> Result<(), Status> {
    let mut locks = Vec::new();
    let mut page_token = String::new();
    // Names come in byte order, so this ends; a page that brings the same token again would not.
    loop {
        let page_size = i32::try_from(limits::PAGE_SIZE_MAX).unwrap_or(i32::MAX);
        let message =
            v1::ListLocksRequest { prefix: prefix.clone(), page_size, page_token: page_token.clone() };
        let page = client.list_locks(request(message, CALL_TIMEOUT)).await?.into_inner();
        locks.extend(page.locks.into_iter().map(line));
        if page.next_page_token.is_empty() || page.next_page_token == page_token {
            break;
        }
        page_token = page.next_page_token;
    }
    match output {
        Output::Json => print_json(&locks),
        Output::Text => print_line(&render_list(&locks)),
    }
    Ok(())
}

async fn get(mut client: Client, name: String, output: Output) -> Result<(), Status> {
    let message = v1::GetLockRequest { name };
    let answer = client.get_lock(request(message, CALL_TIMEOUT)).await?.into_inner();
    let lock = line(answer.lock.ok_or_else(|| Status::internal("the answer has no lock in it"))?);
    match output {
        Output::Json => print_json(&lock),
        Output::Text => print_line(&render_one(&lock)),
    }
    Ok(())
}

async fn release(mut client: Client, name: String, fencing_token: u64, output: Output) -> Result<(), Status> {
    let message = v1::ForceReleaseRequest { name: name.clone(), fencing_token };
    client.force_release(request(message, CALL_TIMEOUT)).await?;
    match output {
        Output::Json => print_json(&serde_json::json!({ "name": name, "released": fencing_token })),
        Output::Text => print_line(&format!("released {name} (fencing token {fencing_token})")),
    }
    Ok(())
}

fn line(lock: v1::Lock) -> LockLine {
    let holder = lock.holder.map(|holder| HolderLine {
        owner: holder.owner,
        fencing_token: holder.fencing_token,
        ttl_ms: from_proto(holder.ttl).as_millis(),
        remaining_ms: from_proto(holder.remaining).as_millis(),
        acquired: holder.acquire_time.map(|time| time.to_string()),
        attributes: holder.attributes,
    });
    LockLine { name: lock.name, holder, waiters: lock.waiters, nodes: lock.nodes }
}

fn render_list(locks: &[LockLine]) -> String {
    let row = |lock: &LockLine| {
        let holder = |show: fn(&HolderLine) -> String| lock.holder.as_ref().map_or("-".into(), show);
        vec![
            lock.name.clone(),
            holder(|holder| holder.owner.clone()),
            holder(|holder| holder.fencing_token.to_string()),
            holder(|holder| seconds(holder.remaining_ms)),
            holder(|holder| holder.acquired.clone().unwrap_or_else(|| "-".into())),
            lock.waiters.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = locks.iter().map(row).collect();
    table(&["NAME", "OWNER", "FENCING TOKEN", "REMAINING", "ACQUIRED", "WAITERS"], &rows)
}

fn render_one(lock: &LockLine) -> String {
    let mut rows = vec![("name", lock.name.clone())];
    match &lock.holder {
        None => rows.push(("owner", "- (nobody holds it)".into())),
        Some(holder) => {
            rows.push(("owner", holder.owner.clone()));
            rows.push(("fencing token", holder.fencing_token.to_string()));
            rows.push(("ttl", seconds(holder.ttl_ms)));
            rows.push(("remaining", seconds(holder.remaining_ms)));
            rows.push(("acquired", holder.acquired.clone().unwrap_or_else(|| "-".into())));
            let pairs = holder.attributes.iter();
            rows.extend(pairs.map(|(key, value)| ("attribute", format!("{key}={value}"))));
        }
    }
    let nodes: Vec<String> = lock.nodes.iter().map(u32::to_string).collect();
    rows.push(("waiters", lock.waiters.to_string()));
    rows.push(("nodes", nodes.join(", ")));
    let lines =
        rows.iter().map(|(title, text)| format!("{:<15}{}", format!("{title}:"), super::printable(text)));
    lines.collect::<Vec<_>>().join("\n")
}

fn seconds(milliseconds: u128) -> String {
    format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_shown_to_people() {
        let holder = HolderLine {
            owner: "ci\u{1b}[31m".into(),
            fencing_token: 7,
            ttl_ms: 30_000,
            remaining_ms: 12_340,
            acquired: Some("2026-01-01T00:00:00Z".into()),
            attributes: [("job".to_owned(), "42".to_owned())].into(),
        };
        let held = LockLine { name: "a".into(), holder: Some(holder), waiters: 2, nodes: vec![0, 2] };
        let free = LockLine { name: "b".into(), holder: None, waiters: 0, nodes: vec![] };
        let one = render_one(&held);
        assert!(one.contains("fencing token: 7") && one.contains("12.3s") && one.contains("job=42"), "{one}");
        let list = render_list(&[held, free]);
        assert_eq!(list.lines().count(), 3, "{list}");
        assert!(!one.contains('\u{1b}') && !list.contains('\u{1b}'), "{list}");
    }
}
