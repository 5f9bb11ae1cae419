//! How a GPU would run each call: no device is opened.

use anyhow::Result;
use fused_lora::forward::Plan;
use fused_lora::{DType, LayerProblem};
use serde::Serialize;

use super::Args;
use crate::output::{emit, grouped, table, write_csv, write_json};

#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    variant: &'static str,
    kernel: String,
    /// Of y, in tokens x columns.
    tile: String,
    /// In flight or at work, and the depth of each.
    stages: String,
    grid: String,
    threads: u32,
    shared_bytes: u32,
    /// CTAs that share a tile's depth, and the depth of each.
    splits: String,
    launches: usize,
    workspace_bytes: usize,
    /// Global bytes, each shared value fetched once.
    bytes: usize,
    floor_bytes: usize,
}

#[derive(Serialize)]
struct Report<'a> {
    compute_capability: String,
    multiprocessors: usize,
    dtype: String,
    layout: String,
    rows: &'a [Row],
}

pub(super) fn explain(args: &Args) -> Result<()> {
    let (dtype, arithmetic) = (args.compute.dtype, args.arithmetic());
    let (major, minor) = args.capability;
    let layout = format!("{:?}", args.layout);
    emit(&format!(
        "planned for compute capability {major}.{minor} and {} SMs: {arithmetic}, {}\n\n",
        args.multiprocessors,
        args.layout.name()
    ))?;
    let (mut rows, mut refused) = (vec![], vec![]);
    for &(d_in, d_out) in &args.shapes {
        for &rank in &args.ranks {
            for &tokens in &args.tokens {
                for (variant, ranks) in [("base", &[][..]), ("fused", &[rank][..])] {
                    match plan(args, dtype, tokens, (d_in, d_out), ranks) {
                        Ok(plan) => rows.push(Row { tokens, d_in, d_out, rank, variant, ..Row::of(&plan) }),
                        Err(error) => {
                            refused.push(format!("{tokens} x {d_in} -> {d_out}, r {rank}, {variant}: {error}\n"))
                        }
                    }
                }
            }
        }
    }
    if !rows.is_empty() {
        emit(&print(&rows))?;
    }
    refused.iter().try_for_each(|line| emit(line))?;
    if let Some(path) = &args.files.json {
        let compute_capability = format!("{major}.{minor}");
        let multiprocessors = args.multiprocessors;
        write_json(path, &Report { compute_capability, multiprocessors, dtype: arithmetic, layout, rows: &rows })?;
    }
    if let Some(path) = &args.files.csv {
        write_csv(path, &rows)?;
    }
    Ok(())
}

/// The plan for packed matrices, as the benchmark has them.
fn plan(
    args: &Args,
    dtype: DType,
    tokens: usize,
    (d_in, d_out): (usize, usize),
    ranks: &[usize],
) -> fused_lora::Result<Plan> {
    let layout = args.layout.into();
    let is_aligned = |columns: usize| (columns * dtype.size()).is_multiple_of(16);
    let stored = match layout {
        fused_lora::lora::Layout::OutIn => d_in,
        fused_lora::lora::Layout::InOut => d_out,
    };
    let problem = LayerProblem {
        tokens,
        d_in,
        d_out,
        layout,
        dtype,
        ranks,
        aligned: is_aligned(stored) && is_aligned(d_in),
        multiprocessors: args.multiprocessors,
        compute_capability: args.capability,
        path: args.path(),
    };
    Plan::new(&problem, false)
}

impl Row {
    /// What the plan says; the rest is the caller's.
    fn of(plan: &Plan) -> Self {
        let ([rows, columns], [splits, depth]) = (plan.tile(), plan.splits());
        Self {
            tokens: 0,
            d_in: 0,
            d_out: 0,
            rank: 0,
            variant: "",
            kernel: plan.kernel().to_owned(),
            tile: format!("{rows} x {columns}"),
            stages: plan.stages().map_or("-".to_owned(), |[stages, depth]| format!("{stages} of {depth}")),
            grid: plan.grid().map(|n| n.to_string()).join(" x "),
            threads: plan.threads(),
            shared_bytes: plan.shared_bytes(),
            splits: format!("{splits} of {depth}"),
            launches: plan.launches(),
            workspace_bytes: plan.workspace().bytes(),
            bytes: plan.moved_bytes(),
            floor_bytes: plan.floor_bytes(),
        }
    }
}

fn print(rows: &[Row]) -> String {
    let header = [
        "layer",
        "tokens",
        "r",
        "variant",
        "kernel",
        "tile",
        "stages",
        "grid",
        "threads",
        "shared B",
        "splits",
        "launches",
        "workspace B",
        "bytes",
        "floor B",
    ];
    let cells = rows.iter().map(|r| {
        vec![
            format!("{} -> {}", r.d_in, r.d_out),
            r.tokens.to_string(),
            r.rank.to_string(),
            r.variant.into(),
            r.kernel.clone(),
            r.tile.clone(),
            r.stages.clone(),
            r.grid.clone(),
            r.threads.to_string(),
            r.shared_bytes.to_string(),
            r.splits.clone(),
            r.launches.to_string(),
            grouped(r.workspace_bytes),
            grouped(r.bytes),
            grouped(r.floor_bytes),
        ]
    });
    table(&header, cells)
}
