//! `--explain`: how a GPU would run each call. No device is opened.

use anyhow::Result;
use fused_lora::abi::{LORA_GRADIENTS_COLUMNS, LORA_GRADIENTS_RANKS};
use fused_lora::lora::Layout;
use fused_lora::plan::adapter::AdapterProblem;
use fused_lora::plan::lora::{BackwardPlan, BackwardProblem, GradientsPlan, GradientsSegment};
use fused_lora::plan::lora::{ForwardPlan, Plan};
use fused_lora::plan::transformer::RowPlan;
use fused_lora::{ComputePath, DType, LayerProblem};
use serde::Serialize;

use super::Args;
use super::adapter::Adapter;
use super::variant::{BACKWARD, DX, FACTOR_GRADIENTS, FORWARD};
use crate::output::{emit, table, with_commas};

#[derive(Debug, Default, Serialize)]
struct Row {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    variant: &'static str,
    /// Hidden features of a bottleneck adapter.
    width: Option<usize>,
    kernel: String,
    /// The tile: tokens x columns for y and dx; columns of x or dy x ranks for dA and dB.
    tile: String,
    /// The number of pipeline stages, and the steps of k (of tokens for dA and dB) in each.
    stages: String,
    grid: String,
    threads: u32,
    shared_bytes: u32,
    /// The number of splits, and the steps of k (of tokens for dA and dB) in each.
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
                let shape = (d_in, d_out);
                let planned = if args.is_backward() {
                    training_launches(args, dtype, tokens, shape, rank)
                } else {
                    let of = |ranks| plan(args, dtype, tokens, shape, ranks, false).map(|plan| Row::of(&plan));
                    let mut planned = vec![("base", of(&[])), ("fused", of(&[rank]))];
                    for adapter in Adapter::to_compare_with(shape, rank) {
                        planned.extend(adapter_launches(args, dtype, tokens, &adapter));
                    }
                    planned
                };
                for (variant, row) in planned {
                    match row {
                        Ok(row) => rows.push(Row { tokens, d_in, d_out, rank, variant, ..row }),
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
    let (compute_capability, multiprocessors) = (format!("{major}.{minor}"), args.multiprocessors);
    let report = || Report { compute_capability, multiprocessors, dtype: arithmetic, layout, rows: &rows };
    args.files.write(report, &rows)
}

/// The plan of a forward call on packed matrices.
fn plan(
    args: &Args,
    dtype: DType,
    tokens: usize,
    (d_in, d_out): (usize, usize),
    ranks: &[usize],
    saves_t: bool,
) -> fused_lora::Result<Plan> {
    let layout = args.layout.into();
    let problem = LayerProblem {
        tokens,
        d_in,
        d_out,
        layout,
        dtype,
        ranks,
        aligned: are_aligned(layout, dtype, (d_in, d_out), d_in),
        multiprocessors: args.multiprocessors,
        compute_capability: args.capability,
        path: args.path(),
    };
    Plan::new(&problem, saves_t)
}

/// The launches of a bottleneck adapter; they come after the launch of the base layer.
fn adapter_launches(
    args: &Args,
    dtype: DType,
    tokens: usize,
    adapter: &Adapter,
) -> Vec<(&'static str, fused_lora::Result<Row>)> {
    let &Adapter { d, width, .. } = adapter;
    let with_width = |row| Row { width: Some(width), ..row };
    let norm = adapter.has_norm.then(|| {
        let plan = RowPlan::layer_norm(tokens, d, dtype, args.multiprocessors);
        (adapter.norm_name(), plan.map(|plan| with_width(Row::of_norm(&plan))))
    });
    let plan = ForwardPlan::adapter(&AdapterProblem {
        tokens,
        d,
        width,
        dtype,
        aligned: (d * dtype.size()).is_multiple_of(16),
        multiprocessors: args.multiprocessors,
        compute_capability: args.capability,
        path: ComputePath::Auto,
    });
    let own = plan.map(|plan| with_width(Row::of(&Plan::Forward(plan))));
    norm.into_iter().chain([(adapter.name, own)]).collect()
}

/// Whether all rows of W0, and of a packed matrix with this many columns, start at multiples of 16 bytes.
fn are_aligned(layout: Layout, dtype: DType, (d_in, d_out): (usize, usize), columns: usize) -> bool {
    let stored = match layout {
        Layout::OutIn => d_in,
        Layout::InOut => d_out,
    };
    [stored, columns].iter().all(|columns| (columns * dtype.size()).is_multiple_of(16))
}

/// The launches of a training pass.
fn training_launches(
    args: &Args,
    dtype: DType,
    tokens: usize,
    (d_in, d_out): (usize, usize),
    rank: usize,
) -> Vec<(&'static str, fused_lora::Result<Row>)> {
    let forward = plan(args, dtype, tokens, (d_in, d_out), &[rank], true).map(|plan| {
        let (row, saved_t) = (Row::of(&plan), tokens * rank * dtype.size());
        Row { bytes: row.bytes + saved_t, floor_bytes: row.floor_bytes + saved_t, ..row }
    });
    let layout = args.layout.into();
    let backward = BackwardPlan::new(&BackwardProblem {
        tokens,
        d_in,
        d_out,
        layout,
        dtype,
        segments: &[GradientsSegment { columns: 0..d_out, rank }],
        aligned: are_aligned(layout, dtype, (d_in, d_out), d_out),
        multiprocessors: args.multiprocessors,
        compute_capability: args.capability,
        path: args.path(),
        dx: true,
        bias: false,
    });
    let mut planned = vec![(FORWARD, forward)];
    match backward {
        Ok(BackwardPlan { input, gradients }) => {
            planned.extend(input.map(|input| (DX, Ok(Row::of(&Plan::Forward(input))))));
            planned.extend(gradients.map(|gradients| (FACTOR_GRADIENTS, Ok(Row::of_gradients(&gradients)))));
        }
        Err(error) => planned.push((BACKWARD, Err(error))),
    }
    planned
}

impl Row {
    /// A row with the plan's columns; the caller fills in the others.
    fn of(plan: &Plan) -> Self {
        let ([rows, columns], [splits, depth]) = (plan.tile(), plan.splits());
        Self {
            kernel: plan.launch().kernel.to_owned(),
            tile: format!("{rows} x {columns}"),
            stages: plan.stages().map_or("-".to_owned(), |[stages, depth]| format!("{stages} of {depth}")),
            grid: plan.launch().grid.map(|n| n.to_string()).join(" x "),
            threads: plan.launch().threads,
            shared_bytes: plan.launch().shared_bytes,
            splits: format!("{splits} of {depth}"),
            launches: plan.launches(),
            workspace_bytes: plan.workspace().bytes(),
            bytes: plan.moved_bytes(),
            floor_bytes: plan.floor_bytes(),
            ..Self::default()
        }
    }

    fn of_norm(plan: &RowPlan) -> Self {
        Self {
            kernel: plan.launch.kernel.clone(),
            tile: "-".to_owned(),
            stages: "-".to_owned(),
            grid: plan.launch.grid.map(|n| n.to_string()).join(" x "),
            threads: plan.launch.threads,
            shared_bytes: plan.launch.shared_bytes,
            splits: "-".to_owned(),
            launches: 1,
            bytes: plan.floor_bytes,
            floor_bytes: plan.floor_bytes,
            ..Self::default()
        }
    }

    fn of_gradients(plan: &GradientsPlan) -> Self {
        Self {
            kernel: plan.launch.kernel.clone(),
            tile: format!("{LORA_GRADIENTS_COLUMNS} x {LORA_GRADIENTS_RANKS}"),
            stages: format!("{} of {}", plan.stages, plan.stage_tokens),
            grid: plan.launch.grid.map(|n| n.to_string()).join(" x "),
            threads: plan.launch.threads,
            shared_bytes: plan.launch.shared_bytes,
            splits: format!("{} of {}", plan.splits, plan.split_tokens),
            launches: 1,
            workspace_bytes: plan.workspace.bytes(),
            bytes: plan.moved_bytes,
            floor_bytes: plan.floor_bytes,
            ..Self::default()
        }
    }
}

fn print(rows: &[Row]) -> String {
    let header = [
        "layer",
        "tokens",
        "r",
        "variant",
        "width",
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
            r.width.map_or("-".into(), |width| width.to_string()),
            r.kernel.clone(),
            r.tile.clone(),
            r.stages.clone(),
            r.grid.clone(),
            r.threads.to_string(),
            r.shared_bytes.to_string(),
            r.splits.clone(),
            r.launches.to_string(),
            with_commas(r.workspace_bytes),
            with_commas(r.bytes),
            with_commas(r.floor_bytes),
        ]
    });
    table(&header, cells)
}
