//! safetensors files: memory-mapped to read, written whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fused_lora::cpu::vector::all_finite;
use fused_lora::{DType, Element};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

use crate::error::{Error, Result};
use crate::output::write_atomically;
use crate::tensor::Tensor;

/// Elements converted or checked by one task.
const CHUNK: usize = 1 << 16;
const FLOATS: &str = "F32, F16, BF16 or F64";

/// An open safetensors file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    map: Arc<Mmap>,
    header: Metadata,
    data_start: usize,
}

impl Checkpoint {
    /// Maps a file and checks its header against its length.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NotSafetensors`] if it is truncated or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(Error::NotSafetensors { path: path.into(), reason: "it is empty".into() });
        }
        // SAFETY: the mapping is only read. As with every mapped file, nobody may shorten or rewrite it meanwhile.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let damaged = |e: &dyn std::fmt::Display| Error::NotSafetensors { path: path.into(), reason: e.to_string() };
        let (header_len, header) = safetensors::SafeTensors::read_metadata(&map).map_err(|e| damaged(&e))?;
        let data_start = 8 + header_len;
        if data_start + header.data_len() != map.len() {
            return Err(damaged(&"its header and its length disagree"));
        }
        Ok(Self { path: path.into(), map, header, data_start })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = self.header.offset_keys();
        keys.sort();
        keys
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.header.info(key).map(|info| &info.shape[..])
    }

    fn info(&self, key: &str, expected: &dyn Fn() -> String) -> Result<&TensorInfo> {
        self.header.info(key).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            key: key.into(),
            expected: expected(),
        })
    }

    fn bytes(&self, info: &TensorInfo) -> std::ops::Range<usize> {
        self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1
    }

    /// A tensor's stored type, shape and bytes.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn raw(&self, key: &str) -> Result<(Dtype, &[usize], &[u8])> {
        let info = self.info(key, &|| "a tensor".into())?;
        Ok((info.dtype, &info.shape, &self.map[self.bytes(info)]))
    }

    /// A tensor of floats as `T`: in place where it is stored so and aligned, converted otherwise. All finite.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::Dtype`], [`Error::NonFinite`]; [`Error::Io`] if there is
    /// no memory to convert into.
    pub fn floats<T: Element>(&self, key: &str, shape: &[usize]) -> Result<Tensor<T>> {
        let info = self.info(key, &|| format!("shape {shape:?}"))?;
        if info.shape != shape {
            return Err(Error::Shape {
                path: self.path.clone(),
                key: key.into(),
                expected: shape.to_vec(),
                actual: info.shape.clone(),
            });
        }
        let bytes = self.bytes(info);
        let stored = match info.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::Bf16),
            Dtype::F64 => None,
            _ => {
                return Err(Error::Dtype {
                    path: self.path.clone(),
                    key: key.into(),
                    expected: FLOATS,
                    actual: format!("{:?}", info.dtype),
                });
            }
        };
        let in_place = (stored == Some(T::DTYPE)).then(|| Tensor::mapped(&self.map, bytes.clone())).flatten();
        let tensor = match in_place {
            Some(tensor) => tensor,
            None => {
                let source = &self.map[bytes];
                let convert = |out: &mut [T]| match info.dtype {
                    Dtype::F32 => convert(source, out, f32::from_le_bytes, |v| T::from_f64(f64::from(v))),
                    Dtype::F16 => convert(source, out, f16::from_le_bytes, |v| T::from_f64(f64::from(v))),
                    Dtype::BF16 => convert(source, out, bf16::from_le_bytes, |v| T::from_f64(f64::from(v))),
                    _ => convert(source, out, f64::from_le_bytes, T::from_f64),
                };
                Tensor::filled(shape.iter().product(), convert)
                    .map_err(|source| Error::Io { path: self.path.clone(), source })?
            }
        };
        if !tensor.par_chunks(CHUNK).all(all_finite) {
            return Err(Error::NonFinite { path: self.path.clone(), key: key.into(), dtype: T::DTYPE });
        }
        Ok(tensor)
    }

    /// A `[batch, tokens]` tensor of token ids.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Shape`] if it has not two dimensions; [`Error::Dtype`] unless I32, I64, U32;
    /// [`Error::Field`] for a negative or huge id.
    pub fn token_ids(&self, key: &str) -> Result<Vec<Vec<u32>>> {
        let (dtype, shape, bytes) = self.raw(key)?;
        let &[_, tokens] = shape else {
            return Err(Error::Shape {
                path: self.path.clone(),
                key: key.into(),
                expected: vec![1, shape.iter().product()],
                actual: shape.to_vec(),
            });
        };
        let ids: Vec<i64> = match dtype {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::U32 => bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
            _ => {
                return Err(Error::Dtype {
                    path: self.path.clone(),
                    key: key.into(),
                    expected: "I64, I32 or U32",
                    actual: format!("{dtype:?}"),
                });
            }
        };
        let id = |&id: &i64| {
            u32::try_from(id).map_err(|_| Error::Field {
                path: self.path.clone(),
                field: key.into(),
                value: id.to_string(),
                expected: "expected token ids of at least 0".into(),
            })
        };
        ids.chunks(tokens.max(1)).map(|row| row.iter().map(id).collect()).collect()
    }
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
/// [`Error::Unwritable`], [`Error::Io`]; [`Error::NotSafetensors`] if a tensor's shape does not fit its bytes.
pub fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<()> {
    let bytes = serialize(path, tensors, metadata)?;
    write_atomically(path, |file| file.write_all(&bytes))
}

/// The bytes of a safetensors file; `path` is for errors.
pub(crate) fn serialize(
    path: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let bad = |e: safetensors::SafeTensorError| Error::NotSafetensors { path: path.into(), reason: e.to_string() };
    safetensors::serialize(tensors, metadata).map_err(bad)
}
