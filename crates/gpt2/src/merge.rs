//! Merging a LoRA into a model folder that transformers loads.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use fused_lora::lora::{Layout, Segment};
use fused_lora::{DType, Element, MatrixMut, cpu};
use fused_lora_peft::{Error as FileError, Fields, Warning};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::adapter::lora::{Lora, Projection};
use crate::checkpoint::{Checkpoint, serialize};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Model, key_prefix};
use crate::output::{StagedFolder, refuse_inside};
use crate::peft;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// The effect of a merge on one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedTensor {
    /// The tensor's key.
    pub key: String,
    /// The tensor's storage type.
    pub dtype: DType,
    /// The largest distance between an element as stored and its exact value.
    pub largest_rounding: f64,
    /// The largest change of an element.
    pub largest_change: f64,
}

/// A file or folder of the model that the result does not contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The file's name.
    pub name: String,
    /// Why it was left out.
    pub reason: &'static str,
}

/// The outcome of a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The tensors that an adapter changed.
    pub tensors: Vec<MergedTensor>,
    /// The files that the result does not contain, sorted by name.
    pub left_out: Vec<LeftOut>,
    /// Warnings about parts of the model and the adapters that were ignored, and about tensors stored in another type.
    pub warnings: Vec<Warning>,
}

/// Merges the LoRAs in `adapters` (one folder each) into the model in `model` and writes the result to `out`, a folder
/// that must not exist yet. Tensors that no adapter touches are copied bit for bit unless `dtype` asks for another
/// type; F64 is stored as F32, with a warning. Shards become one file. The folder's other files (tokenizer, generation
/// settings) are copied, except for files that do not belong to merged weights: see [`Merged::left_out`]. The
/// result is first written to a temporary folder next to `out`, which [`crate::remove_staged`] removes. File
/// modes follow the umask.
///
/// # Errors
/// As [`crate::Model::load`] and [`peft::load_lora`]; [`Error::Layer`] if a result is not finite;
/// [`Error::OutputIsInput`] if `out` lies in one of the input folders; [`Error::Io`] if `out` exists or cannot be
/// written. After an error, no result is left at `out`.
pub fn merge_folder(model: &Path, adapters: &[&Path], out: &Path, dtype: Option<DType>) -> Result<Merged> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    if out.symlink_metadata().is_ok() {
        return Err(io(out)(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it already exists")));
    }
    for input in std::iter::once(&model).chain(adapters).filter(|input| input.exists()) {
        refuse_inside(out, input)?;
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = StagedFolder::new_in(parent).map_err(io(out))?;
    let create = |name: &Path| folder.create(name).map_err(io(out));
    // Loading the model checks every key, shape and value: a model that cannot be run is not merged either.
    let checked = Model::<f32>::load(model)?;
    let (config, mut warnings) = (checked.config, checked.warnings);
    let file = Checkpoint::of_model(model)?;
    // Factors are read as f32, which holds F32, F16 and BF16 without loss.
    let mut lora = Lora::<f32>::new(&config);
    for folder in adapters {
        lora.add(peft::load_lora(folder, &config)?)?;
    }
    warnings.extend_from_slice(lora.warnings());

    let (bytes, tensors) = merged_file(&file, &config, &lora, dtype, out)?;
    create(WEIGHTS.as_ref())?.write_all(&bytes).map_err(io(out))?;
    drop(bytes);
    let narrowed = dtype.is_none() && file.keys().iter().any(|key| file.raw(key).is_ok_and(|raw| raw.0 == Dtype::F64));
    if narrowed {
        warnings.push(Warning::new(file.path(), "tensors stored as F64 are stored as F32 in the result"));
    }
    let stored_as = dtype.or(narrowed.then_some(DType::F32));
    let text = config_text(&model.join(CONFIG), stored_as)?;
    create(CONFIG.as_ref())?.write_all(&text).map_err(io(out))?;
    let mut left_out = vec![];
    for entry in std::fs::read_dir(model).map_err(io(model))? {
        let entry = entry.map_err(io(model))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == CONFIG || text == WEIGHTS {
            continue;
        }
        if let Some(reason) = reason_to_leave_out(&text, entry.path().is_file()) {
            left_out.push(LeftOut { name: text.into_owned(), reason });
            continue;
        }
        let mut from = std::fs::File::open(entry.path()).map_err(io(&entry.path()))?;
        std::io::copy(&mut from, &mut create(name.as_ref())?).map_err(io(&entry.path()))?;
    }
    left_out.sort_by(|a, b| a.name.cmp(&b.name));
    folder.persist(out).map_err(io(out))?;
    Ok(Merged { tensors, left_out, warnings })
}

/// Why a file of the model's folder must be left out of the result; `None` if it is copied.
fn reason_to_leave_out(name: &str, is_file: bool) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let weights = [
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".onnx",
        ".onnx_data",
        ".ot",
        ".gguf",
        ".npz",
        ".pkl",
        ".tflite",
        ".mlmodel",
    ];
    if name == "adapter_config.json" {
        Some("it would make transformers load the folder as an adapter")
    } else if name.starts_with("adapter_model.") {
        Some("it holds an adapter's weights")
    } else if name.ends_with(".index.json") {
        Some("it lists shards that the result does not have")
    } else if weights.iter().any(|end| name.ends_with(end)) {
        Some("it holds weights without the merge")
    } else if !is_file {
        Some("it is not a file")
    } else {
        None
    }
}

/// A tensor as it will be written: type, shape, bytes.
type Stored<'a> = (Dtype, Vec<usize>, Cow<'a, [u8]>);

