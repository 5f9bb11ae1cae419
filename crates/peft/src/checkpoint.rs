//! safetensors checkpoints: one file, or shards that an index lists, memory-mapped.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::recognize;

/// The types that [`Tensor::to_f32`] reads.
pub const FLOATS: &str = "F32, F16, BF16 or F64";

const CONVERT_MODEL: &str = "load it with transformers and save it as safetensors, with `model.save_pretrained(folder, safe_serialization=True)`";
const CONVERT_ADAPTER: &str =
    "load it with PEFT and save it as safetensors, with `model.save_pretrained(folder, safe_serialization=True)`";

/// Bytes of a mapped file. Cloning shares the mapping.
#[derive(Debug, Clone)]
pub struct Bytes {
    map: Arc<Mmap>,
    range: std::ops::Range<usize>,
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// A tensor in a file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The file.
    pub path: PathBuf,
    /// The tensor's key.
    pub key: String,
    /// The tensor's storage type.
    pub dtype: Dtype,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// The tensor's elements, little-endian, row-major, in the mapped file.
    pub bytes: Bytes,
}

impl Tensor {
    /// Checks the shape.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn expect_shape(&self, expected: &[usize]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        let (path, key) = (self.path.clone(), self.key.clone());
        Err(Error::Shape { path, key, expected: expected.to_vec(), actual: self.shape.clone() })
    }

    /// Checks that the tensor holds floats of a supported type.
    ///
    /// # Errors
    /// [`Error::Dtype`].
    pub fn expect_floats(&self) -> Result<()> {
        if matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
            return Ok(());
        }
        let (path, key) = (self.path.clone(), self.key.clone());
        Err(Error::Dtype { path, key, expected: FLOATS, actual: format!("{:?}", self.dtype) })
    }

    /// The elements as `f32`; elements of F64 are rounded.
    ///
    /// # Errors
    /// [`Error::Dtype`] unless the tensor holds floats.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.expect_floats()?;
        Ok(match self.dtype {
            Dtype::F16 => self.bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => self.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F64 => self.bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            _ => self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        })
    }
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    map: Arc<Mmap>,
    header: Metadata,
    data_start: usize,
}

