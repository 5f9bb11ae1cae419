//! safetensors files: reads them as elements of a type, and writes them completely or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use fused_lora::cpu::vector::all_finite;
use fused_lora::{DType, Element};
use fused_lora_peft::Error as FileError;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

use crate::error::{Error, Result};
use crate::output::write_atomically;
use crate::tensor::Tensor;

/// Elements that one task converts or checks.
const CHUNK: usize = 1 << 16;

/// An open checkpoint: one safetensors file, or the shards of a model.
#[derive(Debug)]
pub struct Checkpoint {
    file: fused_lora_peft::Checkpoint,
}

impl Checkpoint {
    /// Maps a file and checks its header against its length.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] if the file is truncated, damaged or not a safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: fused_lora_peft::Checkpoint::open(path)? })
    }

    /// Opens a model's weights: `model.safetensors`, else the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// As [`fused_lora_peft::Checkpoint::of_model`].
    pub fn of_model(folder: &Path) -> Result<Self> {
        Ok(Self { file: fused_lora_peft::Checkpoint::of_model(folder)? })
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file that a tensor is in.
    pub fn path_of(&self, key: &str) -> &Path {
        self.file.path_of(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        self.file.keys().map(String::from).collect()
    }

    /// The shape of a tensor, if it exists.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.file.shape(key)
    }

    /// A tensor's stored type, shape and bytes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is missing.
    pub fn raw(&self, key: &str) -> Result<(Dtype, &[usize], &[u8])> {
        let (path, key) = (self.path().to_path_buf(), key.to_owned());
        let missing = |key| FileError::MissingTensor { path, key, expected: "a tensor".into() }.into();
        self.file.raw(&key).ok_or_else(|| missing(key))
    }

    /// A tensor of floats as `T`: mapped in place if it is stored as `T` and aligned, otherwise converted. All elements
    /// are finite.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the tensor is missing or has another shape or type; [`Error::NonFinite`]; [`Error::Io`]
    /// if memory for the conversion cannot be allocated.
    pub fn floats<T: Element>(&self, key: &str, shape: &[usize]) -> Result<Tensor<T>> {
        floats(&self.file.floats(key, shape)?)
    }

    /// A `[batch, tokens]` tensor of token ids.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the tensor is missing, does not have two dimensions, is not stored as I32, I64 or U32,
    /// or holds an id that is not a `u32`.
    pub fn token_ids(&self, key: &str) -> Result<Vec<Vec<u32>>> {
        let (dtype, shape, bytes) = self.raw(key)?;
        let (path, key) = (self.path().to_path_buf(), key.to_owned());
        let &[_, tokens] = shape else {
            let expected = vec![1, shape.iter().product()];
            return Err(FileError::Shape { path, key, expected, actual: shape.to_vec() }.into());
        };
        let ids: Vec<i64> = match dtype {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::U32 => bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
            _ => {
                let (expected, actual) = ("I64, I32 or U32", format!("{dtype:?}"));
                return Err(FileError::Dtype { path, key, expected, actual }.into());
            }
        };
        let id = |&id: &i64| {
            u32::try_from(id).map_err(|_| {
                let (path, field) = (path.clone(), key.clone());
                let expected = "expected token ids of at least 0".into();
                FileError::Field { path, field, value: id.to_string(), expected }.into()
            })
        };
        ids.chunks(tokens.max(1)).map(|row| row.iter().map(id).collect()).collect()
    }
}

/// A stored tensor of floats as `T`, as [`Checkpoint::floats`] reads it.
///
/// # Errors
/// [`Error::Checkpoint`] unless the tensor holds floats; [`Error::NonFinite`]; [`Error::Io`] if memory cannot be
/// allocated.
pub(crate) fn floats<T: Element>(stored: &fused_lora_peft::Tensor) -> Result<Tensor<T>> {
    stored.expect_floats()?;
    let in_place = match stored.dtype {
        Dtype::F32 => T::DTYPE == DType::F32,
        Dtype::F16 => T::DTYPE == DType::F16,
        Dtype::BF16 => T::DTYPE == DType::Bf16,
        _ => false,
    };
    let tensor = match in_place.then(|| Tensor::mapped(&stored.bytes)).flatten() {
        Some(tensor) => tensor,
        None => {
            let source = &stored.bytes[..];
            let convert = |out: &mut [T]| match stored.dtype {
                Dtype::F32 => convert(source, out, f32::from_le_bytes, |v| T::from_f64(f64::from(v))),
                Dtype::F16 => convert(source, out, f16::from_le_bytes, |v| T::from_f64(f64::from(v))),
                Dtype::BF16 => convert(source, out, bf16::from_le_bytes, |v| T::from_f64(f64::from(v))),
                _ => convert(source, out, f64::from_le_bytes, T::from_f64),
            };
            Tensor::filled(stored.shape.iter().product(), convert)
                .map_err(|source| Error::Io { path: stored.path.clone(), source })?
        }
    };
    if !tensor.par_chunks(CHUNK).all(all_finite) {
        return Err(Error::NonFinite { path: stored.path.clone(), key: stored.key.clone(), dtype: T::DTYPE });
    }
    Ok(tensor)
}

fn convert<const N: usize, S, T: Element>(
    source: &[u8],
    out: &mut [T],
    read: fn([u8; N]) -> S,
    narrow: impl Fn(S) -> T + Sync,
) {
    out.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK * N)).for_each(|(out, source)| {
        for (out, bytes) in out.iter_mut().zip(source.as_chunks::<N>().0) {
            *out = narrow(read(*bytes));
        }
    });
}

/// Writes a safetensors file as [`write_atomically`] does.
///
/// # Errors
/// [`Error::Unwritable`], [`Error::Io`]; [`Error::Checkpoint`] if a tensor's shape does not fit its bytes.
pub fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<()> {
    let bytes = serialize(path, tensors, metadata)?;
    write_atomically(path, |file| file.write_all(&bytes))
}

/// The bytes of a safetensors file. `path` is only named in errors.
pub(crate) fn serialize(
    path: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let bad = |e: safetensors::SafeTensorError| FileError::NotSafetensors { path: path.into(), reason: e.to_string() };
    Ok(safetensors::serialize(tensors, metadata).map_err(bad)?)
}
