//! `majorityd completions`: what makes a shell complete our words.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, EXIT_OK, print_bytes};

/// The command line of `majorityd completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Where it goes, for all users:
  bash  majorityd completions bash > /usr/share/bash-completion/completions/majorityd
  fish  majorityd completions fish > /usr/share/fish/vendor_completions.d/majorityd.fish
  zsh   majorityd completions zsh > /usr/local/share/zsh/site-functions/_majorityd
Or for this shell alone:
  source <(majorityd completions bash)")]
pub struct Completions {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub fn run(self) -> u8 {
        // In memory first: clap_complete panics where a reader goes away.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "majorityd", &mut script);
        print_bytes(&script);
        EXIT_OK
    }
}
