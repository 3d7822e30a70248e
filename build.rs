//! Compiles the protos without a system `protoc`: protox parses, tonic generates clients and servers, and the descriptor
//! set goes to `OUT_DIR` for server reflection. And puts together what `--version` says.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use prost::Message;

const ROOT: &str = "proto";
const FILES: [&str; 5] = [
    "majority/v1/cluster.proto",
    "majority/v1/common.proto",
    "majority/v1/kv.proto",
    "majority/v1/lock.proto",
    "majority/v1/queue.proto",
];
/// They carry a lease id, which is not printed: `grpc::convert` writes their `Debug` by hand.
const SECRET: [&str; 6] = [
    ".majority.v1.Lease",
    ".majority.v1.ExtendRequest",
    ".majority.v1.ReleaseRequest",
    ".majority.v1.ReservedItem",
    ".majority.v1.ItemLease",
    ".majority.v1.ItemNack",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    println!("cargo::rustc-env=MAJORITYD_VERSION={}", version()?);
    let descriptors = protox::compile(FILES, [ROOT])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    write_descriptors(&out, &descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Ordered maps: the same answer is the same bytes, and the same bad request the same message.
        .btree_map(".")
        // Values are large, and not copied on their way.
        .bytes(".majority.v1")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Neither the clock nor `.git` is asked, so that the same source and environment make the same binary: the commit comes
/// from MAJORITYD_COMMIT, and the day from SOURCE_DATE_EPOCH (reproducible-builds.org).
fn version() -> Result<String, Box<dyn Error>> {
    let commit = variable("MAJORITYD_COMMIT").unwrap_or_else(|| "unknown".to_owned());
    if !commit.chars().all(|c| c.is_ascii_alphanumeric() || ".-_+".contains(c)) {
        return Err(format!("MAJORITYD_COMMIT is no commit: {commit:?}").into());
    }
    let day = match variable("SOURCE_DATE_EPOCH") {
        Some(text) => day(&text).ok_or(format!("SOURCE_DATE_EPOCH is no number of seconds: {text:?}"))?,
        None => "unknown".to_owned(),
    };
    Ok(format!("{} (commit {commit}, built {day})", std::env::var("CARGO_PKG_VERSION")?))
}

/// Of the environment, if it says anything.
fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The day, in UTC, so many seconds after 1970 began.
fn day(seconds: &str) -> Option<String> {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))?;
    // Years of more than four digits would panic.
    let year_10000 = UNIX_EPOCH + Duration::from_secs(253_402_300_800);
    (time < year_10000).then(|| humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned())
}

fn write_descriptors(out: &Path, encoded: &[u8]) -> std::io::Result<()> {
    std::fs::write(out.join("majority.v1.bin"), encoded)
}
