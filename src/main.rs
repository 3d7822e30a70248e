//! The binary: parses the command line and calls a room.

fn main() {}
