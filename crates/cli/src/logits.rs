//! `logits`: computes the logits of a model with an adapter, to compare them with PyTorch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fused_lora::Element;
use fused_lora::device::Stream;
use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind};
use fused_lora_gpt2::device::{DeviceAdapters, DeviceForward, DeviceModel, PassShape};
use fused_lora_gpt2::{Adapters, Checkpoint, Forward, LoraMode, Model, Warning, peft, write_tensors};
use fused_lora_peft::{first_few, one_line};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::common::{Backend, ComputeArgs, with_dtype};
use crate::output::{emit, warn};
use crate::results::check_outputs;

const EXAMPLES: &str = "\
Examples:
  fused-lora logits --model ./gpt2 --tokens \"464,3290;1212,318\" --out logits.safetensors
      Two sequences of two tokens through the base model
  fused-lora logits --model ./gpt2 --adapter ./my-lora --tokens batch.safetensors --out logits.safetensors
      A PEFT LoRA, unmerged and fused; token ids from the tensor 'tokens' [batch, tokens]
  fused-lora logits --model ./gpt2 --bottleneck adapter.safetensors --kind houlsby --drop-adapters 6 --tokens 464 --out o.safetensors
      Houlsby adapters, without the adapters of the lowest six layers";

/// Arguments of `logits`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compute: ComputeArgs,
    /// Model folder: config.json and model.safetensors, or its shards and model.safetensors.index.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT folder with a LoRA or a prefix; may be given twice
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// Bottleneck adapters: h.{i}.adapter[_attn|_mlp].{down,up}.{weight,bias} and, for lin, .ln.{weight,bias}
    #[arg(long, value_name = "FILE", requires = "kind")]
    bottleneck: Option<PathBuf>,
    /// Kind of the bottleneck adapters
    #[arg(long, value_name = "houlsby|lin|pfeiffer", requires = "bottleneck")]
    kind: Option<Kind>,
    /// Leave out the adapters of the lowest N layers
    #[arg(long, value_name = "N", requires = "bottleneck", default_value_t = 0)]
    drop_adapters: usize,
    /// Token ids, sequences separated by ';', or a safetensors file with an integer tensor 'tokens' [batch, tokens]
    #[arg(long, value_name = "IDS|FILE")]
    tokens: String,
    /// Where to write the tensor 'logits', f32 [batch, tokens, vocabulary]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Merge the LoRA into the weights first
    #[arg(long, conflicts_with = "unfused")]
    merged: bool,
    /// Run the LoRA as separate layers, as PEFT does
    #[arg(long)]
    unfused: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let files = [args.bottleneck.as_deref(), Some(Path::new(&args.tokens)).filter(|path| path.is_file())];
    let folders = std::iter::once(&args.model).chain(&args.adapter).map(PathBuf::as_path);
    let inputs: Vec<&Path> = files.into_iter().flatten().chain(folders).collect();
    check_outputs(&[("--out", &args.out)], &inputs)?;
    let backend = args.compute.start(&[Backend::Cpu, Backend::Cuda, Backend::Emulator])?;
    with_dtype!(args.compute.dtype, compute(args, backend))
}

fn compute<W: Element>(args: &Args, backend: Backend) -> Result<()> {
    let tokens = read_tokens(&args.tokens)?;
    let mut model = Model::<W>::load(&args.model)?;
    warn(model.warnings());
    let mut adapters = Adapters::default();
    for folder in &args.adapter {
        adapters.combine(peft::load(folder, &model.config)?).with_context(|| folder.display().to_string())?;
    }
    warn(adapters.lora.iter().flat_map(|lora| lora.warnings()));
    if let (Some(path), Some(kind)) = (&args.bottleneck, args.kind) {
        let mut bottleneck = Bottleneck::load(path, kind, &model.config)?;
        if args.drop_adapters > model.config.layers {
            bail!("--drop-adapters {}: the model has only {} layers", args.drop_adapters, model.config.layers);
        }
        bottleneck.drop_lowest(args.drop_adapters);
        adapters.combine(Adapters { bottleneck: Some(bottleneck), ..Adapters::default() })?;
    }
    if args.merged {
        match adapters.lora.take() {
            Some(lora) => model = model.merged(&lora)?,
            None => bail!("--merged: none of the --adapter folders holds a LoRA"),
        }
    }
    if args.unfused {
        adapters.mode = LoraMode::Sequential;
    }
    let sequences: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let logits = match backend {
        Backend::Cpu => Forward::new().logits(&model, &adapters, &sequences).map(<[f32]>::to_vec),
        _ => on_device(backend, &model, &adapters, &sequences),
    };
    let logits = logits.with_context(|| format!("--tokens {}", one_line(&args.tokens)))?;
    if !fused_lora::cpu::vector::all_finite(&logits) {
        bail!("{}: the logits are not all finite; nothing was written", args.model.display());
    }
    let shape = vec![sequences.len(), sequences[0].len(), model.config.vocabulary];
    // safetensors is little-endian, as are all processors that this crate supports.
    let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(&logits)).context("logits")?;
    write_tensors(&args.out, &BTreeMap::from([("logits".to_owned(), view)]), None)?;
    emit(&format!("{}: logits f32 {shape:?}\n", args.out.display()))
}

fn on_device<W: Element>(
    backend: Backend,
    model: &Model<W>,
    adapters: &Adapters<W>,
    sequences: &[&[u32]],
) -> fused_lora_gpt2::Result<Vec<f32>> {
    let stream = Stream::new(&backend.open()?)?;
    let adapters = DeviceAdapters::upload(&stream, adapters, &model.config)?;
    let model = DeviceModel::upload(&stream, model)?;
    let tokens = sequences.first().map_or(0, |sequence| sequence.len());
    let mut forward = DeviceForward::new(&stream, &model, &adapters, PassShape::whole(sequences.len(), tokens))?;
    forward.set_tokens(&stream, &model, &adapters, sequences, None)?;
    forward.run(&stream, &model, &adapters, None)?;
    forward.logits(&stream, &model)
}

fn read_tokens(text: &str) -> Result<Vec<Vec<u32>>> {
    if Path::new(text).is_file() {
        let file = Checkpoint::open(Path::new(text))?;
        let others: Vec<String> = file.keys().into_iter().filter(|key| key != "tokens").collect();
        if !others.is_empty() {
            warn([&Warning::new(text, format!("only 'tokens' is read, not {}", first_few(&others)))]);
        }
        return Ok(file.token_ids("tokens")?);
    }
    let id = |id: &str| {
        let expected = "expected token ids such as \"1,2,3;4,5,6\", or a safetensors file";
        id.trim()
            .parse::<u32>()
            .with_context(|| format!("--tokens: '{}' is not a token id, {expected}", one_line(id.trim())))
    };
    text.split(';').map(|sequence| sequence.split(',').map(id).collect()).collect()
}