/// The bytes of the merged model's file, and a report on each merged tensor. `out` is only named in errors.
fn merged_file(
    file: &Checkpoint,
    config: &Config,
    lora: &Lora<f32>,
    dtype: Option<DType>,
    out: &Path,
) -> Result<(Vec<u8>, Vec<MergedTensor>)> {
    let prefix = key_prefix(file);
    let mut report = vec![];
    let mut tensors: BTreeMap<String, Stored<'_>> = BTreeMap::new();
    for key in file.keys() {
        let (stored, shape, bytes) = file.raw(&key)?;
        let target = match (dtype, stored) {
            (_, Dtype::F64) => dtype.unwrap_or(DType::F32),
            (Some(dtype), Dtype::F32 | Dtype::F16 | Dtype::BF16) => dtype,
            (None, Dtype::F32) => DType::F32,
            (None, Dtype::F16) => DType::F16,
            (None, Dtype::BF16) => DType::Bf16,
            // Tensors of other types, such as the masks of old checkpoints.
            _ => {
                tensors.insert(key, (stored, shape.to_vec(), Cow::Borrowed(bytes)));
                continue;
            }
        };
        let adapted = key.strip_prefix(prefix).and_then(|name| {
            let (layer, rest) = name.strip_prefix("h.")?.split_once('.')?;
            let layer: usize = layer.parse().ok()?;
            let projection = Projection::named(rest.strip_suffix(".weight")?)?;
            (layer < config.layers && !lora.layers[layer][projection as usize].is_empty())
                .then_some((layer, projection))
        });
        let same = safetensors_dtype(target) == stored;
        let (bytes, merged) = match adapted {
            None if same => (Cow::Borrowed(bytes), None),
            _ => {
                let segments = match adapted {
                    Some((layer, projection)) => lora.segments(layer, projection)?,
                    None => vec![],
                };
                let (bytes, merged) = match target {
                    DType::F32 => rewrite::<f32>(file, &key, shape, &segments)?,
                    DType::F16 => rewrite::<f16>(file, &key, shape, &segments)?,
                    DType::Bf16 => rewrite::<bf16>(file, &key, shape, &segments)?,
                };
                (Cow::Owned(bytes), adapted.map(|_| merged))
            }
        };
        if let Some(merged) = merged {
            report.push(MergedTensor {
                key: key.clone(),
                dtype: target,
                largest_rounding: merged.largest_rounding,
                largest_change: merged.largest_change,
            });
        }
        tensors.insert(key, (safetensors_dtype(target), shape.to_vec(), bytes));
    }
    let views = tensors.iter().map(|(key, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes);
        let bad =
            |e: safetensors::SafeTensorError| FileError::NotSafetensors { path: out.into(), reason: e.to_string() };
        Ok((key.clone(), view.map_err(bad)?))
    });
    // transformers requires this entry, which names the framework.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok((serialize(out, &views.collect::<Result<_>>()?, Some(metadata))?, report))
}

fn safetensors_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
    }
}

/// A tensor as `T`, with segments merged into it. Sums are rounded once, from double precision to `T`.
fn rewrite<T: Element>(
    file: &Checkpoint,
    key: &str,
    shape: &[usize],
    segments: &[Segment<'_, f32>],
) -> Result<(Vec<u8>, cpu::MergeReport)> {
    if segments.is_empty() {
        let values = file.floats::<T>(key, shape)?;
        return Ok((bytemuck::cast_slice(&values[..]).to_vec(), cpu::MergeReport::default()));
    }
    let wide = file.floats::<f32>(key, shape)?;
    let mut out = vec![T::default(); wide.len()];
    let (rows, cols) = (shape[0], shape[1]);
    let source = fused_lora::MatrixRef::new(&wide, rows, cols)?;
    let mut target = MatrixMut::new(&mut out, rows, cols)?;
    let report = cpu::merge_into(source, Layout::InOut, segments, &mut target)
        .map_err(|source| Error::Layer { what: format!("{}: tensor '{key}'", file.path_of(key).display()), source })?;
    Ok((bytemuck::cast_slice(&out).to_vec(), report))
}

/// The text of config.json with the element type of the merged weights.
fn config_text(from: &Path, dtype: Option<DType>) -> Result<Vec<u8>> {
    let fields = Fields::read(from)?;
    let mut config: serde_json::Map<String, Value> = fields.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(dtype) = dtype {
        let name = match dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::Bf16 => "bfloat16",
        };
        // Older versions of transformers call the field torch_dtype.
        let field = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        config.insert(field.into(), Value::String(name.into()));
    }
    Ok(format!("{:#}\n", Value::Object(config)).into_bytes())
}
