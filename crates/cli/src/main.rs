//! The `fused-lora` command.

mod column;
mod common;
mod environment;
mod interrupt;
mod messages;
mod method;
mod output;
mod passes;
mod plot;
mod results;
mod setting;
mod stats;
mod trial;

mod bench;
mod info;
mod logits;
mod merge;
mod sweep;
mod table1;

use clap::{Parser, Subcommand};

/// Fused LoRA kernels: the paper's Table 1, benchmarks, logits and merges.
///
/// A result file is written completely or not at all, also through symbolic links; a device or a FIFO is written to
/// directly. If a result goes to /dev/stdout, everything else is printed to stderr.
///
/// Exit codes: 0 for success, 1 for a failure at run time, 2 for bad usage, 128 + N when ended by signal N (Ctrl-C:
/// 130).
#[derive(Debug, Parser)]
#[command(name = "fused-lora", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time a forward pass with every method of the LoRA paper's Table 1.
    Table1(table1::Args),
    /// Measure the slow-down by batch size and rank, as in the paper's Figure 5.
    Sweep(sweep::Args),
    /// Time one layer with fused LoRA, with sequential LoRA, with bottleneck adapters, and alone.
    Bench(bench::Args),
    /// Compute logits with any adapter, to compare with PyTorch.
    Logits(logits::Args),
    /// Merge LoRA adapters into a model folder that transformers loads.
    Merge(merge::Args),
    /// Show devices, CPU features and the kernels of this build.
    Info(info::Args),
}

fn main() -> std::process::ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| match messages::usage_error(&error) {
        Some(text) => {
            eprint!("{text}");
            std::process::exit(error.exit_code())
        }
        None => error.exit(),
    });
    match interrupt::remove_temporary_files_when_ended().and_then(|()| run(cli.command)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", messages::error_line(&error));
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Table1(args) => table1::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Info(args) => info::run(&args),
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
