//! The `fused-lora` command.

mod common;
mod environment;
mod method;
mod output;
mod passes;
mod plot;
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
/// Exit codes: 0 for success, 1 for a failure at run time, 2 for bad usage.
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
    /// Slow-down over batch size and rank, as in the paper's Figure 5.
    Sweep(sweep::Args),
    /// One adapted layer: fused against sequential against the base layer alone.
    Bench(bench::Args),
    /// Compute logits with any adapter, to compare with PyTorch.
    Logits(logits::Args),
    /// Merge LoRA adapters into a model folder that transformers loads.
    Merge(merge::Args),
    /// Show devices, CPU features and what this build can run.
    Info(info::Args),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Table1(args) => table1::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Info(args) => info::run(&args),
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