/// An open checkpoint: the tensors of one safetensors file, or of all files of a sharded one.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file, or the index of its shards.
    path: PathBuf,
    files: Vec<File>,
    /// The index of the file that a key is in.
    keys: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Maps one safetensors file and checks its header against its length.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NotSafetensors`] if the file is truncated, damaged or not a safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let keys = file.header.offset_keys().into_iter().map(|key| (key, 0)).collect();
        Ok(Self { path: path.into(), files: vec![file], keys })
    }

    /// Opens a model's weights as transformers finds them: `model.safetensors`, else the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// As [`open`](Self::open), for `model.safetensors` if neither exists; [`Error::NotJson`], [`Error::Field`],
    /// [`Error::MissingTensor`] and [`Error::UnknownTensor`] for an index that contradicts its shards;
    /// [`Error::Format`] if the folder has weights in another format only.
    pub fn of_model(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if !single.exists() && index.exists() {
            return Self::sharded(&index);
        }
        if !single.exists() {
            for name in ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"] {
                refuse_format(&folder.join(name), CONVERT_MODEL)?;
            }
        }
        Self::open(&single)
    }

    /// Opens an adapter's weights: `adapter_model.safetensors`.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Format`] if there is only an `adapter_model.bin`.
    pub fn of_adapter(folder: &Path) -> Result<Self> {
        let path = folder.join("adapter_model.safetensors");
        if !path.exists() {
            refuse_format(&folder.join("adapter_model.bin"), CONVERT_ADAPTER)?;
        }
        Self::open(&path)
    }

    fn sharded(index: &Path) -> Result<Self> {
        let fields = Fields::read(index)?;
        let expected = "expected an object that maps each tensor to the file it is in";
        let Some(Value::Object(map)) = fields.get("weight_map") else {
            return Err(fields.refuse("weight_map", expected));
        };
        let folder = index.parent().unwrap_or(Path::new("."));
        let mut checkpoint = Self { path: index.into(), files: vec![], keys: BTreeMap::new() };
        let mut opened: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, name) in map {
            let plain = |name: &&str| {
                let mut parts = Path::new(name).components();
                matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
            };
            let Some(name) = name.as_str().filter(plain) else {
                let bad = |value: String| Error::Field {
                    path: index.into(),
                    field: format!("weight_map.{key}"),
                    value,
                    expected: "expected the name of a file in the same folder".into(),
                };
                return Err(bad(name.to_string()));
            };
            if !opened.contains_key(name) {
                opened.insert(name, checkpoint.files.len());
                checkpoint.files.push(File::open(&folder.join(name))?);
            }
            checkpoint.keys.insert(key.clone(), opened[name]);
        }
        // transformers reads all tensors of the shards, so the index must list exactly these.
        for (i, file) in checkpoint.files.iter().enumerate() {
            if let Some(key) = file.header.offset_keys().into_iter().find(|key| checkpoint.keys.get(key) != Some(&i)) {
                let expected = format!("only tensors that {} lists for this file", index.display());
                return Err(Error::UnknownTensor { path: file.path.clone(), key, expected });
            }
        }
        for (key, &i) in &checkpoint.keys {
            let file = &checkpoint.files[i];
            if file.header.info(key).is_none() {
                let expected = format!("a tensor, because {} lists it", index.display());
                return Err(Error::MissingTensor { path: file.path.clone(), key: key.clone(), expected });
            }
        }
        Ok(checkpoint)
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that a tensor is in; the path of the checkpoint if there is no such tensor.
    pub fn path_of(&self, key: &str) -> &Path {
        self.keys.get(key).map_or(&self.path, |&file| &self.files[file].path)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Whether there is a tensor with this key.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    fn info(&self, key: &str) -> Option<(&File, &TensorInfo)> {
        let file = &self.files[*self.keys.get(key)?];
        Some((file, file.header.info(key)?))
    }

    /// The shape of a tensor, if it exists.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.info(key).map(|(_, info)| &info.shape[..])
    }

    /// A tensor's storage type, shape and bytes, if it exists.
    pub fn raw(&self, key: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let (file, info) = self.info(key)?;
        Some((info.dtype, &info.shape, &file.map[file.range(info)]))
    }

    /// A tensor, if it exists.
    pub fn get(&self, key: &str) -> Option<Tensor> {
        let (file, info) = self.info(key)?;
        Some(Tensor {
            path: file.path.clone(),
            key: key.into(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: Bytes { map: file.map.clone(), range: file.range(info) },
        })
    }

    /// A tensor of floats, of the given shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::Dtype`].
    pub fn floats(&self, key: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.get(key).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            key: key.into(),
            expected: format!("shape {shape:?}"),
        })?;
        tensor.expect_shape(shape)?;
        tensor.expect_floats()?;
        Ok(tensor)
    }
}

impl File {
    fn open(path: &Path) -> Result<Self> {
        let io = |cause| Error::Io { path: path.into(), cause };
        let file = std::fs::File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(Error::NotSafetensors { path: path.into(), reason: "it is empty".into() });
        }
        // SAFETY: the mapping is only read. As with every mapped file, the file must not be shortened or rewritten
        // meanwhile.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let damaged = |reason: String| Error::NotSafetensors { path: path.into(), reason };
        let (header_len, header) = safetensors::SafeTensors::read_metadata(&map)
            .map_err(|e| damaged(recognize::what_is(&map).map_or_else(|| e.to_string(), String::from)))?;
        let data_start = 8 + header_len;
        if data_start + header.data_len() != map.len() {
            return Err(damaged("its header does not match its length".into()));
        }
        Ok(Self { path: path.into(), map, header, data_start })
    }

    fn range(&self, info: &TensorInfo) -> std::ops::Range<usize> {
        self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1
    }
}

fn refuse_format(path: &Path, remedy: &'static str) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let format = name.trim_end_matches(".index.json").rsplit('.').next().unwrap_or_default().to_owned();
    Err(Error::Format { path: path.into(), format: format!(".{format}"), remedy })
}
