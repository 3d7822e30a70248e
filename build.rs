//! Compiles the protos without a system `protoc`: protox parses, tonic generates clients and servers, and the descriptor
//! set goes to `OUT_DIR` for server reflection.

use std::error::Error;
use std::path::{Path, PathBuf};

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

fn write_descriptors(out: &Path, encoded: &[u8]) -> std::io::Result<()> {
    std::fs::write(out.join("majority.v1.bin"), encoded)
}
