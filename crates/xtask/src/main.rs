//! Chores of this workspace: `cargo xtask COMMAND`.

mod bindings;
mod bundle;
mod check;
mod comparison;
mod disassembly;
mod package;
mod picture;
mod prove;
mod report;
mod results;
mod rules;
mod sass;
mod table1;
mod toolchain;
mod unused;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Chores of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write src/abi.rs from kernels/abi.h.
    Bindings(bindings::Args),
    /// Put what a GPU host without Rust needs to test and time the kernels into one folder.
    Bundle(bundle::Args),
    /// Build and test every crate from its own archive.
    Package(package::Args),
    /// Run the tests at full depth: every schedule, completion and build, and the planted bugs.
    Prove(prove::Args),
    /// Write docs/table1.md and its picture from the results that are committed.
    Report(table1::Args),
    /// Compile every kernel for every target and hold its machine code to the rules in its source.
    Sass(sass::Args),
    /// Look for dependencies that are declared and not used.
    Unused,
}

/// The repository root: of the checkout that cargo was called in, whichever built this program.
fn root() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.ancestors().nth(2).unwrap_or(&manifest).to_path_buf()
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Bindings(args) => bindings::run(&root(), &args),
        Command::Bundle(args) => bundle::run(&root(), &args),
        Command::Package(args) => package::run(&root(), &args),
        Command::Prove(args) => prove::run(&root(), &args),
        Command::Report(args) => table1::run(&root(), &args),
        Command::Sass(args) => sass::run(&root(), &args),
        Command::Unused => unused::run(&root()),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
