//! The binary: parses the command line and calls a room.

use std::process::ExitCode;

fn main() -> ExitCode {
    majorityd::cli::main()
}
