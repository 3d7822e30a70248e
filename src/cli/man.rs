//! `majorityd man`: the manual pages, made from the command line's own words.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _};

use super::{Cli, EXIT_FAILURE, EXIT_OK, print_bytes};

/// The command line of `majorityd man`.
#[derive(Debug, Args)]
#[command(after_help = "\
To read it:
  majorityd man | man -l -
To install all:
  majorityd man --all /usr/local/share/man/man1

Exit codes:
  0   done
  1   the pages can't be written
  64  wrong command line")]
pub struct Man {
    /// Write a page for every command into this directory
    #[arg(long, value_name = "DIRECTORY")]
    all: Option<PathBuf>,
}

impl Man {
    /// Prints or writes.
    pub fn run(self) -> u8 {
        let Some(directory) = self.all else {
            print_bytes(&page());
            return EXIT_OK;
        };
        match write_all(&directory) {
            Ok(()) => EXIT_OK,
            Err(error) => {
                eprintln!("majorityd: can't write to {}: {error}", directory.display());
                EXIT_FAILURE
            }
        }
    }
}

/// The page of the whole.
fn page() -> Vec<u8> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page).expect("memory takes every write");
    page
}

fn write_all(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}
