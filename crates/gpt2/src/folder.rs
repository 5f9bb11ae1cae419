//! Merging a LoRA into a model folder that transformers loads.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use fused_lora::lora::{Layout, Segment};
use fused_lora::{DType, Element, MatrixMut, cpu};
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

/// What a merge did to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedTensor {
    /// Its key.
    pub key: String,
    /// The type it is stored in.
    pub dtype: DType,
    /// The largest distance between an element as stored and its exact value.
    pub largest_rounding: f64,
    /// The largest change of an element.
    pub largest_change: f64,
}

/// Merges the LoRA in `adapters` (one folder each) into the model in `model` and writes the result to `out`, a folder
/// that must not exist yet. Tensors that no adapter touches are copied bit for bit unless `dtype` asks for another
/// type. Whatever else the folder holds beside weights (tokenizer, generation settings) is copied. All of it grows in a
/// temporary folder beside `out`, on the list of [`crate::remove_staged`], and modes follow the umask.
///
/// # Errors
/// As [`crate::Model::load`] and [`peft::load_lora`]; [`Error::Layer`] if a result is not finite; [`Error::OutputIsInput`]
/// if `out` lies in one of the folders that are read; [`Error::Io`] if it exists or cannot be written. Nothing is left at
/// `out` then.
pub fn merge_folder(model: &Path, adapters: &[&Path], out: &Path, dtype: Option<DType>) -> Result<Vec<MergedTensor>> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    if out.symlink_metadata().is_ok() {
        return Err(io(out)(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it exists already")));
    }
    for input in std::iter::once(&model).chain(adapters).filter(|input| input.exists()) {
        refuse_inside(out, input)?;
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = StagedFolder::new_in(parent).map_err(io(out))?;
    let create = |name: &Path| folder.create(name).map_err(io(out));
    let config_path = model.join("config.json");
    // What cannot be run is not merged either: this checks every key, shape and value.
    let config = Model::<f32>::load(model)?.config;
    let file = Checkpoint::open(&model.join("model.safetensors"))?;
    // Factors are read as f32, which holds every stored type without loss.
    let mut lora = Lora::<f32>::new(&config);
    for folder in adapters {
        lora.add(peft::load_lora(folder, &config)?)?;
    }

    let (bytes, report) = merged_file(&file, &config, &lora, dtype, out)?;
    create("model.safetensors".as_ref())?.write_all(&bytes).map_err(io(out))?;
    drop(bytes);
    let text = config_text(&config_path, dtype)?;
    create("config.json".as_ref())?.write_all(&text).map_err(io(out))?;
    for entry in std::fs::read_dir(model).map_err(io(model))? {
        let entry = entry.map_err(io(model))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let weights = [".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".gguf"];
        if text == "config.json" || weights.iter().any(|end| text.ends_with(end)) || !entry.path().is_file() {
            continue;
        }
        let mut from = std::fs::File::open(entry.path()).map_err(io(&entry.path()))?;
        std::io::copy(&mut from, &mut create(name.as_ref())?).map_err(io(&entry.path()))?;
    }
    folder.persist(out).map_err(io(out))?;
    Ok(report)
}

/// A tensor as it will be written: type, shape, bytes.
type Stored<'a> = (Dtype, Vec<usize>, Cow<'a, [u8]>);

/// The bytes of the merged model's file, and what became of its tensors; `out` is for errors.
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
            // Masks of old checkpoints.
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
        let bad = |e: safetensors::SafeTensorError| Error::NotSafetensors { path: out.into(), reason: e.to_string() };
        Ok((key.clone(), view.map_err(bad)?))
    });
    // transformers reads the framework from this entry.
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

/// One tensor as `T`, with segments merged into it. The sum is rounded once, from double precision, straight to `T`.
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
        .map_err(|source| Error::Layer { what: format!("{}: tensor '{key}'", file.path().display()), source })?;
    Ok((bytemuck::cast_slice(&out).to_vec(), report))
}

/// The configuration, with the type it names brought up to date.
fn config_text(from: &Path, dtype: Option<DType>) -> Result<Vec<u8>> {
    let text = std::fs::read(from).map_err(|source| Error::Io { path: from.into(), source })?;
    let bad = |source| Error::Json { path: from.into(), source };
    let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&text).map_err(bad)?;
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
    serde_json::to_vec_pretty(&config).map_err(bad)
}
