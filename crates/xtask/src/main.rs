//! Development tasks of this workspace: `cargo xtask COMMAND`.

mod bindings;
mod bundle;
mod check;
mod comparison;
mod disassembly;
mod package;
mod picture;
mod prove;
mod ptxas;
mod report;
mod results;
mod rules;
mod sass;
mod stand_in;
mod toolchain;
mod unused;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Development tasks of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate src/abi.rs from kernels/abi.h.
    Bindings(bindings::Args),
    /// Make a folder with all that a GPU host without Rust needs to test and time the kernels.
    Bundle(bundle::Args),
    /// Build and test every crate from its own archive.
    Package(package::Args),
    /// Run the tests at full depth: all schedules and builds, and the planted bugs.
    Prove(prove::Args),
    /// Write docs/table1.md and its picture from the committed results.
    Report(report::Args),
    /// Compile every kernel for every target and check its machine code against the rules in its source.
    Sass(sass::Args),
    /// Run the programs of a bundle on the stand-in driver, and plant bugs in their driver calls.
    StandIn(stand_in::Args),
    /// Check that every declared dependency is used.
    Unused,
}

/// The root of the checkout that cargo was called in, which need not be the one that built this program.
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
        Command::Report(args) => report::run(&root(), &args),
        Command::Sass(args) => sass::run(&root(), &args),
        Command::StandIn(args) => stand_in::run(&root(), &args),
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
