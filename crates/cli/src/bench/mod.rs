//! `bench`: one layer with fused LoRA, with sequential LoRA, with bottleneck adapters and alone; forward calls or
//! training passes.

mod adapter;
mod adapter_plan;
mod backward;
mod case;
mod comparison;
mod copies;
mod cpu;
mod cpu_layers;
mod cpu_row;
mod cublaslt;
mod device;
#[cfg(feature = "emulator")]
mod emulator;
mod explain;
mod goals;
mod gpu;
mod launch_timer;
mod overhead;
mod preset;
mod row;
mod variant;

use anyhow::{Result, bail, ensure};
use fused_lora::lora::Layout;
use fused_lora::{ComputePath, DType};

use self::preset::{Preset, RANKS, SHAPES, TOKENS};
use crate::common::{Backend, ComputeArgs, ResultFiles, parse_size, with_dtype};

const EXAMPLES: &str = "\
Examples:
  fused-lora bench
      The projections of GPT-2 medium at 1, 16 and 128 tokens, ranks 4 and 16
  fused-lora bench --tokens 1 --shapes 1024x1024 --ranks 4,16 --trials 25
      Batch size 1: fused LoRA against sequential adapter layers. adapter-h is Adapter^H (Houlsby) after the layer,
      y + up(relu(down y)); adapter-l is Adapter^L (Lin), y + up(relu(down(LayerNorm y))). Each is timed with as many parameters
      as the LoRA, and with the paper's width (112 and 224 hidden features, fewer if the layer has less than 1024 outputs).
      The last lines say what each costs over the base layer
  fused-lora bench --tokens 1 --shapes 4096x4096,4096x11008 --ranks 4,16,64 --dtype bf16 --layout out-in
      Decoding with the projections of a 7B model, weights stored as by torch.nn.Linear
  fused-lora bench --device cuda --dtype bf16 --layout out-in --tokens 1,4,16 --shapes 4096x4096
      The same on a GPU, launch by launch and as a CUDA graph, with cuBLASLt if its library is installed
  fused-lora bench --device cuda --dtype bf16 --layout out-in --preset forward --trials 15
      128 to 16384 tokens on layers of six shapes, and which goals are met; --preset decode for 1 to 16 tokens
  fused-lora bench --device cuda --dtype f32 --tf32 --tokens 128,4096 --shapes 4096x4096
      f32 multiplied in TF32, by our kernels and by cuBLASLt; without --tf32 both multiply in f32
  fused-lora bench --device emulator --dtype bf16 --tokens 1 --shapes 4096x4096 --ranks 16
      The bytes that the kernels request of memory, counted without a GPU
  fused-lora bench --explain --tokens 1,16,4096 --dtype bf16 --layout out-in --shapes 4096x4096 --ranks 16
      How an H100 or H200 would run each call: kernel, tile, grid, stages, workspace, bytes. Needs no GPU
  fused-lora bench --device cuda --dtype bf16 --layout out-in --preset backward --trials 15
      Forward and backward pass: fused LoRA against a frozen layer, and against the products of PEFT in its order
  fused-lora bench --explain --backward --tokens 8192 --dtype bf16 --layout out-in --shapes 4096x4096 --ranks 16
      How a GPU would run the three launches of a training pass; with --device emulator, the bytes that they request
  fused-lora bench --explain --capability 8.6 --multiprocessors 84 --dtype f16
      The same for another GPU; with --device cpu for the CPU";

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    files: ResultFiles,
    /// A named set of --tokens, --shapes and --ranks; an option given as well replaces that part of it
    #[arg(long, value_enum, value_name = "NAME")]
    preset: Option<Preset>,
    /// Rows of x
    #[arg(long, value_delimiter = ',', default_value = "1,16,128", default_value_ifs = TOKENS, value_parser = parse_size)]
    tokens: Vec<usize>,
    /// Layers, as d_in x d_out
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1024x1024,1024x3072,1024x4096,4096x1024",
        default_value_ifs = SHAPES,
        value_parser = shape
    )]
    shapes: Vec<(usize, usize)>,
    /// LoRA's ranks
    #[arg(long, value_delimiter = ',', default_value = "4,16", default_value_ifs = RANKS, value_parser = parse_size)]
    ranks: Vec<usize>,
    /// How the weight is stored: in-out as GPT-2's Conv1D, out-in as torch's Linear
    #[arg(long, value_enum, default_value = "in-out")]
    layout: LayoutArg,
    /// On a GPU, multiply f32 in TF32 (operands rounded to 10 fraction bits): our kernels from 17 tokens on, in
    /// training the forward launch only; cuBLASLt always
    #[arg(long)]
    tf32: bool,
    /// Time training passes instead of forward calls: forward with T saved, then dx, dA and dB; implied by --preset
    /// backward
    #[arg(long)]
    backward: bool,
    /// Rounds, each through all copies of the weight; fewer than six give no interval
    #[arg(long, default_value_t = 7, value_parser = parse_size)]
    trials: usize,
    /// Print how a GPU would run each call, or with --device cpu how the CPU would, and run nothing
    #[arg(long)]
    explain: bool,
    /// Compute capability of the GPU that --explain plans for
    #[arg(long, requires = "explain", default_value = "9.0", value_name = "MAJOR.MINOR", value_parser = capability)]
    capability: (u32, u32),
    /// SMs of the GPU that --explain plans for
    #[arg(long, requires = "explain", default_value_t = 132, value_name = "N", value_parser = parse_size)]
    multiprocessors: usize,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LayoutArg {
    InOut,
    OutIn,
}

