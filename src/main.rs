//! The binary: parses the command line and calls a room.

use std::process::ExitCode;

/// The daemon allocates in one thread what it frees in another, many times for each call; glibc's allocator takes a quarter of
/// its time for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    majorityd::cli::main()
}
