//! `promptq completions`: a script for the shell, made from the command tree.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::printer::Printer;
use crate::problem::{Exit, Result};

/// Which shell.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq completions bash > ~/.local/share/bash-completion/completions/promptq\n  source <(promptq completions zsh)"
)]
pub struct Args {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "promptq", &mut script);
    printer.data(&script)?;
    Ok(Exit::Done)
}