impl From<LayoutArg> for Layout {
    fn from(layout: LayoutArg) -> Self {
        match layout {
            LayoutArg::InOut => Layout::InOut,
            LayoutArg::OutIn => Layout::OutIn,
        }
    }
}

impl LayoutArg {
    fn name(self) -> &'static str {
        match self {
            LayoutArg::InOut => "in-out",
            LayoutArg::OutIn => "out-in",
        }
    }
}

impl Args {
    /// The instructions that multiply on a GPU.
    fn path(&self) -> ComputePath {
        if self.tf32 { ComputePath::Tf32 } else { ComputePath::Auto }
    }

    /// Whether to time training passes.
    fn is_backward(&self) -> bool {
        self.backward || self.preset == Some(Preset::Backward)
    }

    /// The type that weights are stored in and, with --tf32, the type that they are multiplied in.
    fn arithmetic(&self) -> String {
        let dtype = self.compute.dtype;
        if self.tf32 { format!("{dtype} in tf32") } else { dtype.to_string() }
    }
}

fn capability(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| format!("'{text}' is not MAJOR.MINOR, as in 9.0"))
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let (d_in, d_out) = text.split_once('x').ok_or_else(|| format!("'{text}' is not D_INxD_OUT, as in 1024x4096"))?;
    Ok((parse_size(d_in)?, parse_size(d_out)?))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.files.check(None, &[])?;
    let dtype = args.compute.dtype;
    ensure!(!args.tf32 || dtype == DType::F32, "--tf32 multiplies f32, not {dtype}");
    if args.explain && !args.compute.asks_for_cpu() {
        return explain::explain(args);
    }
    match args.compute.start(&[Backend::Cpu, Backend::Cuda, Backend::Emulator])? {
        Backend::Cpu if args.tf32 => bail!("--tf32 needs --device cuda or emulator, or --explain"),
        Backend::Cpu => with_dtype!(dtype, cpu_measure(args)),
        Backend::Cuda => with_dtype!(dtype, gpu_measure(args)),
        #[cfg(feature = "emulator")]
        Backend::Emulator => with_dtype!(dtype, emulator_measure(args)),
        #[cfg(not(feature = "emulator"))]
        Backend::Emulator => bail!("no emulator: this build has none: build it with `--features emulator`"),
    }
}

fn cpu_measure<W: fused_lora::Element>(args: &Args) -> Result<()> {
    cpu::measure::<W>(args, "cpu")
}

fn gpu_measure<W: fused_lora::Element>(args: &Args) -> Result<()> {
    gpu::measure::<W>(args)
}

#[cfg(feature = "emulator")]
fn emulator_measure<W: fused_lora::Element>(args: &Args) -> Result<()> {
    emulator::measure::<W>(args)
}
