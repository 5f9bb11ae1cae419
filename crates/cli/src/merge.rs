//! `merge`: merges LoRA adapters into a copy of a model folder.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fused_lora::DType;
use fused_lora_gpt2::merge_folder;

use crate::output::{emit, table, warn};

const EXAMPLES: &str = "\
Examples:
  fused-lora merge --model ./gpt2 --adapter ./my-lora --out ./gpt2-merged
  fused-lora merge --model ./gpt2 --adapter ./style --adapter ./task --out ./merged --dtype bf16
      Two adapters at once, every tensor stored as bf16";

/// Arguments of `merge`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Model folder: config.json and model.safetensors, or its shards and model.safetensors.index.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT LoRA folder; may be given several times
    #[arg(long, value_name = "DIR", required = true)]
    adapter: Vec<PathBuf>,
    /// Folder to write, which must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type to store all tensors in [default: as they are]
    #[arg(long, value_name = "f32|f16|bf16")]
    dtype: Option<DType>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let adapters: Vec<&Path> = args.adapter.iter().map(PathBuf::as_path).collect();
    let merged = merge_folder(&args.model, &adapters, &args.out, args.dtype)?;
    let header = ["tensor", "stored as", "largest change", "largest rounding"];
    warn(&merged.warnings);
    let rows = merged.tensors.iter().map(|t| {
        let number = |v: f64| format!("{v:.3e}");
        vec![t.key.clone(), t.dtype.to_string(), number(t.largest_change), number(t.largest_rounding)]
    });
    let left_out: String =
        merged.left_out.iter().map(|file| format!("left out {:?}: {}\n", file.name, file.reason)).collect();
    let table = table(&header, rows);
    emit(&format!("{table}{left_out}{}: {} tensors merged\n", args.out.display(), merged.tensors.len()))
}
