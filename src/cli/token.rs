//! `majorityd token`: makes a token, and the line by which a daemon knows it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::client::read_token;
use super::{EXIT_FAILURE, EXIT_OK, print_line};
use crate::access::token;
use crate::runtime::system;

/// The command line of `majorityd token`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0   done
  1   the file can't be written or read
  64  wrong command line")]
pub struct Token {
    /// Write the token to a new file that only this user can read, and print the line alone
    #[arg(long, value_name = "FILE", conflicts_with = "hash")]
    pub write: Option<PathBuf>,

    /// Make none, and print the line of the token in FILE
    #[arg(long, value_name = "FILE")]
    pub hash: Option<PathBuf>,
}

impl Token {
    /// Makes one and prints it.
    pub async fn run(self) -> u8 {
        let token = match &self.hash {
            Some(file) => match read_token(file) {
                Ok(token) => token,
                Err(error) => return failed(&error),
            },
            None => made(),
        };
        match &self.write {
            Some(file) => {
                if let Err(error) = write(file, &token) {
                    return failed(&format!("can't write {}: {error}", file.display()));
                }
            }
            None if self.hash.is_none() => print_line(&token),
            None => {}
        }
        print_line(&format!("token_sha256 = [\"{}\"]", token::hash_text(&token::hash(&token))));
        EXIT_OK
    }
}

fn made() -> String {
    let entropy = system::runtime().entropy;
    token::of([0; 4].map(|_: u64| entropy.next_u64()))
}

fn failed(what: &str) -> u8 {
    eprintln!("majorityd: {what}");
    EXIT_FAILURE
}

/// Never over a file that is there: it may be the token that is in use.
fn write(file: &Path, token: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(file, "{token}")
}
